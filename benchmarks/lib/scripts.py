"""How a script runs: with its options, or those of --smoke; what is wrong with them is said in one line."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models import is_model_pretrained

__all__ = ["require_model", "run_script"]


def run_script(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], Any], **smoke: Any) -> None:
    """Runs a script with its options, those of --smoke in a folder that is removed; says in one line what is wrong."""
    options = parser.parse_args()
    resumes = hasattr(options, "out")
    try:
        if options.smoke:
            torch.set_num_threads(1)
            vars(options).update(train=True, **smoke)
            with tempfile.TemporaryDirectory() as options.out:
                run(options)
        else:
            run(options)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted{'; the same command resumes' * resumes}\n")


def require_model(name: str, weights: bool = False, option: str = "--name") -> None:
    """Refuses the name of no network of timm, or of one without weights where it needs them, with a ValueError."""
    entry, _, tag = name.partition(".")
    if not timm.is_model(entry):
        raise ValueError(f"no network '{name}'; use one of timm ({option})")
    if (weights or tag) and not is_model_pretrained(name):
        raise ValueError(f"no weights of '{name}'; use a network and a tag that have some ({option})")
