"""What benchmarks/weights/finetune.py, recipes.py and zoo_weights.py take for a finished run, and which images."""

import json
from argparse import Namespace

import pytest
import timm
import torch

from benchmarks.lib.images import noise_images
from benchmarks.weights import finetune, recipes, zoo_weights
from blockswap_models.training.recipes import Recipe
from blockswap_models.training.run_folder import TrainingError

TINY = Recipe(epochs=1, batch_size=4, lr=0.01)
SETTINGS = {"cifar": None, "data": "images", "classes": 10, "images": 4, "test_images": 4, "size": 32, "seed": 0}


def fit_finetune(folder, pretrained=False, **changed):
    options = Namespace(**{"name": "blockswap_wrn16_1", **SETTINGS, **changed})
    return finetune.fit(options, pretrained, TINY, noise_images(4), folder)


def fit_recipes(folder, seed=0, amp=None):
    return recipes.fit("blockswap_wrn16_1", TINY, noise_images(4), folder, seed, amp)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("script", "fit", "changes"),
    [
        (finetune, fit_finetune, {"size": 16, "images": 2, "test_images": 2, "classes": 5, "data": "x", "cifar": "x"}),
        (recipes, fit_recipes, {"seed": 1, "amp": "bfloat16"}),
    ],
    ids=["finetune", "recipes"],
)
def test_a_finished_run_is_returned_for_its_own_settings_alone(script, fit, changes, tmp_path, monkeypatch):
    with torch.random.fork_rng(devices=[]):
        summary = fit(tmp_path / "run")
    monkeypatch.setattr(script, "train", lambda *_, **__: pytest.fail("it is trained again"))
    assert fit(tmp_path / "run") == summary
    for name, value in changes.items():
        with pytest.raises(TrainingError, match=r"the run in '.*' has .*, not .*; use another --out"):
            fit(tmp_path / "run", **{name: value})


@pytest.mark.usefixtures("one_thread")
def test_a_run_from_weights_that_others_have_replaced_is_not_returned(tmp_path):
    with torch.random.fork_rng(devices=[]):
        fit_finetune(tmp_path / "run", pretrained=True)
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    tag = timm.models.get_pretrained_cfg("blockswap_wrn16_1").tag
    path.write_text(json.dumps({**summary, "weights": "at_cifar10_1"}))
    with pytest.raises(TrainingError, match=f"has weights at_cifar10_1, not {tag}; use another --out"):
        fit_finetune(tmp_path / "run", pretrained=True)


def zoo_of(folder, monkeypatch, **changed):
    defaults = {"paper": False, "smoke": False, "together": False, "gain": None, "only": ["wrn40_2"], "cifar": "x"}
    more = {"cifar_name": "torch/cifar10", "place": [], "more": [], "processes": 0}
    monkeypatch.setattr(zoo_weights, "call", lambda *_: pytest.fail("it is trained or packed"))
    return Namespace(**{**defaults, **more, "out": str(folder / "runs"), "weights": str(folder), **changed})


def finished_run(folder, epochs, seconds):
    run = folder / "runs" / "wrn40_2"
    run.mkdir(parents=True)
    summary = {"recipe": {"epochs": epochs}, "seconds": seconds, "top1_error": 50.0}
    (run / "summary.json").write_text(json.dumps(summary))


def card_of(folder, tag, seconds):
    card = {"seconds": seconds, "file": {"dtype": "float16"}, "test": {"float16": {"top1_error": 7.5}}}
    (folder / f"blockswap_wrn40_2.{tag}.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("epochs", "changed"), [(24, {"paper": True}), (200, {}), (24, {"more": ["--amp", "bfloat16", "--epochs=3"]})]
)
def test_a_run_of_another_length_is_not_packed(epochs, changed, tmp_path, monkeypatch):
    finished_run(tmp_path, epochs, 1.5)
    with pytest.raises(SystemExit, match=rf"has {epochs} epochs, not \d+; use another --out"):
        zoo_weights.run(zoo_of(tmp_path, monkeypatch, **changed))


def test_weights_of_another_run_are_refused_before_any_training(tmp_path, monkeypatch, capsys):
    card_of(tmp_path, "cifar10_24", 1.5)
    with pytest.raises(SystemExit, match=r"cifar10_24\.json.* are those of another run; use another --weights"):
        zoo_weights.run(zoo_of(tmp_path, monkeypatch))
    finished_run(tmp_path, 24, 2.5)
    with pytest.raises(SystemExit, match="are those of another run"):
        zoo_weights.run(zoo_of(tmp_path, monkeypatch))
    # Those of the run itself are packed already.
    card_of(tmp_path, "cifar10_24", 2.5)
    zoo_weights.run(zoo_of(tmp_path, monkeypatch))
    assert "7.50   paper 3.96" in capsys.readouterr().out


def test_a_student_without_its_teacher_has_none_of_its_options():
    teacher, student = zoo_weights.IMAGENET_TEACHER, "resnet34_3m"
    training = next(each for each in zoo_weights.PLAN if each.name == student)
    assert training.teacher == teacher
    alone = zoo_weights.alone(training)
    assert alone.teacher is None
    assert not {"--soft-labels", "--temperature"} & set(alone.recipe.split())
    assert "--epochs" in alone.recipe


def test_images_are_those_of_the_first_classes():
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1])
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 8, 8)
    chosen, found = finetune.choose(images, labels, 2, 2, 8)
    assert found.tolist() == [0, 0, 1, 1]
    assert chosen[:, 0, 0, 0].tolist() == [1, 3, 2, 5]
