import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader
from torch import nn

from blockswap_models import save_pretrained
from blockswap_models.cli.main import main
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.data.folders import DataError
from blockswap_models.training.evaluate import evaluate, evaluation_loader, is_compiled, load_weights

# Where the right class of each of ten images stands among the logits of the rigged model.
RANKS = (0, 0, 0, 0, 1, 4, 5, 6, 9, 0)


def run(capsys, *arguments):
    status = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class Rigged(nn.Module):
    """Answers an image, which is its own number, with logits that rank the right class as they are told to."""

    def __init__(self, labels, ranks, classes=10):
        super().__init__()
        logits = torch.zeros(len(labels), classes)
        for row, label, rank in zip(logits, labels, ranks, strict=True):
            order = [other for other in range(classes) if other != label]
            order.insert(rank, int(label))
            row[order] = -torch.arange(classes, dtype=torch.float32)
        self.register_buffer("logits", logits)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        self.seen = (self.training, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        return self.logits[x[:, 0, 0, 0].long()]


def numbered(labels, size):
    images = torch.arange(len(labels), dtype=torch.float32).view(-1, 1, 1, 1)
    return list(zip(images.split(size), labels.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 3, 5, 10])
def test_errors_are_exact(size):
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    bars = []
    result = evaluate(Rigged(labels, RANKS), numbered(labels, size), progress=lambda each: bars.append(each) or each)
    assert result.images == 10
    assert result.top1_error == pytest.approx(50)
    assert result.top5_error == pytest.approx(30)
    assert result.seconds > 0
    assert len(bars) == 1


def test_fewer_than_five_classes():
    labels = torch.tensor([0, 1, 2])
    result = evaluate(Rigged(labels, (0, 1, 2), classes=3), numbered(labels, 2))
    assert result.top1_error == pytest.approx(200 / 3)
    assert result.top5_error == 0


def test_the_model_is_left_as_it_was():
    labels = torch.arange(10)
    model = Rigged(labels, RANKS).train()
    model.norm.eval()
    evaluate(model, numbered(labels, 5))
    assert model.seen == (False, True, False)
    assert (model.training, model.norm.training) == (True, False)
    evaluate(model, numbered(labels, 5), torch.bfloat16)
    assert model.seen == (False, True, True)
    with pytest.raises(IndexError):
        evaluate(model, [(torch.full((1, 1, 1, 1), 99.0), labels[:1])])
    assert model.training


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_must_fit_the_model(label):
    labels = torch.arange(10)
    labels[4] = label
    with pytest.raises(DataError, match=r"1 of 10 labels are none of the network's 10 classes"):
        evaluate(Rigged(torch.arange(10), RANKS), numbered(labels, 5))


@pytest.mark.parametrize("labels", [torch.arange(10)[:, None], torch.eye(10), torch.arange(9)])
def test_labels_are_one_number_an_image(labels):
    minibatch = torch.arange(10.0).view(-1, 1, 1, 1), labels
    with pytest.raises(
        DataError, match=rf"^labels of the shape \({len(labels)},.*\) do not fit 10 images; use one number"
    ):
        evaluate(Rigged(torch.arange(10), RANKS), [minibatch])


def test_outputs_must_be_numbers():
    labels = torch.arange(10)
    model = Rigged(labels, RANKS)
    model.logits[7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"the outputs for 1 of 10 images are NaN; are these the right weights\?"):
        evaluate(model, numbered(labels, 5))
    with pytest.raises(DataError, match="there are no images"):
        evaluate(model, [])


# -- weights ---------------------------------------------------------------------------------------------------------


def wrn(classes=3, favourite=1):
    """Makes a network that answers every image with one class."""
    model = timm.create_model("blockswap_wrn16_1", num_classes=classes)
    nn.init.zeros_(model.fc.weight)
    model.fc.bias.data[favourite] = 1
    return model


@pytest.mark.parametrize(
    "save",
    [
        lambda state, path: save_file(state, path),
        lambda state, path: torch.save(state, path),
        lambda state, path: torch.save({"state_dict": {f"module.{name}": each for name, each in state.items()}}, path),
        lambda state, path: torch.save({"state_dict": {}, "state_dict_ema": state}, path),
        lambda state, path: save_file({n: each for n, each in state.items() if "num_batches" not in n}, path),
    ],
)
def test_weights_of_checkpoints(tmp_path, save):
    path = tmp_path / "net.safetensors"
    if save.__code__.co_names[0] == "torch":
        path = path.with_suffix(".pth")
    trained = wrn()
    save(trained.state_dict(), str(path))
    model = timm.create_model("blockswap_wrn16_1", num_classes=3)
    load_weights(model, path)
    for name, each in model.state_dict().items():
        assert torch.equal(each, trained.state_dict()[name]), name


class Harm:
    def __reduce__(self):
        return print, ("code of a checkpoint runs",)


def test_checkpoints_that_do_not_fit(tmp_path, capsys):
    model = timm.create_model("blockswap_wrn16_1", num_classes=3)
    with pytest.raises(ValueError, match=r"no checkpoint 'nowhere'; use a \.safetensors file"):
        load_weights(model, "nowhere")
    for name, content in {
        "a.safetensors": b"no tensors",
        "a.pth": b"no tensors",
        "b.pth": pickle.dumps(Harm(), protocol=2),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the checkpoint '.*': it is damaged, or holds more than"):
            load_weights(model, tmp_path / name)
    torch.save({"state_dict": model.state_dict(), "harm": Harm()}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        load_weights(model, tmp_path / "c.pth")
    assert capsys.readouterr().out == ""
    state = wrn(classes=7).state_dict()
    state["head"] = state.pop("conv1.weight")
    save_file(state, tmp_path / "other.safetensors")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"is of another network than this WideResNet: tensors 1 missing \(conv1.weight, …\), "
        r"1 unknown \(head, …\), 2 of another shape \(fc.weight, …\)",
    ):
        load_weights(model, tmp_path / "other.safetensors")
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


# -- datasets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Four cats, three dogs and two eels, of one colour each."""
    from PIL import Image

    for label, number in {"cat": 4, "dog": 3, "eel": 2}.items():
        (tmp_path / "images" / "val" / label).mkdir(parents=True)
        for each in range(number):
            path = tmp_path / "images" / "val" / label / f"{each}.png"
            Image.new("RGB", (40, 40), (50 * each, 100, 30)).save(path)
    return tmp_path / "images"


def test_a_folder_of_images(folder):
    loader = evaluation_loader(wrn(), str(folder), batch_size=4, workers=0)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    assert batches[0][0].shape == (4, 3, 32, 32)
    # Normalised with the mean and standard deviation of the network: a green of 100 stays one number.
    green = torch.tensor((100 / 255 - 0.4822) / 0.1994)
    assert batches[1][0][:, 1].allclose(green, atol=1e-4)
    assert evaluate(wrn(), loader).top1_error == pytest.approx(100 * 6 / 9)
    assert evaluate(wrn(favourite=0), loader).top1_error == pytest.approx(100 * 5 / 9)


def test_some_images_are_evenly_spaced(folder):
    loader = evaluation_loader(wrn(), "folder", folder, batch_size=2, images=5, workers=0)
    images, labels = map(torch.cat, zip(*loader, strict=True))
    assert labels.tolist() == [0, 0, 0, 1, 2]
    assert images.shape == (5, 3, 32, 32)


def test_images_of_another_size_and_crop(capsys, tmp_path):
    # White, with a black frame of a tenth of the side.
    picture = Image.new("L", (40, 40))
    picture.paste(255, (4, 4, 36, 36))
    for name in ("cat", "dog", "eel"):
        (tmp_path / "val" / name).mkdir(parents=True)
        picture.save(tmp_path / "val" / name / "1.png")
    whole, middle = (
        next(iter(evaluation_loader(wrn(), str(tmp_path), workers=0, image_size=64, crop_pct=share)))[0]
        for share in (1.0, 0.8)
    )
    assert whole.shape == middle.shape == (3, 3, 64, 64)
    assert whole[0, 0, 0, 0] < 0 < whole[0, 0, 32, 32]
    assert middle.min() > 0
    # CIFAR's own size is not asked for.
    with pytest.raises(DataError, match="no dataset torch/cifar10 in"):
        evaluation_loader(wrn(10), "torch/cifar10", tmp_path, image_size=64)
    save_file(wrn().state_dict(), tmp_path / "net.safetensors")
    command = ["evaluate", "wrn16_1", "--num-classes", 3, "--checkpoint", tmp_path / "net.safetensors", "--workers", 0]
    status, out, err = run(capsys, *command, "--data", tmp_path, "--image-size", 64, "--crop-pct", 0.8)
    assert (status, "images       3" in out) == (0, True), err


def test_a_class_map_for_some_of_the_classes(folder, tmp_path):
    names = tmp_path / "names.txt"
    # An empty line at its end is no class.
    names.write_text("ape\neel\ncat\ndog\n\n\n")
    loader = evaluation_loader(wrn(4), str(folder), class_map=names, workers=0)
    assert torch.bincount(torch.cat([labels for _, labels in loader])).tolist() == [0, 2, 4, 3]


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom blockswap_models.cli.main import main\n"
        "assert main(['evaluate', '--help']) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--no-pretrained" in done.stdout


def test_evaluate(capsys, folder, tmp_path):
    save_file(wrn().state_dict(), tmp_path / "net.safetensors")
    command = ["evaluate", "wrn16_1", "--num-classes", 3, "--checkpoint", tmp_path / "net.safetensors", "--workers", 0]
    command += ["--device", "cpu"]
    status, out, err = run(capsys, *command, "--data", folder)
    assert status == 0
    assert "1 of 1 " in err
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    found = {title: value.strip() for title, value in lines.items()}
    assert found.pop("time").endswith(" images/s, cpu, float32")
    assert found == {
        "model": "wrn16_1",
        "weights": str(tmp_path / "net.safetensors"),
        "data": f"{folder}, val",
        "images": "9",
        # Of three classes one of the first five is always right, so it says no top-5 error.
        "top-1 error": "66.67 %",
    }
    few = ["--data", "folder", "--data-dir", folder, "--images", 5, "--batch-size", 2, "--dtype", "bfloat16", "--json"]
    status, out, err = run(capsys, *command, *few)
    report = json.loads(out)
    assert status == 0
    assert "3 of 3 " in err
    assert report.pop("seconds") > 0
    assert report.pop("top1_error") == pytest.approx(80)
    assert report == {
        "model": "wrn16_1",
        "weights": str(tmp_path / "net.safetensors"),
        "data": "folder",
        "split": "val",
        "images": 5,
        "damaged": [],
        "top5_error": 0,
        "device": "cpu",
        "dtype": "bfloat16",
    }


def test_a_saved_network_brings_its_weights_and_genome(capsys, folder, tmp_path):
    model = timm.create_model("blockswap_wrn16_1", genome="2xG4/2xS/2xB2", num_classes=3)
    nn.init.zeros_(model.fc.weight)
    model.fc.bias.data[0] = 1
    save_pretrained(model, tmp_path / "net")
    arguments = ["--data", folder, "--workers", 0, "--device", "cpu", "--json"]
    status, out, _ = run(capsys, "evaluate", f"local-dir:{tmp_path / 'net'}", *arguments)
    report = json.loads(out)
    assert (status, report["weights"]) == (0, "pretrained")
    assert report["top1_error"] == pytest.approx(100 * 5 / 9)
    file = tmp_path / "net" / "model.safetensors"
    genome = ["--genome", "2xG4/2xS/2xB2", "--num-classes", 3, "--checkpoint", file]
    status, out, _ = run(capsys, "evaluate", "blockswap_wrn16_1", *genome, *arguments)
    assert (status, json.loads(out)["top1_error"]) == (0, pytest.approx(100 * 5 / 9))
    status, _, err = run(capsys, "evaluate", f"local-dir:{tmp_path / 'net'}", "--num-classes", 10, *arguments)
    assert status == 2
    assert "are for 3 classes, not 10; leave out --num-classes, or use --checkpoint FILE" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("wrn40_2_404 --data .", "unknown model 'wrn40_2_404'; did you mean 'wrn40_2_404k'?"),
        ("resnet181 --data .", "unknown model 'resnet181'; did you mean 'resnet18"),
        ("?? --data .", "unknown model '??'; see 'blockswap list' and timm.list_models()"),
        ("resnet18.mine --data .", "no pretrained weights for resnet18.mine; use resnet18."),
        (
            "test_resnet --no-pretrained --genome S --data .",
            "test_resnet has stages of 1, 1, 1 and 1 blocks; this genome has 1",
        ),
        (
            "test_resnet --genome K/G4/K/K --data .",
            "no pretrained weights for test_resnet with other blocks, K/G4/K/K; use --checkpoint FILE, or the folder",
        ),
        ("test_vit3 --no-pretrained --genome K --data .", "VisionTransformer does not split into blocks: its stages"),
        ("resnet18 --no-pretrained --genome S --data .", "blockswap_resnet18 has stages of 2, 2, 2 and 2 blocks"),
        ("wrn16_1 --no-pretrained --genome 6xS --data .", "blockswap_wrn16_1 has stages of 2, 2 and 2 blocks"),
        ("wrn16_1 --no-pretrained --data nowhere", "no folder 'nowhere'; use a folder of images, or torch/cifar10"),
        (
            "wrn16_1 --no-pretrained --data torch/cifar10",
            "torch/cifar10 needs the folder that holds it (--data-dir)",
        ),
        ("./nowhere/ --data images", "no folder './nowhere/'; use the folder of a network or of a run, or the name of"),
        (
            "images/val/cat/0.png --data images",
            "is a file, not a model; use the folder of the network",
        ),
        ("wrn16_1 --no-pretrained --data torch/cifar10 --data-dir nowhere", "no data folder 'nowhere'"),
        (
            "wrn16_1 --no-pretrained --data torch/cifar10 --data-dir .",
            "no whole CIFAR10 in '.'; use the folder that holds cifar-10-batches-py",
        ),
        (
            "wrn16_1 --no-pretrained --data torch/cifar100 --data-dir .",
            "torch/cifar100 has 100 classes, but the network has 10; use --num-classes 100, with weights for as many",
        ),
        ("wrn16_1 --no-pretrained --data torch/cifar10 --data-dir . --split dev", "has no split 'dev'; use train or"),
        ("wrn16_1 --no-pretrained --data torch/cifar10 --data-dir . --class-map a", "a class map is for folders"),
        ("resnet18 --no-pretrained --num-classes 10 --data torch/cifar10 --data-dir .", "no dataset torch/cifar10 in"),
        (
            "wrn16_1 --no-pretrained --data images",
            "'images' has 3 classes, but the network has 10; use --num-classes 3, with weights for as many, or, for "
            "some of the network's classes, the file with the names of all (--class-map)",
        ),
        ("wrn16_1 --no-pretrained --num-classes 2 --data images", "'images' has 3 classes, but the network has 2; use"),
        ("wrn16_1 --no-pretrained --data images --class-map nowhere", "cannot read the class map 'nowhere': Cannot"),
        ("wrn16_1 --no-pretrained --data images --class-map a.csv", "use a .txt file with a name a line (--class-map)"),
        (
            "wrn16_1 --no-pretrained --num-classes 3 --data images --images 10",
            "there are 9 images, not 10; use fewer (--images)",
        ),
        ("wrn16_1 --no-pretrained --in-chans 0 --data images", "evaluate: --in-chans is at least 1, not 0"),
        ("wrn16_1 --no-pretrained --num-classes -1 --data images", "evaluate: --num-classes is at least 1, not -1"),
        (
            "wrn16_1 --no-pretrained --num-classes 3 --in-chans 2 --data images",
            "in Python, use tensors: search(data=(images, labels)), or a loader of your own",
        ),
        ("wrn16_1 --no-pretrained --data images --images 0", "an error is measured on at least 1 image, not 0"),
        ("wrn16_1 --no-pretrained --num-classes 3 --data images --workers -1", "--workers is at least 0, not -1"),
        ("wrn16_1 --no-pretrained --data images --image-size 0", "at least 1 pixel, not 0 (--image-size)"),
        (
            "test_vit3 --no-pretrained --num-classes 3 --data images --image-size 64",
            "the network takes images of 160x160 only; leave out --image-size 64",
        ),
        ("wrn16_1 --no-pretrained --data images --crop-pct 1.1", "above 0 and up to 1, not 1.1 (--crop-pct)"),
        ("wrn16_1 --no-pretrained --data images --batch-size 0", "a minibatch has at least 1 image, not 0"),
        ("wrn16_1 --checkpoint nowhere --data images", "no checkpoint 'nowhere'; use a .safetensors file"),
        ("wrn16_1 --checkpoint notes.txt --data images", "cannot read the checkpoint 'notes.txt': it is damaged, or"),
        (
            "search.jsonl --data images",
            "is the record of a search, not a model; train it first by 'blockswap train'",
        ),
        ("wrn16_1 --checkpoint images --data images", "the checkpoint 'images' is a folder; use a file in it, or"),
        (
            "wrn16_1 --checkpoint a --pretrained --data images",
            "--checkpoint and --pretrained exclude each other",
        ),
        ("wrn16_1 --no-pretrained --data images --device tpu9", "unknown device 'tpu9'; use cpu, cuda or cuda:1"),
        ("local-dir:nowhere --data images", "nowhere"),
    ],
)
def test_mistakes_are_one_line(capsys, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder.parent)
    # torch ends in a KeyError for this one.
    Path("notes.txt").write_text("hello\n")
    Path("search.jsonl").touch()
    status, out, err = run(capsys, "evaluate", *arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("blockswap evaluate: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_network_without_weights(capsys, monkeypatch):
    monkeypatch.setattr(timm, "is_model_pretrained", lambda _: False)
    _, _, err = run(capsys, "evaluate", "wrn16_2", "--data", ".")
    assert err.startswith("blockswap evaluate: no pretrained weights for blockswap_wrn16_2; 'blockswap train wrn16_2 ")
    assert err.endswith("; use --checkpoint FILE, or --no-pretrained for random weights\n")


@pytest.mark.data
def test_cifar_on_the_device_is_what_timm_loads(cifar_dir):
    model = wrn(10)
    loader = evaluation_loader(model, "torch/cifar10", cifar_dir, batch_size=100)
    assert isinstance(loader, CifarLoader)
    assert len(loader) == 100
    dataset = create_dataset("torch/cifar10", root=str(cifar_dir), split="test")
    config = model.pretrained_cfg
    timms = create_loader(
        dataset,
        (3, 32, 32),
        100,
        mean=config["mean"],
        std=config["std"],
        crop_pct=1.0,
        num_workers=0,
        device=torch.device("cpu"),
    )
    for (images, labels), (expected, their_labels), _ in zip(loader, timms, range(3), strict=False):
        assert torch.equal(labels, their_labels)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


@pytest.mark.data
def test_evaluate_on_cifar10(capsys, tmp_path, cifar_dir):
    save_file(wrn(10, favourite=3).state_dict(), tmp_path / "net.safetensors")
    weights = ["--checkpoint", tmp_path / "net.safetensors", "--device", "cpu"]
    data = ["--data", "torch/cifar10", "--data-dir", cifar_dir, "--images", 200, "--json"]
    for split, train in (("test", False), ("train", True)):
        status, out, _ = run(capsys, "evaluate", "blockswap_wrn16_1", *weights, *data, "--split", split)
        from torchvision.datasets import CIFAR10

        labels = CIFAR10(str(cifar_dir), train=train).targets
        spaced = labels[:: len(labels) // 200]
        assert status == 0
        assert json.loads(out)["top1_error"] == pytest.approx(100 * (1 - spaced.count(3) / 200))


@pytest.mark.data
def test_evaluate_on_imagenet_images(capsys, imagenet_val1300):
    images = ["--data", imagenet_val1300, "--class-map", f"{imagenet_val1300}_classes.txt"]
    small = ["--images", 4, "--batch-size", 4, "--workers", 1, "--device", "cpu", "--json"]
    status, out, _ = run(capsys, "evaluate", "resnet18", "--no-pretrained", *images, *small)
    assert (status, json.loads(out)["images"], json.loads(out)["weights"]) == (0, 4, "random")


# timm keeps a cfg of three channels for its own networks.
@pytest.mark.parametrize("name", ["blockswap_wrn16_1", "mobilenetv3_small_050"])
@pytest.mark.parametrize("channels", [1, 4])
def test_evaluate_on_images_of_other_channels(capsys, tmp_path, name, channels):
    for label in "ab":
        (tmp_path / label).mkdir()
        Image.new("RGBA", (64, 64), (51, 51, 51, 255)).save(tmp_path / label / "0.png")
    model = timm.create_model(name, in_chans=channels, num_classes=2)
    ((images, _),) = evaluation_loader(model, str(tmp_path), workers=0)
    mean, std = (0.4734, 0.2009) if "wrn" in name else (0.449, 0.226)
    size = 32 if "wrn" in name else 224
    expected = torch.tensor([0.2, 0.2, 0.2, 1.0][:channels]).view(-1, 1, 1).expand(2, channels, size, size)
    torch.testing.assert_close(images, (expected - mean) / std)
    options = ["--no-pretrained", "--num-classes", 2, "--in-chans", channels, "--workers", 0, "--device", "cpu"]
    status, out, _ = run(capsys, "evaluate", name, "--data", tmp_path, *options, "--json")
    assert (status, json.loads(out)["images"]) == (0, 2)


def test_a_part_that_is_compiled_in_place_is_seen():
    # As PyTorch's guide to regional compilation does; layers in C would break its graphs.
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    assert not is_compiled(model)
    model[0].compile(backend="eager")
    assert is_compiled(model)
