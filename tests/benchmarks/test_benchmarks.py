import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
# The others are modules that scripts share.
SCRIPTS = [file for file in FILES if '__name__ == "__main__"' in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_smoke(script):
    if script.stem == "table4":
        pytest.importorskip("pycocotools", reason='needs pip install "blockswap_models[detection]"')
    done = subprocess.run([sys.executable, str(script), "--smoke"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout
