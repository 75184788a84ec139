"""The order of the rooms of the package: each imports only from those that it may."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blockswap_models

PACKAGE = Path(blockswap_models.__file__).parent
# What each room may import. A folder is a room, and so are these modules at the top: ten make up the core.
CORE = ("genome", "layout", "budget", "counts", "machine", "messages", "files", "errors", "progress", "strips")
MAY_IMPORT = {
    "core": set(),
    "nets": {"core"},
    "data": {"core", "nets"},
    "zoo": {"core", "nets", "data"},
    "searching": {"core", "nets", "data", "zoo"},
    "training": {"core", "nets", "data", "zoo"},
    "detection": {"core", "nets", "data", "zoo", "searching", "training"},
    "export": {"core", "nets", "data", "zoo", "searching", "training"},
    "prediction": {"core", "nets", "data", "zoo", "searching", "training"},
    "making": {"core", "nets", "data", "zoo", "searching", "training", "export"},
    "cli": {"core", "nets", "data", "zoo", "searching", "training", "detection", "export", "prediction", "making"},
    "__main__": {"cli"},
    "run": set(),
}
# These need the standard library and click only, so that help, mistakes and records are answered at once.
LIGHT = (
    *CORE,
    *("zoo.genomes", "zoo.cards", "zoo.registration"),
    *(
        "searching.latency",
        "searching.candidates",
        "searching.record",
        "searching.result",
        "searching.score_bar",
        "training.recipes",
    ),
    *("cli.main", "cli.search", "cli.records", "cli.latency", "cli.train", "cli.evaluate", "cli.share", "cli.export"),
    *("cli.predict", "cli.make", "cli.rank"),
    "searching.workers",
)
# `__init__` says which module has each public name, and loads those that need torch when they are asked for.
FILES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(name: str) -> str:
    """The room of a module, by its dotted name within the package."""
    first = name.partition(".")[0]
    return "core" if first in CORE else first


def imported_rooms(source: str, package: str = "") -> set[str]:
    """The rooms that a module in a room (`package`) imports, wherever in it: also for types, also in functions."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = [*filter(None, ["blockswap_models", *package.split(".")])]
            base = [*here[: len(here) + 1 - node.level]] if node.level else []
            base += [node.module] if node.module else []
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        inner = [name.partition(".")[2] for name in names if name.partition(".")[0] == "blockswap_models"]
        # Every room may know the version. Public names of the package would hide which room they come from.
        rooms |= {room_of(name) for name in inner if name != "__version__"}
    return rooms


def test_every_module_has_a_room() -> None:
    assert {room_of(".".join(path.with_suffix("").parts)) for path in FILES} == set(MAY_IMPORT)


def test_imports_are_seen_however_they_are_written() -> None:
    source = "from .. import genome, __version__\nimport blockswap_models.nets.cost\nif 1:\n  from . import space"
    assert imported_rooms(source, "searching") == {"core", "nets", "searching"}
    source = (
        "def later():\n  from ..zoo.genomes import GENOMES\n  from .cifar import read_cifar\n  from .. import search"
    )
    assert imported_rooms(source, "data") == {"zoo", "data", "search"}
    source = "from .budget import Cost\nfrom blockswap_models import zoo\nimport torch.export, genome\nimport json.data"
    assert imported_rooms(source) == {"core", "zoo"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_module_imports_only_from_rooms_that_it_may(path: Path) -> None:
    package = ".".join(path.parent.parts)
    room = room_of(".".join(path.with_suffix("").parts))
    assert imported_rooms((PACKAGE / path).read_text(encoding="utf-8"), package) <= {room, *MAY_IMPORT[room]}


def test_text_and_records_need_no_torch() -> None:
    # The first that loads one of these is the one that says so.
    script = "import importlib, sys\n" + "".join(
        f"importlib.import_module('blockswap_models.{module}')\n"
        f"assert not {{'torch', 'timm', 'numpy'}} & set(sys.modules), '{module}'\n"
        for module in LIGHT
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_and_mistakes_load_little() -> None:
    script = """
import sys
from blockswap_models.cli.main import main
main(["--help"])
assert main(["count", "wrn40_2", "B3G"]) == 2
# What takes longer to import than all of the command line; importlib.abc brings importlib.resources and tempfile.
slow = {"torch", "timm", "numpy", "PIL", "tqdm", "loky", "psutil", "multiprocessing", "importlib.resources", "tempfile"}
sys.exit(", ".join(slow & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr


BENCHMARKS = sorted((Path(__file__).parent.parent / "benchmarks").rglob("*.py"))
OURS = {"blockswap_models", "benchmarks"}


def private_imports(source: str) -> list[str]:
    """The underscored names that a module imports from another one of ours."""
    return [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] in OURS)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def test_private_imports_are_seen() -> None:
    source = "from .a import _b\nfrom blockswap_models.c import d, _e\nfrom torch import _f\nfrom . import __version__"
    assert private_imports(source) == ["_b", "_e"]


@pytest.mark.parametrize("path", [*(PACKAGE / each for each in FILES), *BENCHMARKS], ids=lambda path: path.stem)
def test_no_module_imports_private_names_of_another(path: Path) -> None:
    assert private_imports(path.read_text(encoding="utf-8")) == []


def private_names(source: str) -> tuple[set[str], set[str]]:
    """The underscored attributes of a module's own classes, and those that it takes of other objects."""
    own, taken = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            own |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        elif isinstance(node, ast.Attribute):
            of_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (own if of_itself else taken).add(node.attr)
    return tuple({name for name in names if re.match("_[^_]", name)} for names in (own, taken))


def test_private_attributes_are_seen() -> None:
    source = "class A:\n    def _b(self): self._c = other._d + a.f._e + torch.__f__"
    assert private_names(source) == ({"_b", "_c"}, {"_d", "_e"})


def test_no_module_takes_private_attributes_of_another() -> None:
    names = {path: private_names((PACKAGE / path).read_text(encoding="utf-8")) for path in FILES}
    for path, (own, taken) in names.items():
        of_others = set().union(*(theirs for other, (theirs, _) in names.items() if other != path))
        # What named tuples have, under names that a class of ours may have too.
        assert not (taken - own - {"_asdict", "_fields", "_replace"}) & of_others, path


def options_named(source: str) -> list[str]:
    """The texts of a module, but for its docstrings, that name an option of the command line.

    A quoted command of another program, such as 'docker run --rm', has options of its own.
    """
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    texts = [each for each in ast.walk(tree) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    ours = re.compile(r"(?<![\w-])--[a-z]")
    return [
        each.value
        for each in texts
        if id(each) not in docstrings and ours.search(re.sub(r"'(?!blockswap )[a-z]+ [^']*'", "", each.value))
    ]


def test_options_are_seen() -> None:
    assert options_named('"""--doc"""\nf"{a}; use --resume {b}"\n"a -- b"\n"use resume=True"') == ["; use --resume "]
    source = """f"as 'docker run --rm' does"; "'blockswap train --out'"; "use --rm"; "'use', '--rm' or" """
    assert options_named(source) == ["'blockswap train --out'", "use --rm", "'use', '--rm' or"]


# What is missing from the zoo is trained by a command, which its message quotes.
QUOTES_A_COMMAND = Path("zoo/cards.py")
OF_PYTHON = [each for each in FILES if each.parts[0] != "cli" and each != QUOTES_A_COMMAND]


@pytest.mark.parametrize(
    "path", [each for each in FILES if each.parts[0] != "cli" and each != QUOTES_A_COMMAND], ids=str
)
def test_messages_of_python_speak_of_its_arguments(path: Path) -> None:
    assert options_named((PACKAGE / path).read_text(encoding="utf-8")) == []
