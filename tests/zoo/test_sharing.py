"""Weights with their cards: made from a run, pushed, loaded again, refused when they are not what their card says."""

import ast
import hashlib
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from blockswap_models import Budget, Genome, SearchSpace, count, save_pretrained
from blockswap_models.cli.main import main
from blockswap_models.searching.probe_images import noise_minibatch
from blockswap_models.training.evaluate import evaluate, evaluation_loader, load_weights
from blockswap_models.zoo import blockswap
from blockswap_models.zoo.cards import (
    WeightsError,
    check_weights,
    make_card,
    model_card,
    read_card,
    shipped,
    training_command,
)
from blockswap_models.zoo.genomes import GENOMES

GENOME = "2xW1/2xB2W1/2xW1"
TRAIN = f"train wrn16_1 --genome {GENOME} --data torch/cifar10 --epochs 1 --batch-size 8 --seed 3 --device cpu"


def run(capsys, *arguments):
    status = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The card of a network trained for a moment on noise; its weights lie beside it, its run in the folder `run`."""
    folder = tmp_path_factory.mktemp("packed")

    def read(root, name="cifar10", train=True):
        minibatch = noise_minibatch(SearchSpace("wrn16_1"), 32 if train else 24, int(train))
        return (minibatch.images * 50 + 128).clamp(0, 255).byte(), minibatch.labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockswap_models.training.loaders.read_cifar", read)
        patch.setattr("blockswap_models.training.evaluate.read_cifar", read)
        assert main([*TRAIN.split(), "--data-dir", str(folder), "--out", str(folder / "run")]) == 0
        pack = ["pack", folder / "run", "--tag", "noise", "--data-dir", folder, "--out", folder, "--device", "cpu"]
        assert main([str(each) for each in pack]) == 0
    return folder / "blockswap_wrn16_1.noise.json"


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("blockswap train wrn16_1 --num-classes 5", "blockswap train wrn16_1 --num-classes 5"),
        (
            "blockswap train blockswap_wrn16_1 wrn40_1 --resume --lr=0.2",
            "blockswap train blockswap_wrn16_1 wrn40_1 --lr=0.2",
        ),
        (
            "torchrun --nproc-per-node=4 -m blockswap_models train wrn16_1 --data-dir=/a/b --out /c/run --data torch/x",
            "torchrun --nproc-per-node=4 -m blockswap_models train wrn16_1 --data-dir=DATA --out run --data torch/x",
        ),
        (
            "blockswap train wrn16_1 --data /a/photos --teacher-checkpoint /b/t.safetensors --init ../w.pth",
            "blockswap train wrn16_1 --data DATA --teacher-checkpoint t.safetensors --init w.pth",
        ),
        (
            "blockswap train /home/me/search.jsonl --data=/home/me/photos --teacher=/home/me/net --out=/home/me/run",
            "blockswap train search.jsonl --data=DATA --teacher=net --out=run",
        ),
        (
            "blockswap make --data=photos --other=/home/me/x --teacher local-dir:/home/me/net",
            "blockswap make --data=photos --other=x --teacher local-dir:net",
        ),
    ],
)
def test_the_command_of_a_run_is_the_one_that_was_given(given, command):
    assert training_command({"command": given.split()}) == command


def test_a_run_of_an_older_version_says_no_command(capsys, packed, tmp_path):
    shutil.copytree(packed.parent / "run", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    del summary["command"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    status, _, err = run(capsys, "pack", tmp_path / "run", "--tag", "x", "--out", tmp_path / "packed")
    assert status == 2
    assert "does not say its command; train it with this version" in err


def test_five_classes_have_no_top5_error_and_a_note_comes_first(packed):
    summary = json.loads((packed.parent / "run" / "summary.json").read_text())
    tested = {"top1_error": 40.0, "top5_error": 0.0}
    few = make_card("a.b", {**summary, "num_classes": 5}, b"", "float16", tested, "blockswap train a", "Not for ducks.")
    assert few["test"]["float16"] == {"top1_error": 40.0}
    text = model_card(few, "local-dir:x")
    assert "top-5" not in text
    assert text.partition("# a.b\n\n")[2].startswith("Not for ducks.\n\nA residual network")
    many = make_card("a.b", summary, b"", "float16", tested, "blockswap train a")
    assert many["test"]["float16"] == tested
    assert "note" not in many
    assert "top-5" in model_card(many, "local-dir:x")


def test_a_model_card_can_be_read_whatever_the_names_in_it(packed):
    card = {**read_card(packed), "data": "bird: [a, b]", "label_names": ["a|b", "c"], "command": "blockswap train a"}
    text = model_card(card, 'local-dir:my "net"')
    # A folder of images is no dataset that the Hub knows, and its name may be no YAML.
    assert text.startswith("---\nlibrary_name: timm\n")
    assert "datasets:" not in text
    code = next(line for line in text.splitlines() if "create_model(" in line)
    call = ast.parse(code).body[0].value.func.value
    assert call.args[0].value == 'local-dir:my "net"'
    assert "| classes | 2: a\\|b, c |" in text
    assert "DATA" not in text
    of_the_hub = model_card({**card, "data": "hfds/me/birds"}, "local-dir:x")
    assert 'datasets: ["me/birds"]\n---\n' in of_the_hub
    assert 'datasets: ["cifar10"]\n---\n' in model_card(read_card(packed), "local-dir:x")
    assert "where DATA is the folder" in model_card(read_card(packed), "local-dir:x")


def test_weights_are_packed_for_images_of_another_size(capsys, tmp_path):
    for split, number in {"train": 8, "val": 4}.items():
        for place, name in enumerate("ab"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for each in range(number):
                Image.new("RGB", (32, 32), (30 * each, 200 * place, 0)).save(
                    tmp_path / "images" / split / name / f"{each}.png"
                )
    recipe = ["--epochs", 1, "--batch-size", 8, "--num-classes", 2, "--workers", 0, "--device", "cpu"]
    status, _, err = run(
        capsys, "train", "wrn16_1", "--data", tmp_path / "images", *recipe, "--out", tmp_path / "run", "--seed", 1
    )
    assert status == 0, err
    pack = ["pack", tmp_path / "run", "--tag", "x", "--workers", 0, "--device", "cpu", "--json"]
    status, _, err = run(capsys, *pack, "--image-size", 48, "--out", tmp_path / "packed")
    assert status == 0, err
    card = read_card(tmp_path / "packed" / "blockswap_wrn16_1.x.json")
    model = timm.create_model("blockswap_wrn16_1", num_classes=2)
    assert card["input_size"] == [3, 48, 48]
    assert card["macs"] == count(model, (3, 48, 48)).macs
    # Both errors are of that size.
    weights = tmp_path / "packed" / "blockswap_wrn16_1.x.safetensors"
    for file, dtype in {tmp_path / "run" / "model.safetensors": "float32", weights: "float16"}.items():
        load_weights(model, file)
        loader = evaluation_loader(model, str(tmp_path / "images"), workers=0, image_size=48)
        assert card["test"][dtype]["top1_error"] == evaluate(model, loader).top1_error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("/home/me/photos", "/mnt/runs/large", "/home/me/old.pth"), ("photos", "large", "old.pth")),
        (("torch/cifar10", "hf-hub:me/large", "teacher"), ("torch/cifar10", "hf-hub:me/large", "teacher")),
        (("photos", None, None), ("photos", None, None)),
    ],
)
def test_a_card_names_no_place_of_the_machine(packed, given, said):
    summary = json.loads((packed.parent / "run" / "summary.json").read_text())
    keys = ("data", "teacher", "init")
    tested = {"top1_error": 40.0, "top5_error": 0.0}
    card = make_card("a.b", {**summary, **dict(zip(keys, given, strict=True))}, b"", "float16", tested, "blockswap")
    assert tuple(card[key] for key in keys) == said


def test_the_cfg_of_weights_has_the_size_of_their_images(packed, monkeypatch, tmp_path):
    card = {**read_card(packed), "name": "blockswap_resnet34_3m.mine", "input_size": [3, 128, 160]}
    path = tmp_path / "blockswap_resnet34_3m.mine.safetensors"
    path.with_suffix(".json").write_text(json.dumps(card))
    path.touch()
    monkeypatch.setattr(blockswap, "shipped", lambda: {path.stem: path})
    cfg = blockswap._cfgs()["blockswap_resnet34_3m.mine"]
    assert (cfg["input_size"], cfg["pool_size"], cfg["file"]) == ((3, 128, 160), (4, 5), str(path))
    assert blockswap._cfgs()["blockswap_resnet34"]["input_size"] == (3, 224, 224)


def test_weights_beyond_the_range_of_half_precision_are_refused(capsys, packed, tmp_path):
    shutil.copytree(packed.parent / "run", tmp_path / "run")
    tensors = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    tensors["fc.bias"][0] = 1e5
    safetensors.torch.save_file(tensors, tmp_path / "run" / "model.safetensors")
    status, _, err = run(capsys, "pack", tmp_path / "run", "--tag", "x", "--out", tmp_path / "packed")
    assert (status, err.count("\n")) == (2, 1)
    assert "are too large for float16, or not finite" in err
    assert not (tmp_path / "packed").exists()


def load(path):
    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_card_says_what_was_trained_and_what_is_in_the_file(packed):
    card, summary = read_card(packed), json.loads((packed.parent / "run" / "summary.json").read_text())
    weights = packed.with_suffix(".safetensors")
    assert card["name"] == "blockswap_wrn16_1.noise"
    for key in ("genome", "params", "macs", "recipe", "seed", "versions", "hardware", "seconds", "data", "teacher"):
        assert card[key] == summary[key]
    assert card["test"]["float32"] == {key: summary[key] for key in ("top1_error", "top5_error")}
    assert (card["test"]["images"], card["file"]["bytes"]) == (24, weights.stat().st_size)
    # What a budget of size counts, for a network of this many classes.
    space = SearchSpace("wrn16_1", Genome(GENOME).blocks, num_classes=card["num_classes"])
    assert space.resolve(Budget(size="100%"))[0].cost(card["genome"]).size == weights.stat().st_size
    assert card["command"] == (f"blockswap {TRAIN} --data-dir DATA --out run")
    assert card["input_size"] == [3, 32, 32]
    # What a run without a teacher, and by a cosine, has no use for.
    assert not {"beta", "mode", "temperature", "step_epochs", "warmup", "small_size"} & card["recipe"].keys()
    assert {"lr", "epochs", "cutout", "schedule"} <= card["recipe"].keys()
    tensors = safetensors.torch.load_file(weights)
    whole = safetensors.torch.load_file(packed.parent / "run" / "model.safetensors")
    halved = {name for name, each in tensors.items() if each.dtype == torch.float16}
    assert halved == {name for name, _ in timm.create_model("blockswap_wrn16_1", genome=GENOME).named_parameters()}
    # Statistics of BN, which float16 may not hold.
    assert {tensors[name].dtype for name in whole if "running" in name} == {torch.float32}
    assert all(torch.equal(tensors[name], whole[name].to(tensors[name].dtype)) for name in whole)
    # It is half as long, and the numbers are those that were tested.
    assert weights.stat().st_size < 0.6 * (packed.parent / "run" / "model.safetensors").stat().st_size
    assert card["test"]["float16"].keys() == card["test"]["float32"].keys()


def test_packed_weights_load_as_a_file(packed):
    overlay = {"file": str(packed.with_suffix(".safetensors"))}
    model = timm.create_model("blockswap_wrn16_1", pretrained=True, genome=GENOME, pretrained_cfg_overlay=overlay)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    whole = safetensors.torch.load_file(packed.parent / "run" / "model.safetensors")
    assert torch.equal(model.conv1.weight, whole["conv1.weight"].half().float())


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "altered":
        content[-1] ^= 1
    else:
        del content[-100:]
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["altered", "truncated"])
def test_damaged_weights_are_refused(packed, tmp_path, how):
    weights = tmp_path / "net.safetensors"
    shutil.copy(packed.with_suffix(".safetensors"), weights)
    shutil.copy(packed, tmp_path / "net.json")
    check_weights(weights)
    damage(weights, how)
    said = "it was altered" if how == "altered" else r"[\d,]+ of [\d,]+ bytes are there"
    overlay = {"file": str(weights)}
    with pytest.raises(WeightsError, match=f"net.safetensors' are not those of their card: {said} .*; get them again"):
        timm.create_model("blockswap_wrn16_1", pretrained=True, genome=GENOME, pretrained_cfg_overlay=overlay)
    weights.unlink()
    with pytest.raises(WeightsError, match=r"no weights .* though there is their card"):
        check_weights(weights)


def test_a_pushed_folder_gives_the_network_back(capsys, packed, tmp_path):
    folder = tmp_path / "net"
    status, out, _ = run(capsys, "push", packed, "--out", folder, "--json")
    assert status == 0
    assert json.loads(out) == {
        "place": str(folder),
        "load": f"timm.create_model('local-dir:{folder}', pretrained=True)",
    }
    assert sorted(each.name for each in folder.iterdir()) == [
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    ]
    model = load(folder)
    assert (str(model.genome), model.num_classes) == (GENOME, 10)
    tensors = safetensors.torch.load_file(packed.with_suffix(".safetensors"))
    assert all(torch.equal(each, tensors[name].to(each.dtype)) for name, each in model.state_dict().items())
    card, readme = read_card(folder / "card.json"), (folder / "README.md").read_text()
    assert card["test"] == read_card(packed)["test"]
    for fact in (GENOME, card["command"], card["file"]["sha256"], f"{card['test']['float16']['top1_error']:.2f} %"):
        assert fact in readme
    assert re.match(r"---\nlibrary_name: timm\n", readme)
    damage(folder / "model.safetensors", "altered")
    with pytest.raises(WeightsError, match="it was altered"):
        load(folder)
    status, _, err = run(capsys, "push", packed, "--out", folder)
    assert (status, err.count("\n")) == (2, 1)
    assert "is not empty; use a new folder (--out)" in err


def test_new_weights_in_a_folder_are_not_held_to_an_old_card(packed, tmp_path):
    main(["push", str(packed), "--out", str(tmp_path / "net")])
    model = load(tmp_path / "net")
    torch.nn.init.zeros_(model.fc.bias)
    with pytest.raises(ValueError, match=r"^a card is of a model.safetensors; leave out safe_serialization=False, or"):
        save_pretrained(model, tmp_path / "net", card=read_card(packed), safe_serialization=False)
    assert (tmp_path / "net" / "README.md").exists()
    save_pretrained(model, tmp_path / "net")
    # Nor is the text of the old card.
    assert {each.name for each in (tmp_path / "net").iterdir()} == {"config.json", "model.safetensors"}
    assert torch.equal(load(tmp_path / "net")(images()), model(images()))
    with pytest.raises(WeightsError, match="has no error of float64 weights"):
        save_pretrained(model.double(), tmp_path / "net", card=read_card(packed))
    assert not [each for each in (tmp_path / "net").iterdir() if each.is_dir()], "it left a temporary folder"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A repository of the Hub that has been downloaded, without network: its folder."""
    folder = tmp_path / "hub" / "models--someone--net"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder / "snapshots" / ("0" * 40)


def test_the_hub_gives_the_network_back(capsys, packed, hub, tmp_path):
    assert run(capsys, "push", packed, "--out", hub)[0] == 0
    name, kwargs = "hf-hub:someone/net", {"pretrained": True, "cache_dir": tmp_path / "hub"}
    model = timm.create_model(name, **kwargs).eval()
    assert torch.equal(model(images()), load(hub)(images()))
    assert timm.create_model(name, **kwargs, num_classes=3).num_classes == 3
    damage(hub / "model.safetensors", "truncated")
    with pytest.raises(WeightsError, match="bytes are there"):
        timm.create_model(name, **kwargs)


def test_nothing_but_safetensors_comes_from_the_hub(monkeypatch, packed, hub, tmp_path):
    main(["push", str(packed), "--out", str(hub)])

    def gone(repository, filename, **_):
        if filename.endswith(".safetensors"):
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return hub / filename

    monkeypatch.setattr("blockswap_models.zoo.blockswap.hf_hub_download", gone)
    with pytest.raises(WeightsError, match=r"someone/net has no model.safetensors, and nothing else is loaded"):
        timm.create_model("hf-hub:someone/net", pretrained=True, cache_dir=tmp_path / "hub")


class FakeHub:
    """Takes what would be uploaded."""

    def __init__(self):
        self.calls = FakeHub.calls = {}

    def create_repo(self, name, **kwargs):
        self.calls["made"] = (name, kwargs)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls["files"] = {each.name: each.read_bytes() for each in Path(folder_path).iterdir()}


def test_a_push_to_the_hub(capsys, monkeypatch, packed):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    status, out, _ = run(capsys, "push", packed, "--repo", "someone/net", "--private")
    assert (status, out) == (0, "someone/net: timm.create_model('hf-hub:someone/net', pretrained=True)\n")
    assert FakeHub.calls["made"] == ("someone/net", {"private": True, "exist_ok": True})
    assert FakeHub.calls["files"].keys() == {"README.md", "card.json", "config.json", "model.safetensors"}
    assert b'timm.create_model("hf-hub:someone/net", pretrained=True)' in FakeHub.calls["files"]["README.md"]

    def refuse(*_, **__):
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required.\nLog in.")

    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    status, _, err = run(capsys, "push", packed, "--repo", "someone/net")
    assert (status, err) == (2, "blockswap push: the Hub did not take someone/net: Token is required.\n")


def test_mistakes_are_one_line(capsys, packed, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    run_folder = packed.parent / "run"
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(read_card(packed) | {"genome": None}))
    plain.with_suffix(".safetensors").write_bytes(packed.with_suffix(".safetensors").read_bytes())
    for arguments, message in [
        (["push", "wrn16_1.nothing", "--out", tmp_path / "x"], "no weights 'wrn16_1.nothing' in the zoo; use "),
        (["push", tmp_path / "other.json", "--out", tmp_path / "x"], "is no card of weights; use one that"),
        (["push", tmp_path / "none.json", "--out", tmp_path / "x"], "cannot read the card"),
        (["push", plain, "--out", tmp_path / "x"], "is a network of timm with its own blocks; use timm.models.push_to"),
        (["push", packed, "--out", tmp_path / "other.json"], "other.json' is a file; use a new folder (--out)"),
        (["pack", run_folder, "--tag", "a", "--out", tmp_path / "other.json"], "other.json' is a file; use a folder"),
        (["push", packed, "--repo", "net"], "a repository is USER/NAME, not 'net' (--repo)"),
        (["push", packed, "--out", tmp_path / "x", "--private"], "--private is for a repository on the Hub"),
        (["pack", tmp_path, "--tag", "x", "--out", tmp_path], "no finished run in"),
        (["pack", run_folder, "--tag", "a.b", "--out", tmp_path], "a tag has no dots, slashes or spaces; 'a.b' has"),
        (["pack", run_folder, "--tag", "noise", "--out", packed.parent], "already; use another --tag or --out"),
    ]:
        status, out, err = run(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert not (tmp_path / "x").exists()


# -- what comes with the package -------------------------------------------------------------------------------------


# The weights that a wheel must have, with the start of each file's SHA-256 and the top-1 error in percent on the first
# 1,000 test images.
PINNED = {
    "blockswap_resnet34_3m.at_in284_15": ("d23a5b1dfade67cd", 54.6),
    "blockswap_resnet34_8m.at_in284_9": ("ef00827c354e18c6", 58.2),
    "blockswap_wrn16_1.at_cifar10_12": ("a878f0566956af81", 12.3),
    "blockswap_wrn40_2.cifar10_32": ("8c9425e2bb55ebaf", 8.3),
    "blockswap_wrn40_2_162k.at_cifar10_22": ("ca20550983eed04a", 10.0),
    "blockswap_wrn40_2_217k.at_cifar10_22": ("031feb3313bdb240", 9.7),
    "blockswap_wrn40_2_289k.at_cifar10_20": ("17c1a49ff03b6b63", 10.5),
    "blockswap_wrn40_2_404k.at_cifar10_34": ("97e34108442ef614", 9.5),
    "blockswap_wrn40_2_556k.at_cifar10_18": ("df3e385c7040497b", 9.4),
    "blockswap_wrn40_2_811k.at_cifar10_22": ("7f0d3bda6f6f4ef2", 9.6),
}


def test_the_zoo_ships_its_weights_and_timm_knows_all_of_them():
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in shipped().items()}
    assert digests == {name: digest for name, (digest, _) in PINNED.items()}
    assert timm.list_pretrained("blockswap_*") == sorted(shipped())


@pytest.mark.parametrize("name", shipped())
def test_shipped_weights_are_those_of_their_cards(name):
    weights = shipped()[name]
    card = read_card(weights.with_suffix(".json"))
    check_weights(weights)
    entry = name.partition(".")[0]
    assert (card["name"], card["genome"]) == (name, GENOMES[entry])
    assert name in timm.list_pretrained("blockswap_*")
    model = timm.create_model(name, pretrained=True)
    cost = count(model)
    assert (card["params"], card["macs"]) == (cost.params, cost.macs)
    assert card["file"]["dtype"] == "float16"
    # What is shipped loses next to nothing by its precision.
    errors = card["test"]
    assert abs(errors["float16"]["top1_error"] - errors["float32"]["top1_error"]) < 0.1
    assert errors["images"] == (10_000 if "wrn" in name else 2_750)
    # It is not an ImageNet-1k network, and its card begins with that.
    assert "in1k" not in name
    assert "wrn" in name or card["note"].startswith("This is not an ImageNet-1k network")


@pytest.mark.data
@pytest.mark.parametrize("name", shipped())
def test_shipped_weights_have_their_error(capsys, request, name):
    if "wrn" in name:
        data = ["torch/cifar10", "--data-dir", request.getfixturevalue("cifar_dir")]
    else:
        data = [request.getfixturevalue("imagenet_284")]
    arguments = ["--data", *data, "--images", 1000, "--device", "cpu", "--workers", 0, "--json"]
    status, out, err = run(capsys, "evaluate", name, *arguments)
    assert status == 0, err
    # On other processors one or two of the images may be on the other side.
    assert json.loads(out)["top1_error"] == pytest.approx(PINNED[name][1], abs=0.25)


@pytest.mark.data
@pytest.mark.parametrize("name", [each for each in shipped() if "wrn" not in each])
def test_imagenet_weights_have_the_errors_of_their_notes(capsys, imagenet_val1300, name):
    data = ["--data", imagenet_val1300, "--class-map", f"{imagenet_val1300}_classes.txt"]
    status, out, err = run(capsys, "evaluate", name, *data, "--device", "cpu", "--workers", 0, "--json")
    assert status == 0, err
    found, note = json.loads(out), read_card(shipped()[name].with_suffix(".json"))["note"]
    said = re.search(r"On 1,300 images of .* its top-1 error is ([\d.]+) % and its top-5 error ([\d.]+) %", note)
    assert [found["top1_error"], found["top5_error"]] == pytest.approx([*map(float, said.groups())], abs=0.3)
    assert found["images"] == 1300
