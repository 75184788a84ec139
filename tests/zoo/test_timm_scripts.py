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
    missing = [name for name in ("train.py", "validate.py", "benchmark.py") if not Path(folder, name).is_file()]
    if missing:
        pytest.skip(f"{folder}, which TIMM_SCRIPTS names, is no checkout of timm: {', '.join(missing)} not there")
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


def report(done):
    """What a script prints for other programs, at its end."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("--result\n")[2])


def test_train_and_validate(scripts, photos, tmp_path):
    few = ["--data-dir", photos, "--batch-size", "4", "--workers", "0"]
    once = ["--epochs", "1", "--warmup-epochs", "0", "--cooldown-epochs", "0"]
    out = ["--output", tmp_path / "out", "--experiment", "run"]
    (epoch,) = report(launch(scripts / "train.py", *NETWORK, *few, *once, *out))
    with open(tmp_path / "out" / "run" / "summary.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["eval_top1"]) == epoch["validation"]["top1"]
    # What was trained by the one script is measured by the other: the same error of the same images.
    best = tmp_path / "out" / "run" / "model_best.pth.tar"
    result = report(launch(scripts / "validate.py", *NETWORK, *few, "--checkpoint", best))
    assert result["top1"] == pytest.approx(epoch["validation"]["top1"])
    assert result["param_count"] == 0.17


def test_validate_with_weights_of_the_zoo(scripts, photos):
    network = ["--model", "blockswap_wrn40_2_404k", "--pretrained", "--device", "cpu"]
    few = ["--data-dir", photos, "--split", "validation", "--batch-size", "4", "--workers", "0"]
    result = report(launch(scripts / "validate.py", *network, *few))
    assert result["model"] == "blockswap_wrn40_2_404k"
    assert result["top1"] + result["top1_err"] == pytest.approx(100)


def test_benchmark(scripts):
    # It divides by a fifth of the iterations.
    few = ["--bench", "inference", "--batch-size", "2", "--num-bench-iter", "5", "--num-warm-iter", "1"]
    genome = ["--model-kwargs", "genome=2xG4/S,B2/2xS"]
    result = report(launch(scripts / "benchmark.py", *NETWORK, *genome, *few))
    import timm

    network = timm.create_model("blockswap_wrn16_1", num_classes=2, genome="2xG4/S,B2/2xS", device="meta")
    assert result["infer_img_size"] == 32
    assert result["param_count"] == round(count(network).params / 1e6, 2)
