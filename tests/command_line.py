"""Runs the command as click's test runner does."""

from click.testing import CliRunner

from blockswap_models.cli.main import blockswap


def run(*arguments: object) -> tuple[int, str, str]:
    """Runs `blockswap` with arguments; returns its exit code, what it printed, and what it printed to stderr."""
    result = CliRunner().invoke(blockswap, [str(each) for each in arguments], prog_name="blockswap")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
