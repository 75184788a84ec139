"""Runs a script that knows timm only, such as timm's own `train.py`, with the zoo registered.

    python -m blockswap_models.run validate.py --model blockswap_wrn40_2 …

This module needs the standard library only.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Runs a script in this process, as `python SCRIPT` does.

    Args:
        words: The script and its own words, by default those of the process.

    Returns:
        2 where there is no such script; else 0, unless the script exits by itself.
    """
    script, *arguments = (sys.argv[1:] if words is None else list(words)) or [""]
    if not Path(script).is_file():
        told = f"no script {script!r}" if script else "no script"
        print(f"blockswap_models.run: {told}; use python -m blockswap_models.run SCRIPT …", file=sys.stderr)
        return 2
    # The package has been imported to find this module, and registers the zoo when the script imports timm.
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
