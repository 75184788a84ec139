"""The order of the modules: each imports only from those above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import blockswap_models

PACKAGE = Path(blockswap_models.__file__).parent
ORDER = [
    "genome",
    "layouts",
    "entries",
    "latency",
    "budgets",
    "counting",
    "blocks",
    "networks",
    "cards",
    "zoo",
    "own",
    "distill",
    "students",
    "cost",
    "space",
    "profiling",
    "coco",
    "data",
    "cifar",
    "evaluation",
    "recipes",
    "training_data",
    "initial_weights",
    "checkpoints",
    "processes",
    "export",
    "train",
    "detection",
    "kernels",
    "score",
    "rankings",
    "pool",
    "candidates",
    "record",
    "jobs",
    "workers",
    "strategies",
    "searching",
    "plot",
    "options",
    "commands",
    "reports",
    "evaluate_command",
    "train_command",
    "share_command",
    "export_command",
    "cli",
]
EXEMPT = {"__init__", "__main__"}
MOST_LINES = 420


def imported_modules(source: str) -> set[str]:
    """Names the modules of the package that a module imports, wherever in it: also for types, also in functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["blockswap_models" if node.level else "", node.module or ""]))
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    inner = {name.split(".")[1] for name in names if name.startswith("blockswap_models.")}
    return {name for name in inner if (PACKAGE / f"{name}.py").exists()}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, *EXEMPT}


def test_imports_are_seen_however_they_are_written() -> None:
    source = "from . import genome, __version__\nimport blockswap_models.cost\nif 1:\n  from .space import SearchSpace"
    assert imported_modules(source) == {"genome", "cost", "space"}
    assert imported_modules("from blockswap_models import zoo\nimport torch.cost, genome") == {"zoo"}


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_those_above_it(module: str) -> None:
    imported = imported_modules((PACKAGE / f"{module}.py").read_text())
    assert imported <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", [*ORDER, *sorted(EXEMPT)])
def test_a_module_is_short(module: str) -> None:
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= MOST_LINES


def test_text_and_records_need_no_torch() -> None:
    light = ("genome", "layouts", "entries", "latency", "budgets", "record", "recipes")
    modules = ", ".join(f"blockswap_models.{name}" for name in light)
    heavy = "{'torch', 'timm', 'numpy'}"
    script = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
