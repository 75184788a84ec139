import multiprocessing
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from blockswap_models.data.folders import DataError
from blockswap_models.data.shared_memory import collate_shared, memory_told
from blockswap_models.prediction import predict
from blockswap_models.training.evaluate import evaluate, evaluation_loader
from blockswap_models.training.loaders import training_loader
from blockswap_models.training.recipes import RECIPES

ADVICE = r"ran out of shared memory.*; use fewer \(workers=\), or 0 for none, or give .* more, as 'docker run --shm"


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / split / name / "1.png")
    return tmp_path


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="readers must be forks of this")
def test_full_shared_memory_is_an_error_at_once(folder, monkeypatch):
    def full(tensor):
        if get_worker_info() is not None:
            raise RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)")
        return tensor

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    recipe = replace(RECIPES["imagenet"], batch_size=2)
    testing = evaluation_loader(model, str(folder), batch_size=2, workers=1)
    training = training_loader(model, str(folder), None, recipe, workers=1)
    for loader in (testing, training):
        loader.loader.loader.multiprocessing_context = "fork"
    with pytest.raises(DataError, match=ADVICE):
        evaluate(model, testing)
    with pytest.raises(DataError, match=ADVICE):
        next(iter(training))


def test_full_shared_memory_ends_a_prediction(folder, monkeypatch):
    def full(_):
        raise RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    assert len(predict(model, folder / "val")) == 2
    # As in a process that reads images.
    monkeypatch.setattr("blockswap_models.data.shared_memory.get_worker_info", lambda: "a reader")
    with pytest.raises(DataError, match=ADVICE):
        predict(model, folder / "val")


def test_full_shared_memory_is_an_error_before_there_are_processes(folder, monkeypatch):
    def full(_):
        raise RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    with pytest.raises(DataError, match=ADVICE):
        evaluation_loader(model, str(folder), batch_size=2, workers=1)
    # The process that does all by itself shares nothing.
    assert evaluate(model, evaluation_loader(model, str(folder), batch_size=2, workers=0)).images == 2


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)",
    ],
)
def test_what_torch_says_of_full_memory_is_known(said):
    def loader():
        yield 1
        raise RuntimeError(said)

    batches = memory_told(loader())
    assert next(batches) == 1
    with pytest.raises(DataError, match=ADVICE):
        next(batches)


def test_other_errors_stay():
    def loader():
        yield from ()
        raise RuntimeError("No space left on device, where a dataset is unpacked")

    with pytest.raises(RuntimeError, match="where a dataset is unpacked"):
        next(memory_told(loader()))


def test_minibatches_are_those_of_timm():
    samples = [(torch.full((3, 2, 2), value, dtype=torch.uint8).numpy(), value) for value in (5, 7)]
    images, labels = collate_shared(samples)
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([5, 7], [5, 7])
    assert not images.is_shared()
