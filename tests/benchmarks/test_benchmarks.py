import importlib
import json
import re
import runpy
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import timm
import torch
from registered import forget_entry

from benchmarks.lib.report import mean_and_deviation
from benchmarks.search import strategies
from benchmarks.search.sureness import over_top
from blockswap_models import Budget
from blockswap_models.searching.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
# The others are modules that scripts share.
SCRIPTS = [file for file in FILES if '__name__ == "__main__"' in file.read_text(encoding="utf-8")]
README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "benchmarks" / "results").iterdir())


def module_of(script: Path) -> str:
    return ".".join(script.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_smoke(script, capsys, monkeypatch):
    if script.stem == "table4":
        pytest.importorskip("pycocotools", reason='needs pip install "blockswap_models[detection]"')
    # In this process, which has torch loaded already.
    monkeypatch.setattr(sys, "argv", [str(script), "--smoke"])
    # As `python -m` does where it was not imported before.
    monkeypatch.delitem(sys.modules, module_of(script), raising=False)
    status = None
    before = timm.list_models()
    # One of them adds a strategy, and one a network, which is for it alone.
    with torch.random.fork_rng(devices=[]), mock.patch.dict(STRATEGIES):
        try:
            runpy.run_module(module_of(script), run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code
    for name in {*timm.list_models()}.difference(before):
        forget_entry(name)
    out, err = capsys.readouterr()
    assert not status, err
    assert out


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "search.nas_bench_macro --table x --out y --networks 0",
            "--networks, --draws and --batch-size are at least 1",
        ),
        ("search.nas_bench_macro --table nowhere --out y", "no file 'nowhere'; use the nas_bench_macro.json of "),
        ("search.nas_bench_macro", "use --table nas_bench_macro.json and --out macro.jsonl"),
        ("search.strategies --samples 0", "--samples, --seeds and --batch-size are at least 1"),
        ("search.sureness --params foo", "'foo' is no amount; use "),
        ("search.trained_genomes --score-batch-size 0", "--score-batch-size is at least 1"),
        ("speed.latency --networks nonesuch", "no network 'nonesuch'; use one of timm, or torchvision/NAME"),
        ("speed.latency_search --network foo", "unknown network 'foo'; use "),
        ("speed.latency_search --beside foo", "no network 'blockswap_foo'; use "),
        ("speed.latency_table --params foo", "'foo' is no amount; use "),
        ("speed.roofline --device nowhere", "unknown device 'nowhere'; use cpu, cuda or cuda:1"),
        ("speed.train_speed --device nowhere", "unknown device 'nowhere'; use cpu, cuda or cuda:1"),
        ("speed.train_speed --names nonesuch", "no network 'nonesuch'; use one of timm (--names, --teacher)"),
        ("speed.train_speed --steps 0", "--steps, --batch-size and --threads are at least 1"),
        ("speed.imagenet_speed --data x --device nowhere", "unknown device 'nowhere'; use cpu, cuda or cuda:1"),
        ("weights.finetune", "no images; use --data FOLDER or --cifar FOLDER"),
        ("weights.finetune --name nonesuch", "no network 'nonesuch'; use one of timm (--name)"),
        ("weights.finetune --name blockswap_wrn16_1.short", "no weights of 'blockswap_wrn16_1.short'; use "),
        ("weights.finetune --data nowhere", "no folder nowhere/train; use "),
        ("weights.linear_probe --name nonesuch", "no network 'nonesuch'; use one of timm (--name)"),
        ("weights.linear_probe --name blockswap_resnet18", "no weights of 'blockswap_resnet18'; use "),
        ("weights.linear_probe --data-dir nowhere", "no whole CIFAR10 in 'nowhere'; use "),
        ("weights.recipes", "training needs the folder of CIFAR-10; use --data-dir"),
        ("weights.recipes --data-dir x --name nonesuch", "no network 'nonesuch'; use one of timm (--name)"),
        ("weights.recipes --data-dir nowhere", "no whole CIFAR10 in 'nowhere'; use "),
    ],
)
def test_mistakes_are_told_in_one_line(command, said, capsys, monkeypatch, tmp_path):
    module, *arguments = command.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"benchmarks.{module}").main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"script.py: {said}")
    # Nothing is left by what did not begin.
    assert not list(tmp_path.iterdir())


def test_scripts_are_found_as_modules_from_the_checkout():
    # In a process without the paths that tests have; found, not run, since all load torch.
    code = "import sys, importlib.util as u; [print(u.find_spec(each).origin) for each in sys.argv[1:]]"
    names = map(module_of, SCRIPTS)
    done = subprocess.run([sys.executable, "-E", "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == list(map(str, SCRIPTS)), done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_and_the_readme_name_its_command(script):
    command = re.compile(rf"(python|torchrun .*) -m {re.escape(module_of(script))}\b")
    assert command.search(script.read_text(encoding="utf-8").partition('"""\n\nfrom')[0])
    name = script.relative_to(ROOT / "benchmarks").as_posix()
    assert f"| [`{name}`]({name}) |" in README
    assert f"python -m {module_of(script)}" in README


def test_the_readme_names_no_command_that_is_not_there():
    assert set(re.findall(r"-m (benchmarks[\w.]+)", README)) == {module_of(script) for script in SCRIPTS}


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / "benchmarks" / link).exists()] == []
    # And every result is linked.
    assert {f"results/{path.name}" for path in RESULTS} <= set(links)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_result_says_where_it_comes_from(path):
    head: dict[str, list[str]] = {}
    for line in takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines()):
        title, _, text = line.removeprefix("# ").partition(": ")
        head.setdefault(title, []).append(text)
    assert list(head)[:3] == ["command", "hardware", "versions"]
    modules = {module_of(script) for script in SCRIPTS}
    assert {command.split()[2] for command in head["command"]} <= modules
    assert head["hardware"][0]
    assert re.search(r"torch \d.*timm \d", head["versions"][0])


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_store_no_outputs(path):
    # They would be those of an older package or of another machine.
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


def test_searches_are_compared_with_ties_sharing_a_rank():
    def result(*scores):
        return SimpleNamespace(candidates=[SimpleNamespace(genome=i, score=score) for i, score in enumerate(scores)])

    # Ranks 1, 2, 3 and 4 against 1, 2.5, 2.5 and 4, whichever of the equal ones comes first.
    for other in ((2.0, 1.0, 1.0, 0.0), (0.0, 1.0, 1.0, 2.0)):
        sign = 1 if other[0] else -1
        assert over_top(result(4.0, 3.0, 2.0, 1.0), result(*other), 4) == pytest.approx(sign * 0.9**0.5)


def test_the_last_round_of_a_search_may_be_a_short_one(monkeypatch):
    scores = {"a": 1.0, "b": 2.0, "c": 9.0}

    def search(*_, score, progress, **__):
        for genomes in ("ab", "c"):
            draws = [SimpleNamespace(genome=genome) for genome in genomes]
            for draw in progress(draws, len(scores), 0, "scores"):
                score(draw, None, None)
        return SimpleNamespace(candidates=[SimpleNamespace(genome="c")])

    monkeypatch.setattr(strategies, "search", search)
    monkeypatch.setattr(strategies, "fisher_potential", lambda model, *_: scores[model.genome])
    monkeypatch.setattr(strategies, "again", lambda *_: 1.0)
    options = SimpleNamespace(samples=3, batch_size=1, refining=range(1), judging=range(1))
    results = strategies.found(None, Budget(params=1), 0, options)
    assert [each["last round"] for each in results.values()] == pytest.approx([9] * len(results))


def test_a_strategy_takes_the_time_of_scores_that_another_has_computed(monkeypatch):
    clock = [0.0]

    def fisher_potential(*_):
        clock[0] += 10
        return 1.0

    def search(*_, score, progress, **__):
        for draw in progress([SimpleNamespace(genome="a")], 1, 0, "scores"):
            score(draw, None, None)
        clock[0] += 1
        return SimpleNamespace(candidates=[SimpleNamespace(genome="a")])

    monkeypatch.setattr(strategies.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(strategies, "search", search)
    monkeypatch.setattr(strategies, "fisher_potential", fisher_potential)
    monkeypatch.setattr(strategies, "again", lambda *_: 1.0)
    options = SimpleNamespace(samples=1, batch_size=1, refining=range(1), judging=range(1))
    with mock.patch("builtins.print") as said:
        strategies.found(None, Budget(params=1), 0, options)
    lines = [call.args[0] for call in said.call_args_list]
    assert len(lines) > 1
    assert [line.split()[-1] for line in lines] == ["11"] * len(lines)


def test_a_mean_of_one_value_has_no_deviation():
    assert mean_and_deviation([4.0]) == "4.00"
    assert mean_and_deviation([4.0, 5.0]) == "4.50 ± 0.71"
