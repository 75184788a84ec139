import json
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms import v2

from benchmarks.paper.noise_coco import CATEGORIES, write_noise
from blockswap_models import SearchSpace
from blockswap_models.cli.main import main
from blockswap_models.data.folders import DataError
from blockswap_models.data.images import ImageError
from blockswap_models.searching.probe_images import dataset_minibatch
from blockswap_models.training.evaluate import evaluate, evaluation_loader

pytest.importorskip("pycocotools", reason='needs pip install "blockswap_models[detection]"')

from pycocotools.coco import COCO

from blockswap_models.data.coco import AP_NAMES, CocoLabels, CocoObjects, average_precision, detections

SMALL = SearchSpace("resnet18", ["S"], image_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_noise(root, 4)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    # The fourth image has no objects, the third a box without area.
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] < 4]
    content["annotations"][-1]["bbox"][2] = 0
    path.write_text(json.dumps(content))
    return root


def test_the_label_is_the_category_of_the_largest_object(folder):
    dataset = CocoLabels(folder, "validation")
    assert dataset.class_to_idx == {name: number for number, name in enumerate(CATEGORIES.values())}
    assert len(dataset) == 3
    annotations = json.loads((folder / "annotations" / "instances_val2017.json").read_text())["annotations"]
    for image, (_, label) in enumerate(dataset, start=1):
        objects = [each for each in annotations if each["image_id"] == image and not each["iscrowd"]]
        assert list(CATEGORIES)[label] == max(objects, key=lambda each: each["area"])["category_id"]


def test_annotations_may_lack_crowds_and_areas(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for each in content["annotations"]:
        del each["area"], each["iscrowd"]
    path.write_text(json.dumps(content))
    objects = CocoObjects(tmp_path, "val", training=True)
    for image, (_, label) in zip(objects.ids, CocoLabels(tmp_path, "val"), strict=True):
        largest = max(objects.coco.imgToAnns[image], key=lambda each: each["bbox"][2] * each["bbox"][3])
        assert list(CATEGORIES)[label] == largest["category_id"]


def test_a_minibatch_for_the_search(folder):
    minibatch = dataset_minibatch(SMALL, "coco", folder, batch_size=3, split="val")
    assert minibatch.images.shape == (3, 3, 32, 32)
    assert minibatch.source.startswith("coco, 3 images, sha256 ")
    # A folder that is COCO's own is not taken for one folder a class.
    assert minibatch.source == dataset_minibatch(SMALL, str(folder), batch_size=3, split="val").source
    assert set(minibatch.labels.tolist()) <= {0, 1, 2}


def test_the_command_searches_on_coco(folder, tmp_path, capsys):
    record = tmp_path / "record.jsonl"
    command = (
        "search resnet18 --params 3m --samples 2 --types S,W1 --refine 0 --workers 1 --image-size 32 --batch-size 2"
    )
    data = ["--data", "coco", "--data-dir", str(folder), "--split", "val", "--out", str(record)]
    assert main([*command.split(), *data, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["top"]) == 2
    assert json.loads(record.read_text().splitlines()[0])["data"].startswith("coco, 2 images")


def test_boxes_labels_and_masks(folder):
    dataset = CocoObjects(folder, "val", transforms=v2.Compose([v2.ToImage(), v2.ToPureTensor()]))
    assert dataset.ids == [1, 2, 3, 4]
    for image, objects in dataset:
        assert image.shape == (3, 48, 64)
        assert objects["masks"].shape == (len(objects["labels"]), 48, 64)
        assert objects["boxes"].shape == (len(objects["labels"]), 4)
    image, objects = dataset[0]
    assert objects["labels"].tolist() == list(CATEGORIES)
    for box, mask in zip(objects["boxes"].int().tolist(), objects["masks"], strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box
    assert dataset.aspect_ratios() == [64 / 48] * 4


def test_training_leaves_out_crowds_and_empty_boxes_and_images(folder):
    dataset = CocoObjects(folder, "val", training=True)
    assert dataset.ids == [1, 2, 3]
    assert [len(objects["labels"]) for _, objects in dataset] == [3, 2, 2]
    dataset.keep(2)
    assert dataset.ids == [1, 2]
    with pytest.raises(ValueError, match=r"there are 2 images, not 3; use 1 to 2 \(images=\)"):
        dataset.keep(3)


def test_average_precision_of_the_truth_is_100(folder):
    dataset = CocoObjects(folder, "val", transforms=v2.Compose([v2.ToImage(), v2.ToPureTensor()]))
    outputs = [
        {
            "boxes": objects["boxes"],
            "labels": objects["labels"],
            "scores": torch.ones(len(objects["labels"])),
            "masks": objects["masks"][:, None].float(),
        }
        for _, objects in dataset
    ]
    chosen = slice(0, 2)
    found = detections(dataset.ids[chosen], outputs[chosen])
    for kind in ("bbox", "segm"):
        figures = average_precision(dataset.coco, dataset.ids[chosen], found)[kind]
        assert tuple(figures) == AP_NAMES
        assert figures["AP"] == figures["AP50"] == figures["APS"] == pytest.approx(100)
        assert figures["APL"] is None
    # What was measured can be read again, crowds and all.
    assert len(dataset[1][1]["masks"]) == 3
    # Half of the images without detections, and none at all.
    assert average_precision(dataset.coco, dataset.ids[chosen], found[:3])["bbox"]["AP"] < 90
    assert average_precision(dataset.coco, dataset.ids, [])["segm"]["AP"] == 0


def test_the_size_of_a_mask_is_its_own_area_and_not_that_of_its_box():
    coco = COCO()
    square = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0, "id": 1}
    square["segmentation"] = [[0, 0, 20, 0, 20, 20, 0, 20]]
    coco.dataset = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [square],
    }
    coco.createIndex()
    # A thin line through the whole image is a false alarm among small masks, and among large boxes.
    masks = torch.zeros(2, 1, 100, 100)
    masks[0, 0].fill_diagonal_(1)
    masks[1, 0, :20, :20] = 1
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 20.0, 20.0]])
    outputs = [{"boxes": boxes, "labels": torch.ones(2).long(), "scores": torch.tensor([0.9, 0.5]), "masks": masks}]
    figures = average_precision(coco, [1], detections([1], outputs))
    assert figures["segm"]["APS"] == pytest.approx(50)
    assert figures["bbox"]["APS"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", r"no annotations/instances_train2017.json there; fetch it, or use the split that is \(split=\)"),
        ("test", r"COCO has no split 'test'; use train or val \(split=\)"),
    ],
)
def test_errors_say_what_to_write(folder, split, message):
    with pytest.raises(DataError, match=f"no dataset coco in .*: {message}") as error:
        dataset_minibatch(SMALL, "coco", folder, 2, split=split)
    assert "\n" not in str(error.value)


def test_labels_must_fit_the_network(folder):
    with pytest.raises(DataError, match="but the network has 1 classes; use num_classes=2 or more"):
        dataset_minibatch(SearchSpace("resnet18", ["S"], num_classes=1, image_size=32), "coco", folder, 3, split="val")


def test_the_command_says_what_to_install(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.chdir(tmp_path)
    assert main(["search", "resnet34", "--params", "3m", "--data", "coco", "--data-dir", str(folder)]) == 2
    message = 'COCO needs pycocotools; pip install "blockswap_models[detection]"'
    assert capsys.readouterr().err == f"blockswap search: no dataset coco in '{folder}': {message}\n"
    with pytest.raises(RuntimeError, match="COCO needs pycocotools; pip install"):
        average_precision(None, [], [])


@pytest.mark.parametrize("name", ["Val", "VALIDATION"])
def test_splits_have_names_in_any_case(folder, name):
    assert len(CocoLabels(folder, name)) == 3


def test_a_damaged_image_is_named(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "coco")
    path = next((tmp_path / "coco" / "val2017").glob("*1.*"))
    path.write_bytes(path.read_bytes()[:100])
    assert len(dataset_minibatch(SMALL, "coco", tmp_path / "coco", batch_size=2, split="val").images) == 2
    evaluated = evaluate(make_network(), evaluation_loader(make_network(), "coco", tmp_path / "coco", workers=0))
    assert (evaluated.images, evaluated.damaged) == (2, (str(path),))
    assert [message.split(": ")[0] for message in caplog.messages] == ["left out 1 image that cannot be read"] * 2
    with pytest.raises(ImageError, match=rf"^cannot read the image '{path}': "):
        CocoObjects(tmp_path / "coco", "val")[0]


def make_network():
    return timm.create_model(
        "resnet10t", num_classes=len(CATEGORIES), pretrained_cfg_overlay={"input_size": (3, 32, 32)}
    )


@pytest.mark.data
def test_real_images(coco_val57):
    minibatch = dataset_minibatch(SearchSpace("resnet34"), "coco", coco_val57, 8, split="val")
    assert minibatch.images.shape == (8, 3, 224, 224)
    assert 0 <= minibatch.labels.min() <= minibatch.labels.max() < 80
    assert len(CocoLabels(coco_val57, "val").class_to_idx) == 80
