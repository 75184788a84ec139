"""Types of parameters, and the options that several subcommands have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from ..budget import parse_amount, parse_latency, parse_several, parse_size
from ..genome import BlockType, Genome
from ..layout import Layout
from ..machine import default_workers, require_writable
from ..messages import did_you_mean, quote

__all__ = [
    "AMOUNT",
    "AMOUNTS",
    "FOLDER",
    "GENOME",
    "LATENCIES",
    "LATENCY",
    "NETWORK",
    "SIZE",
    "SIZES",
    "TYPES",
    "Decorator",
    "Given",
    "NewFile",
    "Read",
    "dataset_options",
    "device_option",
    "exclusive",
    "holdout_options",
    "model_argument",
    "model_options",
    "network_options",
    "out_file",
    "reader_option",
    "record_argument",
    "refuse_given",
    "size_options",
    "subcommand",
    "together",
    "top_option",
    "was_given",
]

Decorator = Callable[[Any], Any]
Decorated = TypeVar("Decorated")


class Given(NamedTuple):
    """A typed value and its meaning."""

    text: str
    value: Any


class Read(click.ParamType):
    """A value that a function parses from text; its ValueError says what is wrong."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads text; fails with the message of the ValueError where it cannot be read."""
        if not isinstance(value, str) or isinstance(value, Genome):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


AMOUNT = Read("amount", lambda text: Given(text, parse_amount(text)))
LATENCY = Read("time", lambda text: Given(text, parse_latency(text)))
AMOUNTS = Read("amount[,…]", lambda text: Given(text, parse_several(text, parse_amount)))
SIZE = Read("size", lambda text: Given(text, parse_size(text)))
SIZES = Read("size[,…]", lambda text: Given(text, parse_several(text, parse_size)))
LATENCIES = Read("time[,…]", lambda text: Given(text, parse_several(text, parse_latency)))


def _network(text: str) -> Given:
    """Reads the name of a layout; one of timm's that is no layout stands for itself."""
    try:
        return Given(text, Layout.named(text))
    except ValueError as error:
        import timm

        if timm.is_model(text.partition(".")[0]):
            return Given(text, text)
        close = did_you_mean(text.lower(), timm.list_models(), "")
        if "did you mean" in str(error) or not close:
            raise
        raise ValueError(f"unknown network {quote(text)}; {close}") from None


NETWORK = Read("network", _network)
GENOME = Read("genome", Genome)


def _folder(text: str) -> str:
    """Reads the name of a folder to write, which an unset variable of a shell is not."""
    if not text:
        raise ValueError("an empty name of a folder; use the one to write, or . for this one")
    return text


FOLDER = Read("folder", _folder)
TYPES = Read("types", lambda text: [BlockType.parse(each.strip()) for each in text.split(",")])


class NewFile(click.ParamType):
    """A file to write, in a folder that exists; one that exists already is refused unless it may be replaced."""

    name = "file"

    def __init__(self, replace: bool = False) -> None:
        self._replace = replace

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the path; fails for one that cannot be written."""
        path = Path(value)
        try:
            self._check(path, str(value), param, ctx)
        except OSError as error:
            # Such as a name that is too long for the file system.
            self.fail(f"cannot write {quote(str(value))}: {error.strerror}; use another name", param, ctx)
        return path

    def _check(self, path: Path, value: str, param: click.Parameter | None, ctx: click.Context | None) -> None:
        if not path.name or path.is_dir():
            self.fail(f"{quote(value)} is a folder; use a file in it", param, ctx)
        if path.exists() and not self._replace:
            self.fail(f"there is {quote(value)} already; use another name, or delete it", param, ctx)
        folder = path.resolve().parent
        if not folder.is_dir():
            self.fail(f"no folder {quote(str(path.parent))}; use a file in a folder that exists", param, ctx)
        try:
            require_writable(path)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def subcommand(name: str, text: str, **attributes: Any) -> Decorator:
    """Makes a subcommand of a function, with its line of help and `--json`."""

    def decorate(function: Any) -> click.Command:
        command: click.Command = click.command(name, help=text, short_help=text, **attributes)(function)
        command.params.append(click.Option(["--json", "as_json"], is_flag=True, help="print JSON"))
        return command

    return decorate


def together(*decorators: Decorator) -> Decorator:
    """Makes one decorator of several, in the order in which help shows them."""

    def decorate(function: Any) -> Any:
        for each in reversed(decorators):
            function = each(function)
        return function

    return decorate


def exclusive(*names: str) -> None:
    """Refuses options of the running command that exclude each other; raises ValueError."""
    ctx = click.get_current_context()
    given = [each.opts[0] for each in ctx.command.params if each.name in names and ctx.params[each.name]]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} exclude each other; leave one of them out")


def was_given(name: str) -> bool:
    """Whether an option of the running command was given, and is not its default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_given(names: Iterable[str], why: str) -> None:
    """Refuses options that would be left unused; raises ValueError, whose message begins with the option."""
    for each in click.get_current_context().command.params:
        if each.name in names and was_given(each.name):
            raise ValueError(f"{each.opts[0]} {why}")


def default_readers() -> int:
    """Processes that read images, unless it is said."""
    return default_workers(8)


size_options = together(
    click.option("--num-classes", type=int, help="classes [default: the network's own]"),
    click.option("--in-chans", type=int, help="input channels [default: the network's own]"),
    click.option("--image-size", type=int, help="height and width of the images [default: the network's own]"),
)
network_options = together(
    click.argument(
        "network", type=NETWORK, help="a network, such as wrn40_2 or resnet34, or a CNN of timm, such as resnet50"
    ),
    click.option(
        "--types",
        type=TYPES,
        help="block types to choose from, such as S,G4,W1 [default: the paper's 23, and K for a CNN of timm]",
    ),
    size_options,
)
model_argument = click.argument(
    "name", metavar="MODEL", help="a model of timm or the zoo, the folder of a network or a run, or hf-hub:NAME"
)
dataset_options = together(
    click.option("--data", required=True, help="torch/cifar10 or another timm dataset, or a folder of images"),
    click.option("--data-dir", metavar="FOLDER", help="the folder of the dataset"),
)


def holdout_options(usual: str = "0.2") -> Decorator:
    """The options of what is held out of a folder without splits.

    Args:
        usual: What is held out where it is not said.
    """
    return together(
        click.option(
            "--val-share",
            type=float,
            metavar="SHARE",
            help=f"share of each class that is held out for validation, for a folder without splits [default: {usual}]",
        ),
        click.option("--val-seed", type=int, default=0, help="seed of what is held out"),
    )


device_option = click.option("--device", help="cpu, cuda or cuda:1 [default: cuda where there is a GPU, else cpu]")
reader_option = click.option(
    "--workers",
    type=int,
    default=default_readers,
    show_default="one a core, 8 at most",
    help="processes that read images",
)
record_argument = click.argument(
    "record", type=click.Path(path_type=Path), help="the record of a search, finished or not"
)
top_option = click.option("--top", type=int, default=5, help="genomes to print")


def out_file(text: str, replace: bool = False) -> Decorator:
    """The option `--out` of a file that the command writes."""
    return click.option("--out", type=NewFile(replace), required=True, help=text)


def model_options(weights: str) -> Decorator:
    """The options of a model and its weights.

    Args:
        weights: Which weights the model has without `--checkpoint` and `--pretrained`.
    """
    return together(
        click.option("--checkpoint", metavar="FILE", help="the weights: .safetensors, or torch with tensors only"),
        click.option(
            "--pretrained/--no-pretrained",
            default=None,
            help=f"the model's own weights, or random ones [default: {weights}]",
        ),
        click.option(
            "--genome",
            type=GENOME,
            help="block types, for a model of the zoo, or in place of those of timm's (K keeps one) [default: its own]",
        ),
        click.option("--num-classes", type=int, help="classes [default: the model's own]"),
        click.option("--in-chans", type=int, help="input channels [default: the model's own]"),
    )
