"""Scripts that know timm only, with networks of the zoo: `python -m blockswap_models.run SCRIPT`."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blockswap_models import count
from blockswap_models.run import main

SCRIPT = """import sys
assert "blockswap_models.zoo.blockswap" not in sys.modules
import timm
model = timm.create_model(sys.argv[1], num_classes=3)
print(__name__, sys.argv[1:], sum(each.numel() for each in model.parameters()), flush=True)
from beside import number
sys.exit(number)
"""


def launch(*words, **options):
    words = [sys.executable, "-m", "blockswap_models.run", *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, **options)


def test_a_script_of_timm_finds_the_zoo(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("number = 7")
    done = launch(tmp_path / "script.py", "blockswap_wrn16_1", "--epochs", "2")
    import timm

    params = count(timm.create_model("blockswap_wrn16_1", num_classes=3, device="meta")).params
    assert done.stdout == f"__main__ ['blockswap_wrn16_1', '--epochs', '2'] {params}\n", done.stderr
    assert done.returncode == 7


def test_a_script_that_is_not_there(capsys):
    assert main(["nowhere.py"]) == 2
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "blockswap_models.run: no script 'nowhere.py'; use python -m blockswap_models.run SCRIPT …\n"
        "blockswap_models.run: no script; use python -m blockswap_models.run SCRIPT …\n"
    )


@pytest.fixture
def scripts():
    """The folder of timm's scripts, which are in its repository and in no package of timm."""
    folder = os.environ.get("TIMM_SCRIPTS")
    if folder is None:
        pytest.skip("TIMM_SCRIPTS does not name a checkout of timm, whose packages come without its scripts")
    return Path(folder)


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    return tmp_path / "photos"


NETWORK = ["--model", "blockswap_wrn16_1", "--num-classes", "2", "--device", "cpu"]


def test_validate(scripts, photos, tmp_path):
    # Without a checkpoint it takes pretrained weights, so a network that has some.
    network = ["--model", "blockswap_wrn40_2_404k", "--device", "cpu"]
    few = ["--data-dir", photos, "--split", "validation", "--batch-size", "4", "--workers", "0"]
    done = launch(scripts / "validate.py", *network, *few, "--results-file", tmp_path / "results.csv")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert result["model"] == "blockswap_wrn40_2_404k"
    assert result["top1"] + result["top1_err"] == pytest.approx(100)


def test_benchmark(scripts, tmp_path):
    few = ["--bench", "inference", "--batch-size", "2", "--num-bench-iter", "2", "--num-warm-iter", "1"]
    done = launch(scripts / "benchmark.py", *NETWORK, *few, "--results-file", tmp_path / "results.csv")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout[done.stdout.index("{") :])["infer_img_size"] == 32


def test_train(scripts, photos, tmp_path):
    few = ["--data-dir", photos, "--val-split", "validation", "--batch-size", "4", "--epochs", "1", "--workers", "0"]
    out = ["--output", tmp_path / "out", "--experiment", "run", "--warmup-epochs", "0", "--cooldown-epochs", "0"]
    done = launch(scripts / "train.py", *NETWORK, *few, *out)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "run" / "summary.csv") as file:
        assert len(list(csv.DictReader(file))) == 1
