"""`blockswap train`: its options, and the task that they describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..messages import quote
from ..training.recipes import RECIPES, Recipe
from .errors import advise_when_interrupted, as_options, given_words
from .parameters import (
    FOLDER,
    GENOME,
    device_option,
    exclusive,
    holdout_options,
    reader_option,
    subcommand,
    together,
    was_given,
)
from .tables import print_json, print_table

if TYPE_CHECKING:
    import torch

    from ..searching.record import FoundNetwork

__all__ = ["train_"]

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class _Train(click.Command):
    """Lists the options that take the place of the recipe's by themselves."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        of_recipe = {each.name for each in fields(Recipe)}
        shown: dict[str, list[tuple[str, str]]] = {"Options": [], "In place of the recipe's": []}
        for each in self.get_params(ctx):
            if isinstance(each, click.Option) and (record := each.get_help_record(ctx)) is not None:
                shown["In place of the recipe's" if each.name in of_recipe else "Options"].append(record)
        for title, records in shown.items():
            with formatter.section(title):
                formatter.write_dl(records)


# Each is named after its field of `Recipe`; what is not given is the recipe's.
_recipe_options = together(
    click.option("--epochs", type=int, help="epochs"),
    click.option("--batch-size", type=int, help="images a step, of all processes together"),
    click.option("--lr", type=float, help="highest learning rate"),
    click.option("--momentum", type=float, help="momentum of SGD"),
    click.option("--nesterov/--no-nesterov", default=None, help="Nesterov's momentum"),
    click.option("--weight-decay", type=float, help="weight decay"),
    click.option("--decay-norm/--no-decay-norm", default=None, help="of biases and BN too"),
    click.option("--schedule", type=click.Choice(("cosine", "step", "one-cycle")), help="how the learning rate goes"),
    click.option("--step-epochs", type=int, help="epochs between steps"),
    click.option("--step-factor", type=float, help="what a step multiplies the learning rate by"),
    click.option("--warmup", type=float, metavar="SHARE", help="share of one cycle in which the rate rises"),
    click.option("--label-smoothing", type=float, help="share of a hard label that goes to all classes"),
    click.option(
        "--flip", type=click.Choice(("random", "alternate")), help="by chance or in every other epoch (CIFAR)"
    ),
    click.option("--padding", type=int, help="border that is added for the crop of CIFAR"),
    click.option("--cutout", type=int, help="side of the square that is hidden, for CIFAR (0: none)"),
    click.option("--crop-scale", type=float, help="least share of the area that a crop keeps (but of CIFAR)"),
    click.option("--small-size", type=int, help="side of the images of the first epochs (0: as the others)"),
    click.option("--small-share", type=float, metavar="SHARE", help="share of the epochs with small images"),
    click.option("--average-epochs", type=int, help="average the weights after so many last epochs"),
    click.option("--beta", type=float, help="weight of attention transfer (0: soft labels alone)"),
    click.option("--mode", type=click.Choice(("code", "paper")), help="loss of the authors' code, or equation 1"),
    click.option("--soft-labels", type=float, metavar="WEIGHT", help="weight of the teacher's soft labels, 0 to 1"),
    click.option("--temperature", type=float, help="temperature of soft labels"),
    click.option("--teacher-size", type=int, help="side of the teacher's images in pixels (0: the student's images)"),
    click.option("--layer-decay", type=float, help="factor of the learning rate from each block to the one before"),
    click.option("--freeze", metavar="STAGES", help="stages to keep, with the stem: a number, or conv1,stages.0"),
)


@subcommand("train", "train any timm model, from a teacher or without one", cls=_Train)
@click.argument(
    "names",
    nargs=-1,
    required=True,
    metavar="MODEL...",
    help="a model of timm or the zoo, several of one teacher, or the record of a search, for its best network",
)
@click.option("--rank", type=int, help="which network of a record, 1 being the best [default: 1]")
@click.option(
    "--data",
    help="torch/cifar10 or another timm dataset, or a folder of images [default: that of the record]",
)
@click.option("--data-dir", metavar="FOLDER", help="the folder of the dataset")
@holdout_options()
@click.option("--out", type=FOLDER, required=True, metavar="FOLDER", help="where checkpoint, log and weights go")
@click.option("--resume", is_flag=True, help="resume the run in that folder")
@click.option(
    "--genome",
    type=GENOME,
    help="block types, for a model of the zoo, or in place of those of timm's (K keeps one) [default: its own]",
)
@click.option("--num-classes", type=int, help="classes [default: the model's own]")
@click.option("--in-chans", type=int, help="channels of the images [default: the model's own]")
@click.option("--image-size", type=int, help="side of the images in pixels [default: the model's own]")
@click.option("--pretrained", is_flag=True, help="start from the model's own weights [default: random ones]")
@click.option(
    "--init",
    metavar="FILE",
    help="start from these weights, or from the blocks of a library; 'teacher': stem, head and blocks of the same type "
    "are the teacher's",
)
@click.option(
    "--teacher",
    metavar="MODEL",
    help="learn from this model, or from that of the folder of a run or of a saved network [default: no teacher]",
)
@click.option("--teacher-checkpoint", metavar="FILE", help="the teacher's weights [default: its own]")
@click.option(
    "--recipe",
    type=click.Choice(tuple(RECIPES)),
    help="hyperparameters [default: by data, cifar10 or imagenet]",
)
@_recipe_options
@click.option("--ema", type=float, metavar="DECAY", help="average the weights, such as 0.999 [default: no average]")
@click.option("--seed", type=int, default=0, help="seed of weights, order and augmentation")
@device_option
@click.option("--amp", type=click.Choice(("bfloat16",)), help="precision of autocast [default: float32 throughout]")
@click.option("--channels-last", is_flag=True, help="memory format NHWC")
@click.option(
    "--compile", is_flag=False, flag_value="default", type=click.Choice(COMPILE_MODES), help="torch.compile, in a mode"
)
@reader_option
@click.option("--log-every", type=int, default=50, help="steps between looks at the loss")
@click.option("--test-every", type=int, default=1, help="epochs between looks at the test set")
@click.option(
    "--checkpoint-minutes", type=float, default=5.0, metavar="M", help="minutes between checkpoints in an epoch"
)
@click.option("--tensorboard", is_flag=True, help="write events for TensorBoard too")
def train_(as_json: bool, **arguments: Any) -> None:
    """Trains a model, or several of one teacher, and prints the errors."""
    options = SimpleNamespace(**arguments)
    exclusive("pretrained", "init")
    # As the log of a run has it.
    options.compile = options.compile or False
    _read_record(options)
    recipe = _recipe(options)
    if len(options.names) > 1:
        if options.teacher is None:
            raise ValueError("several models are trained together to share a teacher; use --teacher, or one model")
        if options.genome is not None:
            raise ValueError("a genome is for one model; leave out --genome, or use one model")
    if options.teacher is None:
        for name in ("teacher_checkpoint", "beta", "mode", "soft_labels", "temperature", "teacher_size"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for learning from a teacher; use --teacher MODEL")
        if options.init == "teacher":
            raise ValueError("there is no teacher to start from; use --teacher MODEL (--init)")
    if options.ema is not None and not 0 < options.ema < 1:
        raise ValueError(f"the decay of an average is between 0 and 1, not {options.ema} (--ema)")
    if options.init not in (None, "teacher") and not Path(options.init).exists():
        raise ValueError(f"no weights {quote(options.init)}; use a file, a library, or 'teacher' (--init)")
    if options.teacher_checkpoint is not None and not Path(options.teacher_checkpoint).is_file():
        raise ValueError(f"no checkpoint {quote(options.teacher_checkpoint)} (--teacher-checkpoint)")

    from ..machine import find_device, keep_memory
    from ..training.distributed import process_group, rank_and_size

    device = find_device(options.device)
    if device.type == "cpu":
        # Students, whose operations are small, spend much time on getting memory anew.
        keep_memory()
    with process_group(device) as device:
        rank, world_size = rank_and_size()
        summary = _train(options, recipe, device, rank, world_size)
    if rank:
        return
    if as_json:
        print_json(summary)
        return
    together = len(options.names) > 1
    for name, each in summary.items() if together else [(options.names[0], summary)]:
        rows = [
            ("weights", Path(options.out) / (name if together else "") / "model.safetensors"),
            ("data", options.data),
            ("images", f"{each['test_images']:,}"),
            ("top-1 error", f"{each['top1_error']:.2f} %"),
            *([("top-5 error", f"{each['top5_error']:.2f} %")] if each["num_classes"] > 5 else []),
            ("time", f"{each['seconds']:,.1f} s, {recipe.epochs} epoch{'s' * (recipe.epochs != 1)}, {device}"),
        ]
        print_table(("model", name), rows)


def _read_record(options: SimpleNamespace) -> None:
    """Takes network, classes, images and data of a search, where its record is trained, and checks what is left."""
    if len(options.names) == 1 and Path(options.names[0]).is_file():
        from ..searching.record import network_of

        record = options.names[0]
        if options.genome is not None:
            raise ValueError(f"{record} has genomes of its own; use --rank, or a network in place of the record")
        found = network_of(record, 1 if options.rank is None else options.rank)
        for name in ("num_classes", "in_chans", "image_size"):
            if getattr(options, name) is None:
                setattr(options, name, getattr(found, name))
        options.names, options.genome = (found.name,), str(found.genome)
        if found.swapped:
            options.names = (_of_timm(found.name, options.genome),)
        if options.init is None and not options.pretrained:
            options.init = found.library
        if options.data is None and found.data is not None:
            options.data = found.data
            options.data_dir = found.data_dir if options.data_dir is None else options.data_dir
        if options.data is not None and found.val_share is not None:
            _hold_out_as(options, found)
        if found.layout is not None:
            from ..zoo.register import register

            register(found.layout)
    elif len(options.names) > 1 and any(Path(name).is_file() for name in options.names):
        raise ValueError("the record of a search is trained alone; use one command for each")
    elif options.names[0].endswith(".jsonl"):
        raise ValueError(f"no record {quote(options.names[0])}; use the record of a search, or a network")
    elif options.rank is not None:
        raise ValueError("--rank is for the record of a search; use its file in place of the network")
    if options.data is None:
        raise click.UsageError("Missing option '--data'.", click.get_current_context())


def _hold_out_as(options: SimpleNamespace, found: FoundNetwork) -> None:
    """Holds the images out that a search did, so that none on which it scored are tested on, where it is not said."""
    from ..data.facts import holdout_of

    if holdout_of(options.data, options.data_dir) is None:
        # The folder has splits.
        return
    if options.val_share is None:
        options.val_share = found.val_share
    if not was_given("val_seed"):
        options.val_seed = found.val_seed


def _of_timm(name: str, genome: str) -> str:
    """The name by which a network of timm is found with a genome: with a tag where the zoo has that name too."""
    import timm

    from ..zoo.find import find_model

    cfg = timm.get_pretrained_cfg(name)
    return name if find_model(name, genome) == name or cfg is None else f"{name}.{cfg.tag}"


def _recipe(options: SimpleNamespace) -> Recipe:
    name = options.recipe or ("cifar10" if options.data.lower().startswith("torch/cifar") else "imagenet")
    given = {each.name: getattr(options, each.name) for each in fields(Recipe)}
    return replace(RECIPES[name], **{key: value for key, value in given.items() if value is not None})


def _train(
    options: SimpleNamespace, recipe: Recipe, device: torch.device, rank: int, world_size: int
) -> dict[str, Any]:
    from ..training.runs import RunSettings, train_run

    start = ["blockswap"]
    if world_size > 1:
        start = ["torchrun", f"--nproc-per-node={world_size}", "-m", "blockswap_models"]
    settings = RunSettings(**{each.name: getattr(options, each.name) for each in fields(RunSettings)})
    # Before the log begins, there is nothing to resume.
    log = Path(options.out) / "log.jsonl"
    advise_when_interrupted(lambda: "continue with the same command and --resume" if log.exists() else "")
    writer = _writer(options) if rank == 0 else None
    command = click.get_current_context().command
    try:
        return train_run(
            settings,
            recipe,
            options.out,
            device=device,
            workers=options.workers,
            resume=options.resume,
            log_every=options.log_every,
            test_every=options.test_every,
            checkpoint_minutes=options.checkpoint_minutes,
            command=[*start, *given_words()],
            asked=[each.name for each in fields(Recipe) if getattr(options, each.name) is not None],
            writer=writer,
            say=lambda text: click.echo(as_options(text, command), err=True),
        )
    finally:
        if writer is not None:
            writer.close()


def _writer(options: SimpleNamespace) -> _Events | None:
    if not options.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs the package tensorboard; use pip install tensorboard") from None
    return _Events(lambda: SummaryWriter(options.out))


class _Events:
    """A writer for TensorBoard that makes its folder with the first value, so that a refused run leaves none."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._writer: Any = None

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes a value."""
        if self._writer is None:
            self._writer = self._make()
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()
