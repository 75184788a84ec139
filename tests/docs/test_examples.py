"""Runs the examples of the README, the guides and the notebooks, and compares what they print with what is said there.

The blocks of a page run in order, in one namespace and one empty folder. A block of `text` is what the block before it
prints; in it `…` stands for anything. A comment in the Markdown skips what cannot run here, and says why:
`<!--- skip: next "needs CIFAR-10" -->`.
"""

import contextlib
import inspect
import io
import json
import pkgutil
import re
import shlex
from pathlib import Path
from types import ModuleType
from unittest import SkipTest

import matplotlib as mpl
import pytest
from command_line import run
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from test_rooms import MAY_IMPORT

import blockswap_models

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LANGUAGES = {"python", "sh", "text", "bibtex"}

pytestmark = pytest.mark.examples


def run_python(example: Example) -> None:
    """Runs a block of Python."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        PythonEvaluator()(example)
    example.namespace["printed"] = printed.getvalue()


def run_shell(example: Example) -> None:
    """Runs the commands of a block, each of them `blockswap`."""
    printed = ""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        command, *arguments = shlex.split(line, comments=True)
        assert command == "blockswap", f"skip this block, or use blockswap only: {line}"
        status, out, errors = run(*arguments)
        assert status == 0, f"{line}\n{errors}"
        printed += out
    example.namespace["printed"] = printed


def compare_text(example: Example) -> None:
    """Compares a block of text with what the block before it printed."""
    expected, printed = normal(example.parsed), normal(example.namespace.pop("printed"))
    pattern = ".*".join(map(re.escape, expected.split("…")))
    assert re.fullmatch(pattern, printed, re.DOTALL), f"line {example.line} has\n{expected}\nbut it prints\n{printed}"


def normal(text: str) -> str:
    """A text without the spaces at the ends of its lines."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def parse(path: Path) -> Document:
    """Finds the examples of a page."""
    parsers = [
        CodeBlockParser("python", run_python),
        CodeBlockParser("sh", run_shell),
        CodeBlockParser("text", compare_text),
        SkipParser(),
    ]
    return Document.parse(str(path), *parsers)


def run_page(path: Path) -> int:
    """Runs the examples of a page; returns how many blocks were not skipped."""
    number = 0
    for example in parse(path):
        is_skip = isinstance(example.parsed, tuple)
        if is_skip:
            action, reason = example.parsed
            assert action == "end" or reason, f"line {example.line}: say why it is skipped"
        try:
            example.evaluate()
        except SkipTest:
            continue
        number += not is_skip
    return number


@pytest.fixture(autouse=True)
def _small_machine(tmp_path, monkeypatch):
    # One process and no window, in a folder of its own.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    mpl.use("Agg")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page(path):
    opened = re.findall(r"^ *```+([a-z]*)", path.read_text(encoding="utf-8"), re.MULTILINE)[::2]
    assert set(opened) <= LANGUAGES
    ran = run_page(path)
    assert ran or not {"python", "sh"} & set(opened)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(each for each in cells if each["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number + 1}", "exec"), namespace)


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", "but it prints"),
        ("```python\nraise KeyError\n```\n", "KeyError"),
        ("```sh\nblockswap count wrn40_2 6xS/6xS/6xZ\n```\n", "unknown block type"),
        ("```sh\nrm -r data\n```\n", "skip this block"),
        ('<!--- skip: next "" -->\n\n```sh\nrm -r data\n```\n', "skip this block"),
        ("<!--- skip: next -->\n\n```sh\nrm -r data\n```\n", "say why"),
    ],
)
def test_faults_of_examples_are_found(block, fault, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(block, encoding="utf-8")
    with pytest.raises((AssertionError, KeyError)) as caught:
        run_page(page)
    assert fault in repr(caught.value)


def test_good_and_skipped_examples_pass(tmp_path):
    page = tmp_path / "page.md"
    good = "```python\nprint('1.23 s of 4')\n```\n\n```text\n… s of 4\n```\n"
    page.write_text(good + '\n<!--- skip: next "needs data" -->\n\n```sh\nrm -r data\n```\n', encoding="utf-8")
    assert run_page(page) == 2


def test_the_tree_of_the_rooms_is_that_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folder, named = ROOT / "blockswap_models", set()
    for indent, name in re.findall(r"^(  +)([\w.]+(?:/|\.py)) ", text, re.MULTILINE):
        path = folder / name if len(indent) == 4 else ROOT / "blockswap_models" / name
        assert path.exists(), name
        if len(indent) == 2:
            named.add(name.removesuffix("/").removesuffix(".py"))
            folder = path
    assert set(MAY_IMPORT) - {"core", "__main__"} <= named


REFERENCE = [
    name
    for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]


def test_the_reference_has_every_public_name():
    there = [pkgutil.resolve_name(name) for name in REFERENCE]
    names = [name for name in blockswap_models.__all__ if not any(getattr(blockswap_models, name) is e for e in there)]
    assert names == []


@pytest.mark.parametrize("name", REFERENCE)
def test_docstrings_name_what_a_caller_gives_and_gets(name):
    thing = pkgutil.resolve_name(name)
    if isinstance(thing, ModuleType | tuple) or (isinstance(thing, type) and issubclass(thing, Exception)):
        return
    text = inspect.getdoc(thing)
    sections = set(re.findall(r"^(Args|Attributes|Returns|Raises|Example):$", text, re.MULTILINE))
    if isinstance(thing, type):
        assert sections & {"Args", "Attributes"}
    else:
        signature = inspect.signature(thing)
        stars = {inspect.Parameter.VAR_KEYWORD: "**"}
        wanted = [stars.get(each.kind, "") + each.name for each in signature.parameters.values()]
        assert re.findall(r"^    ([*\w]+): ", text.partition("\nReturns:")[0].partition("\nRaises:")[0], re.M) == wanted
        assert "Returns" in sections or signature.return_annotation in ("None", None)
