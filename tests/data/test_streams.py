"""Datasets that are streams: shards of webdataset, as timm reads them."""

import io
import json
import tarfile

import pytest
import timm
import torch
from PIL import Image

from blockswap_models import SearchSpace
from blockswap_models.cli.main import main
from blockswap_models.data.folders import DataError
from blockswap_models.searching.probe_images import dataset_minibatch
from blockswap_models.training.evaluate import evaluate, evaluation_loader
from blockswap_models.training.loaders import training_loader
from blockswap_models.training.loop import set_epoch
from blockswap_models.training.recipes import Recipe

pytest.importorskip("webdataset", reason="webdataset is not installed")

SHARDS, IMAGES = 2, 12
RECIPE = Recipe(epochs=2, batch_size=4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of shards, one image a label."""
    folder, splits = tmp_path_factory.mktemp("shards"), {}
    for split in ("train", "validation"):
        lengths = {}
        for shard in range(SHARDS):
            labels = range(shard, IMAGES, SHARDS)
            lengths[f"tiny-{split}-{shard:04d}.tar"] = len(labels)
            with tarfile.open(folder / list(lengths)[-1], "w") as file:
                for label in labels:
                    picture = io.BytesIO()
                    Image.new("RGB", (40, 40), (20 * label, 0, 0)).save(picture, "JPEG")
                    for suffix, content in (("jpg", picture.getvalue()), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{label:04d}.{suffix}")
                        member.size = len(content)
                        file.addfile(member, io.BytesIO(content))
        names, counts = list(lengths), list(lengths.values())
        splits[split] = {"name": split, "num_samples": IMAGES, "filenames": names, "shard_lengths": counts}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


@pytest.fixture(scope="module")
def model():
    return timm.create_model("blockswap_wrn16_1", num_classes=IMAGES)


def labels_of(loader, epoch, seed=0):
    set_epoch(loader, seed, epoch, 0)
    return torch.cat([labels for _, labels in loader]).tolist()


def test_an_epoch_has_its_own_order_also_after_a_restart(model, shards):
    first, again = (training_loader(model, "wds/tiny", shards, RECIPE, workers=1) for _ in range(2))
    orders = [labels_of(first, epoch) for epoch in (0, 1)]
    # A resumed run begins with a later epoch.
    assert labels_of(again, 1) == orders[1] != orders[0]
    assert [sorted(each) for each in orders] == [list(range(IMAGES))] * 2
    assert labels_of(again, 0, seed=1) not in orders


def test_all_images_are_evaluated(model, shards):
    assert evaluate(model, evaluation_loader(model, "wds/tiny", shards, batch_size=5, workers=1)).images == IMAGES
    with pytest.raises(DataError, match="wds/tiny is a stream, of which only all images can be taken"):
        evaluation_loader(model, "wds/tiny", shards, images=3)


def test_a_search_takes_its_minibatch_from_a_stream(shards):
    data = dataset_minibatch(
        SearchSpace("wrn16_1", num_classes=IMAGES), "wds/tiny", shards, batch_size=5, num_batches=3
    )
    assert data.images.shape == (10, 3, 32, 32)
    assert data.num_batches == 2


def test_each_process_reads_a_shard(model, shards):
    with pytest.raises(DataError, match=r"2 shards for 3 processes that read them; use workers=2$"):
        training_loader(model, "wds/tiny", shards, RECIPE, workers=3)
    with pytest.raises(DataError, match="2 shards for 4 processes that read them; use workers=1 and 2 processes"):
        training_loader(model, "wds/tiny", shards, RECIPE, world_size=4, workers=1)


def test_labels_beyond_the_classes_are_told(capsys, shards, tmp_path):
    arguments = f"train wrn16_1 --data wds/tiny --data-dir {shards} --epochs 1 --batch-size 4 --workers 1 --device cpu"
    assert main([*arguments.split(), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("blockswap train: a label is none of the network's classes; use more (--num-classes)")
