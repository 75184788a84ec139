import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from blockswap_models.searching.strategies import STRATEGIES

FILES = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
# The others are modules that scripts share.
SCRIPTS = [file for file in FILES if '__name__ == "__main__"' in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_smoke(script, capsys, monkeypatch):
    if script.stem == "table4":
        pytest.importorskip("pycocotools", reason='needs pip install "blockswap_models[detection]"')
    # In this process, which has torch loaded already.
    monkeypatch.setattr(sys, "argv", [str(script), "--smoke"])
    status = None
    # One of them adds a strategy, which is for it alone.
    with torch.random.fork_rng(devices=[]), mock.patch.dict(STRATEGIES):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    out, err = capsys.readouterr()
    assert not status, err
    assert out
