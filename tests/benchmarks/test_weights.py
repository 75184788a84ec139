"""What benchmarks/weights/finetune.py and recipes.py take for a finished run, and which images they choose."""

from argparse import Namespace

import pytest
import torch

from benchmarks.lib.images import noise_images
from benchmarks.weights import finetune, recipes, zoo_weights
from blockswap_models.training.recipes import Recipe
from blockswap_models.training.run_folder import TrainingError

TINY = Recipe(epochs=1, batch_size=4, lr=0.01)
SETTINGS = {"cifar": None, "data": "images", "classes": 10, "images": 4, "test_images": 4, "size": 32, "seed": 0}


def fit_finetune(folder, **changed):
    options = Namespace(**{"name": "blockswap_wrn16_1", **SETTINGS, **changed})
    return finetune.fit(options, False, TINY, noise_images(4), folder)


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
