"""What benchmarks/paper/table4.py trains, and how: the networks, the order of the images, and going on with a run."""

import json
from collections import Counter

import pytest
import timm
import torch
from small_detectors import small_heads
from torch import nn

from benchmarks.paper import detecting, table4
from benchmarks.paper.detecting import AspectBatches, Recipe, learning_rate, train, transforms
from benchmarks.paper.noise_coco import write_noise
from blockswap_models import count
from blockswap_models.detection import mask_rcnn
from blockswap_models.training.run_folder import TrainingError

TINY = Recipe(epochs=2, batch_size=1, lr=0.01)


@pytest.mark.parametrize("name", ["gn", "blockswap-3m"])
def test_networks_have_the_parameters_of_the_paper(name):
    row = table4.ROWS[name]
    params = count(timm.create_model(row.model, genome=row.genome, device="meta")).params
    assert f"{params / 1e6:.0f}M" == row.params


def test_anchors_at_800_pixels_are_torchvisions():
    with torch.device("meta"):
        model = detecting.build("blockswap_resnet18", None, 91, Recipe())
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert (model.transform.min_size, model.transform.max_size) == ((800,), 1333)
    assert any(type(each) is nn.BatchNorm2d for each in model.backbone.modules())


def test_the_learning_rate_is_torchvisions():
    steps = 7330
    assert learning_rate(Recipe(), 0, 0, steps) == pytest.approx(0.00002)
    assert learning_rate(Recipe(), 0, 500, steps) == pytest.approx(0.02 * 0.5005)
    rates = [learning_rate(Recipe(), epoch, 1000, steps) for epoch in (0, 15, 16, 21, 22, 25)]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])


@pytest.mark.parametrize(("number", "batch_size", "processes"), [(40, 4, 1), (41, 4, 2), (3, 2, 4)])
def test_minibatches_are_of_similar_shape_and_shared_out(number, batch_size, processes):
    ratios = [1.4 if image % 3 else 0.7 for image in range(number)]
    samplers = [AspectBatches(ratios, batch_size, 0, rank, processes) for rank in range(processes)]
    batches = [batch for sampler in samplers for batch in sampler]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    assert {len(batch) for batch in batches} == {batch_size}
    seen = Counter(image for batch in batches for image in batch)
    assert seen.keys() == set(range(number))
    assert seen.total() == len(samplers[0]) * batch_size * processes
    mixed = [batch for batch in batches if len({ratios[image] for image in batch}) > 1]
    assert len(mixed) <= 1 + processes
    first = list(samplers[0])
    assert first == list(samplers[0])
    samplers[0].set_epoch(1)
    assert number < 4 or first != list(samplers[0])


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_a_recipe_without_steps_is_refused(name):
    with pytest.raises(TrainingError, match="is at least 1, not 0"):
        Recipe(**{name: 0})


def test_the_figures_of_another_genome_are_not_those_of_the_row(tmp_path, capsys):
    genome = "3xG4/4xG4/6xG4/3xG4"
    summary = {"genome": genome, "bbox": {"AP": 12.0}, "segm": {"AP": 11.0}, "recipe": {"epochs": 1}}
    (tmp_path / "blockswap-3m").mkdir()
    (tmp_path / "blockswap-3m" / "summary.json").write_text(
        json.dumps({**summary, "train_images": 4, "test_images": 4})
    )
    table4.print_table(tmp_path)
    out = capsys.readouterr().out
    params = count(timm.create_model("blockswap_resnet34", genome=genome, device="meta")).params
    assert f"blockswap-3m  another genome    {params:>10,}" in out
    assert f"blockswap-3m: trained with another genome (--genome): {genome}" in out


@pytest.fixture
def coco(tmp_path):
    pytest.importorskip("pycocotools", reason='needs pip install "blockswap_models[detection]"')
    from blockswap_models.data.coco import CocoObjects

    write_noise(tmp_path)
    return [
        CocoObjects(tmp_path, "val", training=training, transforms=transforms(training)) for training in (True, False)
    ]


def fit(coco, folder, seed=0):
    torch.manual_seed(seed)
    model = mask_rcnn(
        "blockswap_wrn16_1",
        min_size=48,
        max_size=64,
        **small_heads(91),
        box_batch_size_per_image=8,
        box_detections_per_img=2,
    )
    return train(model, *coco, TINY, folder, seed=seed, device=torch.device("cpu"), workers=0)


def test_a_run_that_was_stopped_goes_on_to_the_same_result(coco, tmp_path, monkeypatch):
    whole = fit(coco, tmp_path / "whole")
    assert whole["first_epoch"]["loss"] > 0
    assert whole["bbox"].keys() == whole["segm"].keys()
    with monkeypatch.context() as patch:
        epochs = detecting._train_epoch

        def stopped(*arguments):
            if arguments[4]:
                raise KeyboardInterrupt
            return epochs(*arguments)

        patch.setattr(detecting, "_train_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit(coco, tmp_path / "stopped")
    assert fit(coco, tmp_path / "stopped")["last_epoch"]["loss"] == whole["last_epoch"]["loss"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "stopped" / "summary.json").read_text())["recipe"]["batch_size"] == 1
    with pytest.raises(TrainingError, match=r"the run in .* has seed 0, not 1; use what it has, or another folder="):
        fit(coco, tmp_path / "stopped", seed=1)
