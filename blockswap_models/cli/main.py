"""The command `blockswap`: the zoo, searches, and training, sharing and exporting of networks."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from .. import __version__
from .errors import as_options, interruption_advice, remember_words
from .streams import make_writable

__all__ = ["blockswap", "main"]

# The module and the function of each subcommand, which is loaded when it is used.
_SUBCOMMANDS = {
    "make": "make:make_",
    "list": "networks:list_",
    "count": "networks:count_",
    "space": "search:space_",
    "search": "search:search_",
    "rank": "rank:rank_",
    "show": "records:show",
    "plot": "records:plot",
    "profile": "latency:profile_",
    "library": "library:library_",
    "train": "train:train_",
    "evaluate": "evaluate:evaluate_",
    "predict": "predict:predict_",
    "pack": "share:pack",
    "push": "share:push",
    "export": "export:export_",
}


class _Blockswap(click.Group):
    """Loads its subcommands lazily, and answers a mistake in one line with exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _SUBCOMMANDS:
            return None
        module, _, function = _SUBCOMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _SUBCOMMANDS and not args[0].startswith("-"):
            raise click.NoSuchCommand(args[0], possibilities=_SUBCOMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        remember_words(ctx, args)
        try:
            try:
                return super().parse_args(ctx, args)
            finally:
                # Help and version are printed as the arguments are read.
                _flush()
        except click.UsageError as error:
            _print_usage_error(error)
        except BrokenPipeError:
            _drop_output()
            ctx.exit(0)
        except OSError as error:
            _drop_output()
            _print_error(ctx.command_path, str(error))
        ctx.exit(2)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                result = super().invoke(ctx)
            except click.exceptions.Exit:
                # Such as after the help of a subcommand.
                _flush()
                raise
            # What is buffered is written here: when Python ends, an error could not be answered any more.
            _flush()
            return result
        except click.UsageError as error:
            _print_usage_error(error)
            ctx.exit(2)
        except BrokenPipeError:
            # A reader that went away, as in `blockswap list | head`, is no error.
            _drop_output()
            ctx.exit(0)
        except (click.exceptions.Exit, click.Abort):
            raise
        except (ValueError, OSError, RuntimeError) as error:
            try:
                _flush()
            except OSError:
                _drop_output()
            message, code = (str(error).splitlines() or [type(error).__name__])[0], 2
        except KeyboardInterrupt:
            message, code = f"interrupted{interruption_advice(ctx)}", 130
        # The frames of the exception are gone here, so that the progress bars in them have ended their lines.
        command = ctx.invoked_subcommand
        assert command is not None
        _print_error(f"{ctx.command_path} {command}", as_options(message, self.get_command(ctx, command)))
        ctx.exit(code)


def _flush() -> None:
    """Writes what standard output still holds; a program may have none, as a service."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_output() -> None:
    """Throws away what standard output still holds, which cannot be written."""
    # A stream in memory has no number of a file.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_usage_error(error: click.UsageError) -> None:
    """Prints what is wrong with the arguments of a command, after its usage unless a single value is wrong."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    message = error.format_message()
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        message = error.message
        if isinstance(error.param, click.Option):
            message = f"{message.rstrip('.')} ({error.param.opts[0]})"
    elif error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
    _print_error(error.ctx.command_path if error.ctx is not None else "blockswap", message)


def _print_error(command: str, message: str) -> None:
    click.echo(f"{command}: {message}", err=True)


@click.group(
    cls=_Blockswap,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
    epilog="Amounts: 400k, 3m, 1.2g, 400,000, a ceiling ..400k, a window 300k..400k, a floor 300k.., a share of "
    "the original 20% or ..50%; latencies: 4ms, 800us, ..4ms; sizes: 500kB, 1.2MB. An amount "
    "alone means ± --tolerance (2.5 %).",
)
@click.version_option(__version__, message="blockswap %(version)s")
def blockswap() -> None:
    """Residual networks with mixed block types for a given budget."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Its arguments; by default those of the process.

    Returns:
        0, 2 for a mistake in the input, or 130 when interrupted.
    """
    make_writable()
    return blockswap.main(arguments, prog_name="blockswap", standalone_mode=False) or 0


if __name__ == "__main__":
    sys.exit(main())
