"""Messages of the package, which speak of the arguments of Python, in the words of the command line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

__all__ = [
    "advise_when_interrupted",
    "as_options",
    "given_words",
    "interruption_advice",
    "remember_words",
    "without_warning",
]

# Arguments of Python that have another name as options.
_ALIASES = {
    "number": "points",
    "record": "out",
    "folder": "out",
    "root": "data_dir",
    "checkpoint": "teacher_checkpoint",
}
_VALUE = r"'[^']*'|\"[^\"]*\"|\w+(?:[./:+-]\w+)*"
_ADVICE, _WORDS = "blockswap.advice", "blockswap.words"


def as_options(message: str, command: click.Command | None) -> str:
    """Rewrites the arguments that a message names as options of a command: `num_classes=146` as `--num-classes 146`.

    So is a name with which the message begins, as in `num_classes is at least 1`. Quoted text is left alone, and so are
    calls of Python. An argument in brackets, as in `(split=)`, is left out where the command has no such option.
    """
    options: dict[str | None, click.Option] = {}
    if command:
        options = {each.name: each for each in command.params if isinstance(each, click.Option)}
    options.update(
        {name: options[alias] for name, alias in _ALIASES.items() if alias in options and name not in options}
    )
    if not options:
        return message
    names = "|".join(sorted(map(re.escape, filter(None, options)), key=len, reverse=True))
    message = re.sub(rf"^({names})(?= (?:is|needs) )", lambda found: _flag(options[found[1]]), message)
    # Quoted text and calls are found first, and so are left alone.
    parts = (
        r"(?<!\w)(?:'[^']*'|\"[^\"]*\")",
        r"\w\((?:[^()]|\([^()]*\))*\)",
        r" \((?P<only>[a-z_]+)=\)",
        rf"(?<![\w.-])(?P<name>{names})=(?P<value>{_VALUE})?",
    )
    return re.sub("|".join(parts), lambda found: _written(found, options), message)


def _written(found: re.Match[str], options: dict[str | None, click.Option]) -> str:
    name, value, only = found["name"], found["value"], found["only"]
    if only is not None:
        return f" ({_flag(options[only])})" if only in options else ""
    if name is None:
        return found[0]
    option = options[name]
    if value == "False" and option.secondary_opts:
        return option.secondary_opts[0]
    if value in (None, "True", "False"):
        return _flag(option)
    return f"{_flag(option)} {value.strip(chr(39) + chr(34))}"


def _flag(option: click.Option) -> str:
    return next((each for each in option.opts if each.startswith("--")), option.opts[0])


def advise_when_interrupted(advice: str | Callable[[], str]) -> None:
    """Sets what the running command says beside `interrupted`, when Ctrl-C ends it: text, or what says it then."""
    click.get_current_context().meta[_ADVICE] = advice


def interruption_advice(ctx: click.Context) -> str:
    """The advice that was set, after a separator; empty by default."""
    advice = ctx.meta.get(_ADVICE)
    if callable(advice):
        advice = advice()
    return f"; {advice}" if advice else ""


def remember_words(ctx: click.Context, words: list[str]) -> None:
    """Keeps the arguments of a command as they were given."""
    ctx.meta[_WORDS] = list(words)


def given_words() -> list[str]:
    """The words of the running command as they were given, from the name of the subcommand on."""
    words: list[str] = click.get_current_context().meta[_WORDS]
    return words


@contextmanager
def without_warning(pattern: str) -> Iterator[None]:
    """Leaves out a warning of Python that the command has said already, by the start of its text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", pattern)
        yield
