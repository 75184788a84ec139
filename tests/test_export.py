"""Folding of BN, and exported files: they answer as PyTorch does, for batches of any size, without this package."""

import errno
import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import version

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils import prune
from torch.torch_version import TorchVersion

from blockswap_models import save_pretrained, swap
from blockswap_models.cli.export import FORMAT_NAMES
from blockswap_models.cli.main import main
from blockswap_models.data.statistics import fixed_size
from blockswap_models.export import ABOUT, FORMATS, OPSET, ExportError, export_model, fold_batchnorm, format_of

TINY = "B2G2,W2/M6,D/S,G2"


@pytest.fixture
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason='needs pip install "blockswap_models[export]"')
    return pytest.importorskip("onnxruntime", reason='needs pip install "blockswap_models[export]"')


def trained(name, size=16, **kwargs):
    """A network whose BN have done something: other statistics, scales and biases than at the start."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(3, 3, size, size) + 0.3)
    return model


def images(batch=2, size=16):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def norms(model):
    return sum(isinstance(each, nn.BatchNorm2d) for each in model.modules())


@torch.no_grad()
def assert_same(one, other, batch):
    expected = one(batch)
    assert expected.std() > 1e-2
    torch.testing.assert_close(other(batch), expected, rtol=1e-4, atol=1e-4)


# How many BN are left of a WRN-16-1: the first of each block, after an addition, the one that comes before all, and the
# one that comes after all, whatever the blocks hold.
@pytest.mark.parametrize(("block", "before"), [("S", 13), ("G2", 25), ("W2", 25), ("B2", 19), ("M6", 25), ("D", 13)])
def test_folding_of_preactivation_blocks(block, before):
    model = trained("blockswap_wrn16_1", genome=f"2x{block}/2x{block}/2x{block}")
    folded = fold_batchnorm(model)
    assert (norms(model), norms(folded)) == (before, 7)
    assert_same(model.eval(), folded, images())


@pytest.mark.parametrize(
    ("block", "before"), [("S", 20), ("G2", 36), ("W2", 36), ("B2", 28), ("B2G2", 28), ("M6", 28), ("D", 20)]
)
def test_folding_of_postactivation_blocks(block, before):
    model = trained("blockswap_resnet18", 32, genome="/".join([f"2x{block}"] * 4))
    folded = fold_batchnorm(model)
    assert (norms(model), norms(folded)) == (before, 0)
    assert_same(model.eval(), folded, images(size=32))


def test_the_original_stays_as_it_was():
    model = trained("blockswap_wrn16_1", genome=TINY)
    model.set_grad_checkpointing(True)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    text = str(model)
    folded = fold_batchnorm(model)
    assert str(model) == text
    assert model.training
    assert model.grad_checkpointing
    assert not any(each.training for each in folded.modules())
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    addresses = {each.data_ptr() for each in model.parameters()}
    assert not any(each.data_ptr() in addresses for each in folded.parameters())
    # It can be folded again, and stays the same.
    assert str(fold_batchnorm(folded)) == str(folded)


@pytest.mark.parametrize("name", ["blockswap_wrn40_2", "blockswap_resnet18"])
def test_maps_of_features_stay_the_same(name):
    # The stem's convolution of WRN-40-2 is a map, and its one user is the first BN.
    model = trained(name).eval()
    final, maps = fold_batchnorm(model).forward_intermediates(images())
    expected, wanted = model.forward_intermediates(images())
    for one, other in zip([expected, *wanted], [final, *maps], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_full_disk_is_an_error_of_exporting(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("blockswap_models.files.os.fsync", fail)
    with pytest.raises(ExportError, match=r"^cannot write '.*a\.ts': No space left on device$"):
        export_model(timm.create_model("blockswap_wrn16_1"), tmp_path / "a.ts")
    assert not list(tmp_path.iterdir())


def test_other_norms_are_left_alone():
    model = trained("blockswap_resnet18", norm_layer="groupnorm1").eval()
    folded = fold_batchnorm(model)
    assert str(folded) == str(model)
    assert_same(model, folded, images())

    batch = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert str(fold_batchnorm(batch)) == str(batch)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(self.conv(x)))

    assert norms(fold_batchnorm(Twice())) == 1


def test_other_networks_are_folded_too():
    model = trained("mobilenetv3_small_050", 32).eval()
    folded = fold_batchnorm(model)
    assert sum(isinstance(each, BatchNormAct2d) for each in folded.modules()) == 0 < norms(model)
    assert_same(model, folded, images(size=32))
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    assert norms(fold_batchnorm(bare)) == 0


def test_what_cannot_be_traced_is_named():
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    with pytest.raises(ExportError, match=r"cannot fold the BN of Choosy, which torch\.fx cannot trace: .*; use fold="):
        fold_batchnorm(Choosy())


def test_a_network_without_bn_need_not_be_traced():
    model = timm.create_model("test_vit").eval()
    assert_same(model, fold_batchnorm(model), images(size=160))


def test_onnx_takes_any_number_of_images(onnxruntime, tmp_path):
    import onnx

    model = trained("blockswap_wrn16_1", genome=TINY)
    result = export_model(model, tmp_path / "net.onnx", input_size=(3, 16, 16))
    assert b"networks.py" not in (tmp_path / "net.onnx").read_bytes()
    assert model.training
    assert (result.format, result.opset, result.genome) == ("onnx", OPSET, TINY)
    assert result.bytes == (tmp_path / "net.onnx").stat().st_size
    assert result.difference < 1e-4
    # ONNX has no features that must stay: the stem's BN, if it alone follows, is folded too. Here it is not alone.
    assert (result.folded, result.batchnorms) == (norms(model) - 7, norms(model))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert (session.get_inputs()[0].name, session.get_inputs()[0].shape) == ("images", ["batch", 3, 16, 16])
    model.eval()
    for batch in (1, 2, 5):
        assert_same(model, lambda x: torch.tensor(session.run(["logits"], {"images": x.numpy()})[0]), images(batch))
    proto = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(proto)
    assert {each.domain: each.version for each in proto.opset_import} == {"": OPSET}
    told = {each.key: each.value for each in proto.metadata_props}
    assert (told["name"], told["genome"], told["input_size"]) == ("blockswap_wrn16_1", TINY, "[3, 16, 16]")
    assert json.loads(told["mean"]) == pytest.approx([0.4914, 0.4822, 0.4465])
    assert json.loads(told["std"]) == pytest.approx([0.2023, 0.1994, 0.2010])


@pytest.mark.parametrize(
    ("torchs", "advice"),
    [("2.6.0+cpu", 'pip install "onnxscript<0.3" "protobuf<7"'), ("2.14.1", "pip install -U torch onnxscript onnx")],
)
def test_packages_that_do_not_fit_are_named(capsys, monkeypatch, onnxruntime, tmp_path, torchs, advice):
    def unfit(*args, **kwargs):
        try:
            raise AttributeError("'tuple' object has no attribute 'dtype'")
        except AttributeError as error:
            raise RuntimeError("a page\nof advice") from error

    monkeypatch.setattr(torch.onnx, "export", unfit)
    monkeypatch.setattr(torch, "__version__", TorchVersion(torchs))
    status, _, err = run(capsys, "wrn16_1", "--out", tmp_path / "net.onnx")
    here = ", ".join(f"{name} {version(name)}" for name in ("onnxscript", "onnx", "protobuf"))
    assert (status, err) == (
        2,
        f"blockswap export: torch {torchs} with {here} cannot make ONNX of WideResNet: "
        f"'tuple' object has no attribute 'dtype'; use a .pt2 or .ts file, or {advice}\n",
    )
    assert not list(tmp_path.iterdir())


def test_a_network_of_timm_with_other_blocks_is_exported(onnxruntime, tmp_path):
    model = swap(timm.create_model("test_resnet", num_classes=5, zero_init_last=False), "K/G4/W1/B2").eval()
    made = export_model(model, tmp_path / "net.onnx", input_size=(3, 64, 64))
    assert (made.name, made.genome, made.folded) == ("test_resnet", "K/G4/W1/B2", made.batchnorms)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    batch = torch.randn(2, 3, 64, 64)
    (answer,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), model(batch), atol=1e-4, rtol=1e-4)


def test_layers_in_two_places_and_computed_weights_are_not_folded():
    class Alias(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.layers = nn.Sequential(self.stem, nn.BatchNorm2d(8))

        def forward(self, x):
            return self.layers(x)

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        computed = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    for model in (Alias(), computed):
        model(torch.randn(8, 3, 8, 8))
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(fold_batchnorm(model.eval())(x), model(x))


def test_files_of_torch_need_no_other_package(tmp_path):
    model = trained("blockswap_wrn16_1", genome=TINY)
    for format, endings in {"torch.export": ".pt2", "torchscript": ".ts"}.items():
        result = export_model(model, tmp_path / f"net{endings}", input_size=(3, 16, 16))
        assert (result.format, result.opset) == (format, None)
        assert result.folded == norms(model) - norms(fold_batchnorm(model)) > 0
    assert b"networks.py" not in (tmp_path / "net.pt2").read_bytes()
    with torch.no_grad():
        torch.save([(images(batch), model.eval()(images(batch))) for batch in (1, 4)], tmp_path / "answers.pt")
    code = f"""
import json, sys, warnings, torch
warnings.simplefilter("ignore")
extra = {{"{ABOUT}": ""}}
program = torch.export.load("net.pt2", extra_files=extra).module()
scripted = {{"{ABOUT}": ""}}
script = torch.jit.load("net.ts", _extra_files=scripted)
assert json.loads(extra["{ABOUT}"]) == json.loads(scripted["{ABOUT}"])
assert json.loads(extra["{ABOUT}"])["name"] == "blockswap_wrn16_1"
with torch.no_grad():
    for batch, expected in torch.load("answers.pt"):
        for model in (program, script):
            torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
assert not {{"blockswap_models", "timm"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["blockswap_wrn16_1", "resnet18"])
def test_images_of_one_channel_have_one_mean(name, tmp_path):
    model = timm.create_model(name, in_chans=1)
    numbers = ((0.4734,), (0.2009,)) if "wrn" in name else ((0.449,), (0.226,))
    # The size of a ResNet's own images takes long.
    for size in ((1, 28, 28), None) if "wrn" in name else ((1, 28, 28),):
        result = export_model(model, tmp_path / "net.ts", input_size=size)
        own = (1, *model.pretrained_cfg["input_size"][1:])
        assert (result.input_size, result.mean, result.std) == (size or own, *numbers)


def test_networks_without_weights_and_sizes_of_one_number_are_refused(tmp_path):
    with pytest.raises(ExportError, match="a network on the meta device has no weights; make it without device='meta'"):
        export_model(timm.create_model("blockswap_wrn16_1", device="meta"), tmp_path / "net.ts")
    for size in (32, (32, 32)):
        with pytest.raises(ExportError, match=r"^input_size is channels, height and width, not .*32.*size=\(3, 32,"):
            export_model(timm.create_model("blockswap_wrn16_1"), tmp_path / "net.ts", input_size=size)


def test_a_network_of_one_size_is_exported_at_no_other(tmp_path):
    fixed = timm.create_model("test_vit3", num_classes=3)
    with pytest.raises(ExportError, match=r"^the network takes images of 160x160 only, not of 64x64; use input_size"):
        export_model(fixed, tmp_path / "net.ts", input_size=(3, 64, 64))
    assert not list(tmp_path.iterdir())
    free = timm.create_model("test_vit3", num_classes=3, dynamic_img_size=True)
    assert fixed_size(fixed) == (160, 160)
    assert fixed_size(free) is fixed_size(timm.create_model("test_resnet")) is None
    assert fixed_size(timm.create_model("test_vit3", img_size=64)) == (64, 64)


def test_another_number_of_channels_is_refused(tmp_path):
    with pytest.raises(
        ExportError, match=r"^the network takes images of 1 channels, not of 3; use input_size=\(1, 28, "
    ):
        export_model(timm.create_model("blockswap_wrn16_1", in_chans=1), tmp_path / "net.ts", input_size=(3, 28, 28))


@pytest.mark.parametrize(
    ("ending", "feature_cls"),
    [(".onnx", "dict"), (".pt2", "list"), (".pt2", "dict"), (".pt2", "getter")]
    + [(".ts", feature_cls) for feature_cls in ("list", "dict", "fx", "getter")],
)
def test_features_are_several_outputs_with_names(request, feature_cls, ending, tmp_path):
    model = trained(
        "blockswap_wrn16_1", genome=TINY, features_only=True, feature_cls=feature_cls, out_indices=(0, 2, 3)
    ).eval()
    file = tmp_path / f"net{ending}"
    if ending == ".onnx":
        runtime = request.getfixturevalue("onnxruntime")
    if ending == ".ts" and feature_cls == "getter":
        with pytest.raises(ExportError, match=r"^TorchScript cannot read FeatureGetterNet: .*; use a \.pt2 or \.onnx"):
            export_model(model, file, input_size=(3, 16, 16))
        return
    result = export_model(model, file, input_size=(3, 16, 16))
    assert (result.outputs, result.genome) == (("conv1", "stages.1", "stages.2"), TINY)
    assert 0 < result.folded < result.batchnorms
    with torch.no_grad():
        expected = model(images(3))
    if ending == ".onnx":
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_outputs()] == list(result.outputs)
        found = list(map(torch.tensor, session.run(None, {"images": images(3).numpy()})))
    elif ending == ".pt2":
        found = torch.export.load(file).module()(images(3))
    else:
        found = torch.jit.load(file)(images(3))
    # The files of torch give a dictionary where the network does.
    found, expected = (list(each.values()) if isinstance(each, dict) else each for each in (found, expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_features_that_cannot_be_exported_are_named(tmp_path):
    model = timm.create_model("blockswap_wrn16_1", features_only=True, feature_cls="hook")
    with pytest.raises(ExportError, match=r"^features that hooks take cannot be exported; make the network with featu"):
        export_model(model, tmp_path / "net.pt2")

    class Texts(nn.Module):
        def forward(self, x):
            return "a bird"

    with pytest.raises(ExportError, match=r"^a network that answers with str cannot be exported; have it give "):
        export_model(Texts(), tmp_path / "net.pt2", fold=False)


def test_what_torch_export_cannot_trace_is_named(tmp_path):
    class Choice(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(ExportError, match=r"^torch.export cannot trace Choice: .*; use a .ts file$") as raised:
        export_model(Choice(), tmp_path / "net.pt2", input_size=(3, 8, 8))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "net.pt2").exists()


def test_a_pruned_network_is_exported_with_its_zeros(tmp_path):
    model = trained("blockswap_wrn16_1", genome=TINY)
    prune.l1_unstructured(model.stages[2][0].conv1, "weight", 0.5)
    pruned = fold_batchnorm(model).stages[2][0].conv1.weight
    assert pruned.count_nonzero() == pruned.numel() // 2
    export_model(model, tmp_path / "net.ts", input_size=(3, 16, 16))
    assert_same(model.eval(), torch.jit.load(tmp_path / "net.ts"), images())
    assert prune.is_pruned(model)


def test_other_answers_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("blockswap_models.export.fold_batchnorm", lambda model: trained("blockswap_wrn16_1").eval())
    with pytest.raises(ExportError, match="the file would answer other than PyTorch: the largest difference is"):
        export_model(trained("blockswap_wrn16_1", genome=TINY), tmp_path / "net.ts", input_size=(3, 16, 16))
    assert not list(tmp_path.iterdir())
    broken = trained("blockswap_wrn16_1").eval()
    broken.fc.bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="difference is nan"):
        export_model(broken, tmp_path / "net.ts", input_size=(3, 16, 16), fold=False)
    assert not list(tmp_path.iterdir())


def test_formats():
    assert tuple(FORMATS) == FORMAT_NAMES
    assert [format_of(f"a/net{ending}") for ending in (".onnx", ".pt2", ".TS")] == list(FORMATS)
    assert format_of("net.bin", "torchscript") == "torchscript"
    for path, format, message in (
        ("net.bin", None, r"the format of 'net.bin' is not clear .* \.onnx \(onnx\), \.pt2 \(torch.export\), \.ts \("),
        ("net.pt2", "onnx", r"'net.pt2' is the name of a file of torch.export, not onnx; use net.onnx"),
        ("net.onnx", "tflite", r"unknown format 'tflite'; use one of onnx, torch.export, torchscript"),
    ):
        with pytest.raises(ExportError, match=message):
            format_of(path, format)


def run(capsys, *arguments):
    status = main(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_command(capsys, onnxruntime, tmp_path):
    out = tmp_path / "net.onnx"
    options = ["--num-classes", 7, "--image-size", 16, "--no-pretrained"]
    status, printed, err = run(capsys, "wrn16_1", "--genome", TINY, *options, "--out", out, "--json")
    assert (status, err) == (0, "")
    report = json.loads(printed)
    assert report["file"] == str(out)
    assert (report["format"], report["opset"], report["weights"]) == ("onnx", OPSET, "random")
    assert (report["bytes"], report["genome"]) == (out.stat().st_size, TINY)
    assert report["input_size"] == [3, 16, 16]
    assert report["difference"] < 1e-4
    assert 0 < report["folded"] < report["batchnorms"]
    assert {"mean", "std", "model", "name"} <= report.keys()
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": images(3).numpy()})[0].shape == (3, 7)
    # A file that is there stays.
    before = out.read_bytes()
    status, _, err = run(capsys, "wrn16_1", "--out", out)
    assert (status, err) == (2, f"blockswap export: there is '{out}' already; use another name, or delete it (--out)\n")
    assert out.read_bytes() == before


def test_command_takes_weights(capsys, tmp_path):
    model = trained("blockswap_wrn16_1", genome=TINY).eval()
    save_pretrained(model, tmp_path / "saved")
    options = ["--image-size", 16, "--json"]
    for number, arguments in enumerate(
        [
            [f"local-dir:{tmp_path / 'saved'}"],
            ["wrn16_1", "--genome", TINY, "--num-classes", 5, "--checkpoint", tmp_path / "saved/model.safetensors"],
        ]
    ):
        status, printed, err = run(capsys, *arguments, *options, "--out", tmp_path / f"{number}.ts")
        assert (status, err) == (0, "")
        assert json.loads(printed)["weights"] == (str(arguments[-1]) if number else "pretrained")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.jit.load(tmp_path / f"{number}.ts")
        assert_same(model, loaded, images(3))


def test_command_says_when_weights_are_random(capsys, tmp_path):
    size = ["--image-size", 16]
    # One network without weights, one with, and the latter with another genome.
    for number, (arguments, weights) in enumerate(
        {
            ("wrn16_2",): "random: this network has learned nothing; use --checkpoint FILE for weights",
            ("wrn40_2_404k",): "pretrained",
            ("wrn40_2_404k", "--genome", "6xB4W2/6xB4W2/6xB4W2"): "random: this network has learned nothing;",
        }.items()
    ):
        status, out, _ = run(capsys, *arguments, *size, "--no-fold", "--out", tmp_path / f"{number}.ts")
        assert status == 0
        assert f"weights     {weights}" in out
        assert "none folded" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrn16_1", "--out", "net.bin"], "the format of 'net.bin' is not clear from its ending; use one of .onnx"),
        (["wrn16_1", "--out", "net.ts", "--format", "onnx"], "is the name of a file of torchscript, not onnx; use"),
        (["wrn17_2", "--out", "net.ts"], "unknown model 'wrn17_2'; did you mean"),
        (["wrn16_1", "--genome", "2xS/2xZ/2xS", "--out", "net.ts"], "unknown block type 'Z'"),
        (["wrn16_1", "--genome", "S/S/S", "--out", "net.ts"], "has stages of 2, 2 and 2 blocks"),
        (["wrn16_1", "--image-size", "0", "--out", "net.ts"], "--image-size is at least 1 pixel, not 0"),
        (["wrn16_2", "--pretrained", "--out", "net.ts"], "no pretrained weights for blockswap_wrn16_2; 'blockswap"),
        (
            ["wrn16_1", "--pretrained", "--checkpoint", "a", "--out", "net.ts"],
            "exclude each other; leave one of them out",
        ),
        (["wrn16_1", "--checkpoint", "none", "--out", "net.ts"], "no checkpoint 'none'"),
        (["test_resnet", "--genome", "S", "--out", "net.ts"], "test_resnet has stages of 1, 1, 1 and 1 blocks"),
        (["wrn16_1", "--out", "absent/net.ts"], "no folder 'absent'; use a file in a folder that exists (--out)"),
    ],
)
def test_mistakes(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(capsys, monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = run(capsys, "wrn16_1", "--out", tmp_path / "net.onnx")
    assert (status, err) == (
        2,
        "blockswap export: an ONNX file needs onnx, onnxruntime and onnxscript; "
        'pip install "blockswap_models[export]"\n',
    )
    assert not list(tmp_path.iterdir())
