"""What a network sees in image files: classes by name, and files that cannot be read."""

import csv
import io
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from command_line import run
from PIL import Image
from torch import nn

from blockswap_models import DataError, predict, save_pretrained
from blockswap_models.prediction import class_names, images_in


def network(classes=3, names=None):
    """A network that answers every image with logits 0, 1, 2, …, whatever it shows."""
    model = timm.create_model("blockswap_wrn16_1", num_classes=classes)
    nn.init.zeros_(model.fc.weight)
    model.fc.bias.data = torch.arange(classes).float()
    if names is not None:
        model.pretrained_cfg["label_names"] = names
    return model


@pytest.fixture
def photos(tmp_path):
    for number in (1, 2, 10):
        path = tmp_path / "photos" / "some" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((50, 40, 3), 20 * number, dtype=np.uint8)).save(path)
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_the_most_probable_classes_come_first_by_name(photos):
    model = network(names=["cat", "dog", "fox"]).train()
    (found,) = predict(model, photos / "some" / "1.png", top=2)
    assert (found.labels, found.names) == ((2, 1), ("fox", "dog"))
    wanted = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert found.probabilities == pytest.approx((wanted[2].item(), wanted[1].item()))
    assert model.training
    # In natural order, in batches of any size; of three classes there are no five.
    each = predict(model, photos, batch_size=2)
    assert [prediction.image for prediction in each] == [str(photos / "some" / f"{n}.png") for n in (1, 2, 10)]
    assert {len(prediction.names) for prediction in each} == {3}


def test_a_saved_network_may_be_named_by_its_path(photos, tmp_path):
    save_pretrained(network(), tmp_path / "net")
    (found,) = predict(tmp_path / "net", photos / "some" / "1.png", top=1)
    assert found.labels == (2,)


def test_an_image_is_seen_as_in_evaluation(photos):
    torch.manual_seed(0)
    model = timm.create_model("blockswap_wrn16_1", in_chans=1).eval()
    transform = timm.data.create_transform((1, 32, 32), mean=(0.4734,), std=(0.2009,), crop_pct=1.0)
    pixels = transform(Image.open(photos / "some" / "2.png").convert("L"))
    with torch.inference_mode():
        wanted = model(pixels[None]).softmax(1).topk(5)
    (found,) = predict(model, photos / "some" / "2.png")
    assert list(found.labels) == wanted.indices[0].tolist()
    assert found.probabilities == pytest.approx(wanted.values[0].tolist(), abs=1e-4)


def test_what_is_not_a_number_is_no_class(photos):
    model = network()
    model.fc.bias.data[1] = float("nan")
    with pytest.raises(ValueError, match=r"^the outputs of the network are not numbers; use weights that are$"):
        predict(model, photos)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_in_another_precision_see_the_same(photos, dtype):
    (found,) = predict(network().to(dtype), photos / "some" / "1.png")
    assert found.probabilities == pytest.approx(torch.tensor([2.0, 1.0, 0.0]).softmax(0).tolist(), abs=1e-3)


@pytest.mark.parametrize(
    "arguments", [{"num_classes": 0}, {"num_classes": 0, "global_pool": ""}, {"features_only": True}]
)
def test_a_network_without_classes_is_refused(photos, arguments):
    with pytest.raises(ValueError, match="gives features, not a number for each class; use a network with classes, s"):
        predict(timm.create_model("blockswap_wrn16_1", **arguments), photos)


def test_imagenets_classes_have_words():
    assert class_names(network(1000))[0] == "tench, Tinca tinca"
    # A folder of some of ImageNet's classes has their numbers for names.
    assert class_names(network(2, ["n01440764", "cat"])) == ("tench, Tinca tinca", "cat")
    assert class_names(network(2)) == ("0", "1")
    # Names of other weights are not those of this head.
    assert class_names(network(2, ["cat", "dog", "fox"])) == ("0", "1")
    assert class_names(network(2, {"2": "fox"})) == ("0", "1")
    # By number, as a config in JSON has them.
    assert class_names(network(3, {"2": "fox", "0": "cat"})) == ("cat", "1", "fox")


@pytest.mark.parametrize(
    ("classes", "first"), [(11_821, "benthos"), (21_842, "tench, Tinca tinca"), (21_843, "organism, being")]
)
def test_larger_imagenets_have_words(classes, first):
    names = class_names(SimpleNamespace(num_classes=classes))
    assert (len(names), names[0]) == (classes, first)


def test_shipped_weights_know_their_classes():
    trained = timm.create_model("blockswap_wrn40_2_404k", pretrained=True)
    assert class_names(trained)[3:6] == ("cat", "deer", "dog")
    assert class_names(timm.create_model("blockswap_wrn40_2_404k"))[3] == "3"


def test_damaged_images_are_named_and_skipped(photos, caplog):
    damaged = photos / "some" / "3.png"
    damaged.write_bytes((photos / "some" / "1.png").read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        found = predict(network(), photos)
    assert len(found) == 3
    assert [f"left out {str(damaged)!r}, which cannot be read: " in each for each in caplog.messages] == [True]
    with pytest.raises(DataError, match=r"^none of 1 images can be read, such as '.*3.png'; use other files$"):
        predict(network(), damaged)


def test_a_link_to_nowhere_in_a_folder_is_left_out(photos, tmp_path, caplog):
    links = tmp_path / "links"
    links.mkdir()
    (links / "good.png").symlink_to(photos / "some" / "1.png")
    (links / "gone.png").symlink_to(tmp_path / "nowhere.png")
    code, out, _ = run("predict", "blockswap_wrn16_1", "--no-pretrained", links, "--csv")
    assert (code, out.count("\n")) == (0, 2)
    assert out.splitlines()[1].startswith(f"{links / 'good.png'},")
    assert [each.split("', which")[1] for each in caplog.messages] == [" cannot be read: No such file or directory"]


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"^no image '.*none.png'; use a file, or a folder of images$"):
        images_in(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"^no images in '.*'; use files that Pillow reads"):
        images_in([tmp_path])
    with pytest.raises(ValueError, match="top is at least 1, not 0"):
        predict(network(), tmp_path, top=0)


def test_command(photos, tmp_path):
    net, image = tmp_path / "net", photos / "some" / "1.png"
    save_pretrained(network(names=["cat", "dog, small", "fox"]), net)
    status, out, err = run("predict", net, image, "--top", 2)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["image", "rank", "class", "probability"],
        [str(image), "1", "fox", "66.5%"],
        ["2", "dog,", "small", "24.5%"],
    ]
    assert run("predict", f"local-dir:{net}", image, "--top", 2)[1] == out
    report = json.loads(run("predict", net, image, "--json")[1])
    assert (report[0]["image"], report[0]["names"]) == (str(image), ["fox", "dog, small", "cat"])
    (photos / "some" / "3.png").write_bytes(b"no image")
    status, out, _ = run("predict", net, photos, "--csv", "--batch-size", 1, "--workers", 0)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (status, len(rows)) == (0, 3)
    assert rows[0] == {
        "image": str(image),
        "class1": "fox",
        "probability1": "0.665241",
        "class2": "dog, small",
        "probability2": "0.244728",
        "class3": "cat",
        "probability3": "0.090031",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("wrn40_2_404k none.png", "no image 'none.png'; use a file, or a folder of images"),
        ("nonsense .", "no images in '.'; use files that Pillow reads"),
        ("wrn40_2_404k . --csv --json", "--csv and --json exclude each other; leave one of them out"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("predict", *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"blockswap predict: {message}")


def test_a_folder_that_is_no_network(photos, tmp_path):
    status, _, err = run("predict", tmp_path, photos)
    assert (status, err.count("\n")) == (2, 1)
    assert f"no finished run in '{tmp_path}'; use the folder of a run" in err
