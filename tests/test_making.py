"""From a folder of images to a network in files: the stages, going on after a stop, and images that do not do."""

import ast
import json
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import run
from PIL import Image
from safetensors import SafetensorError

import blockswap_models.making as making
from blockswap_models import BudgetError, DataError, ExportError, Made, MakeError, SearchSpace, WeightsError, make
from blockswap_models.searching.record import Record
from blockswap_models.training.evaluate import evaluate, evaluation_loader
from blockswap_models.training.models import is_folder
from blockswap_models.training.run_folder import TrainingError, read_summary
from blockswap_models.zoo.cards import file_digest

# The least of everything.
LEAST = {"network": "wrn16_1", "samples": 2, "epochs": 1, "batch_size": 4, "workers": 1, "device": "cpu"}
# The same on every machine.
LEAST["dtype"] = "float32"
CLASSES = ("cat", "dog", "fox")


def write(root, classes=CLASSES, number=6, mode="RGB"):
    """Writes images of noise, brighter from class to class."""
    random = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for each in range(number):
            pixels = random.integers(20 * place, 20 * place + 60, size=(40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{each}.png")
    return root


def make_least(photos, out, budget="60k", **others):
    """Makes a network as fast as one can be; returns it and what was said."""
    said = []
    return make(photos, out, budget, **{**LEAST, "say": said.append, **others}), said


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write(tmp_path_factory.mktemp("making") / "photos")


@pytest.fixture(scope="module")
def made(photos):
    """A network that was stopped at the end of its search and gone on with, and what was said by each call."""
    folder = photos.parent / "net"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "search", partial(making.search, refine=0))
        patch.setattr(making, "plot_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_least(photos, folder)
    stopped = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result, said = make_least(photos, folder)
    return result, said, stopped


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_trains_in_the_faster_type_and_goes_on_in_it(photos, tmp_path, monkeypatch, fast, dtype):
    asked = []

    def stop(settings, *_, **__):
        asked.append(settings.amp)
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "train_run", stop)
    # The second machine is of the other kind.
    for here in (fast, not fast):
        monkeypatch.setattr(making, "computes_bfloat16", lambda here=here: here)
        with pytest.raises(KeyboardInterrupt):
            make_least(photos, tmp_path / "net", dtype="auto")
    assert json.loads((tmp_path / "net" / making.PLAN).read_text())["plan"]["dtype"] == dtype
    assert asked == ["bfloat16" if fast else None] * 2
    with pytest.raises(ValueError, match=r"^no precision 'float8'; use auto, float32, bfloat16 \(dtype=\)$"):
        make_least(photos, tmp_path / "net", dtype="float8")


def test_what_was_begun_before_precisions_were_written_goes_on_in_float32(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "train_run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(making, "computes_bfloat16", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        make_least(photos, tmp_path / "net")
    path = tmp_path / "net" / making.PLAN
    found = json.loads(path.read_text())
    del found["plan"]["dtype"]
    path.write_text(json.dumps(found))
    (tmp_path / "net" / "teacher").mkdir()
    (tmp_path / "net" / "teacher" / "log.jsonl").touch()
    with pytest.raises(KeyboardInterrupt):
        make_least(photos, tmp_path / "net", dtype="auto")
    with pytest.raises(MakeError, match=r"was begun with dtype \"float32\", not \"bfloat16\"; use the same again"):
        make_least(photos, tmp_path / "net", dtype="bfloat16")


def test_what_is_made_is_what_is_said(made, photos):
    result, said, _ = made
    folder = Path(result.folder)
    assert {"config.json", "model.safetensors", "card.json", "README.md", "model.onnx", "search.svg"} <= {
        path.name for path in folder.iterdir()
    }
    net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert (str(net.genome), sum(p.numel() for p in net.parameters())) == (result.genome, result.params)
    assert 58_500 <= result.params <= 61_500
    assert tuple(net.pretrained_cfg["label_names"]) == result.classes == CLASSES
    card = json.loads((folder / "card.json").read_text())
    # The call in the card makes the same.
    asked = eval(card["command"], {"make": lambda *places, **options: options, "DATA": 0, "NET": 0})
    plan = json.loads((folder / making.PLAN).read_text())["plan"]
    assert asked.pop("budget") == plan["budget"]
    assert asked == {key: plan[key] for key in asked}
    assert asked.keys() == {
        *("network", "teacher", "image_size", "in_chans", "samples", "epochs", "batch_size", "val_share", "seed"),
        "dtype",
    }
    assert card["test"]["float32"] == {"top1_error": result.top1_error}
    assert (card["label_names"], card["test"]["images"], result.images) == (list(CLASSES), 3, 3)
    student, teacher = (read_summary(folder / name) for name in ("student", "teacher"))
    assert (student["recipe"]["soft_labels"], student["teacher"]) == (0.5, "blockswap_wrn16_1")
    assert teacher["genome"] == "2xS/2xS/2xS"
    assert result.teacher_error == teacher["top1_error"]
    # No image that is measured on was learned from, by whichever network.
    assert {each["val_share"] for each in (student, teacher)} == {0.2}
    assert any("15 of its 18 images train and 3 are held out for validation" in line for line in said)
    assert "the smallest class has 5 images to train on: few to learn from" in said
    assert "for 15 images: minibatches of 4, 1 epoch, in float32 (others: batch_size=, epochs=, dtype=)" in said


def test_the_onnx_file_answers_as_the_folder_does(made, photos):
    onnxruntime = pytest.importorskip("onnxruntime")
    result, _, _ = made
    session = onnxruntime.InferenceSession(result.onnx, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["label_names"]) == list(CLASSES)
    images = torch.randn(2, *result.input_size)
    net = timm.create_model(f"local-dir:{result.folder}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.allclose(
            torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), net(images), atol=1e-4
        )
    assert evaluate(net, evaluation_loader(net, str(photos), workers=0)).images == 18


def test_what_is_done_is_not_done_again(made, photos):
    result, _, stopped = made
    now = {path: path.stat().st_mtime_ns for path in stopped}
    assert {path.name for path in stopped if now[path] != stopped[path]} == set()
    assert {"search.jsonl", "checkpoint.pth"} <= {path.name for path in stopped}
    with pytest.MonkeyPatch.context() as patch:
        for stage in ("train_run", "search", "save_pretrained", "export_model", "plot_record"):
            patch.setattr(making, stage, None)
        again, _ = make_least(photos, result.folder)
    assert again.genome == result.genome
    assert again.top1_error == result.top1_error


def test_a_folder_of_another_network_is_left_alone(made, photos, tmp_path):
    result, _, _ = made
    with pytest.raises(
        MakeError, match=r"was begun with budget .*58500.*, not .*; use the same again, or another out="
    ):
        make_least(photos, result.folder, "70k")
    with pytest.raises(MakeError, match=r"was begun with seed 0, not 1; use the same again"):
        make_least(photos, result.folder, seed=1)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(MakeError, match=r"has other files in it; use a new folder \(out=\)"):
        make_least(photos, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("number", [{"workers": 0}, {"samples": 0}, {"seed": -1}])
def test_numbers_that_only_the_search_uses_are_refused_at_the_start(photos, tmp_path, no_training, number):
    ((name, value),) = number.items()
    with pytest.raises(ValueError, match=rf"^{name} is .*, not {value}$"):
        make_least(photos, tmp_path / "net", **number)
    assert not (tmp_path / "net").exists()


def test_a_budget_that_nothing_meets_is_told_before_the_teacher_is_trained(photos, tmp_path, no_training):
    (tmp_path / "net").mkdir()
    with pytest.raises(BudgetError, match="no genome of blockswap_wrn16_1 meets params 9,000,000"):
        make_least(photos, tmp_path / "net", "9m")


@pytest.mark.parametrize("out", ["", "net", "cat/net"])
def test_a_network_is_no_class_of_its_images(photos, no_training, out):
    with pytest.raises(DataError, match=r"would be a class of the images in '.*photos'; use one that is not among"):
        make_least(photos, photos / out)
    assert sorted(each.name for each in photos.iterdir()) == sorted(CLASSES)


@pytest.mark.parametrize("text", ['{"plan": []}', "[]", "{}", "no JSON"])
def test_a_damaged_plan_is_said_to_be(photos, tmp_path, no_training, text):
    (tmp_path / making.PLAN).write_text(text)
    for dtype in ("auto", "float32"):
        with pytest.raises(MakeError, match=r"^'.*make.json' is damaged; use a new folder \(out=\)$"):
            make_least(photos, tmp_path, dtype=dtype)


def test_room_is_asked_for_where_there_is_none(photos, tmp_path, no_training):
    (tmp_path / "file").touch()
    with pytest.raises(MakeError, match=r"^'.*/file' is a file; use a new folder \(out=\)$"):
        make_least(photos, tmp_path / "file")
    with pytest.raises(MakeError, match=r"^cannot use '.*/file/net': Not a directory; what is done is kept, so mend"):
        make_least(photos, tmp_path / "file" / "net")


def test_a_folder_is_the_same_with_a_slash(photos, tmp_path, no_training):
    for data in (photos, f"{photos}/", photos):
        with pytest.raises(RuntimeError, match="training"):
            make_least(data, tmp_path / "net")
        # Something is done, so that another plan is refused.
        (tmp_path / "net" / "teacher").mkdir(exist_ok=True)
        (tmp_path / "net" / "teacher" / "some").touch()
    plan = json.loads((tmp_path / "net" / making.PLAN).read_text())["plan"]
    assert plan["data"] == str(photos)
    # As an older version wrote it.
    (tmp_path / "net" / making.PLAN).write_text(json.dumps({"plan": {**plan, "data": f"{photos}/"}}))
    with pytest.raises(RuntimeError, match="training"):
        make_least(photos, tmp_path / "net")


def test_a_search_goes_on_in_its_precision(photos, tmp_path, monkeypatch):
    asked = []
    budget = making.Budget.of("60k")
    plan, _, _, holdout = making._plan(str(photos), tmp_path, budget, "wrn16_1", "train", None, None, 2, 1, 4, None, 0)
    plan["dtype"] = "float32"
    here = making._Place(tmp_path, torch.device("cpu"), 1, [], lambda _: None, False)

    def stop(*_, dtype, resume, **__):
        asked.append((dtype, resume))
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "search", stop)
    for header in (None, {}, {"dtype": "bfloat16"}, {"dtype": "nonsense"}):
        if header is not None:
            with Record(tmp_path / f"{len(asked)}", header):
                pass
            (tmp_path / f"{len(asked)}").replace(tmp_path / making.RECORD)
        with pytest.raises(KeyboardInterrupt):
            making._search(plan, budget, making._settings(plan), holdout, here)
    assert asked == [(None, False), (torch.float32, True), (torch.bfloat16, True), (None, True)]


@pytest.fixture
def no_training(monkeypatch):
    """Stops before a teacher is trained."""

    def stop(*_, **__):
        raise RuntimeError("training")

    monkeypatch.setattr(making, "train_run", stop)


def test_images_that_do_not_do(tmp_path, no_training):
    one = write(tmp_path / "one", ["cat"])
    with pytest.raises(DataError, match="has one class only, 'cat'"):
        make_least(one, tmp_path / "net")
    single = write(tmp_path / "single", number=1)
    with pytest.raises(DataError, match="has one image only, so that none is left to validate on"):
        make_least(single, tmp_path / "net")
    with pytest.raises(DataError, match="no folder"):
        make_least(tmp_path / "none", tmp_path / "net")
    damaged = write(tmp_path / "damaged", number=2)
    for path in (damaged / "dog").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^no image of the class 'dog' of '.*damaged' can be read, such as '.*/dog/"):
        make_least(damaged, tmp_path / "net")
    with pytest.raises(BudgetError, match="no genome of blockswap_wrn16_1 meets params 9,000,000"):
        make_least(write(tmp_path / "photos"), tmp_path / "net", "9m")
    assert not (tmp_path / "net").exists()


def test_three_images_a_class_are_few_and_said_so(tmp_path, no_training):
    said = []
    few = write(tmp_path / "few", number=3)
    (few / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="training"):
        make(few, tmp_path / "net", "60k", network="wrn16_1", say=said.append)
    assert "the smallest class has 2 images to train on: few to learn from" in said
    # A minibatch is no larger than what there is.
    assert any(line.startswith("for 7 images: minibatches of 7, 40 epochs") for line in said)


def test_lengths_and_minibatches_by_the_number_of_images():
    recipes = [making.small_data_recipe(images) for images in (4, 240, 1_800, 1_000_000)]
    assert [(each.batch_size, each.epochs) for each in recipes] == [(4, 40), (16, 40), (64, 33), (128, 30)]
    assert recipes[1].lr == pytest.approx(0.025)
    with pytest.raises(MakeError, match=r"a minibatch has 2 to 20 images here, not 64; use another batch_size="):
        making.small_data_recipe(20, batch_size=64)
    with pytest.raises(MakeError, match="1 image to train on is too few"):
        making.small_data_recipe(1)


def test_teachers_that_do_not_fit_are_known_before_the_search(made, photos, tmp_path, no_training, monkeypatch):
    result, _, _ = made
    monkeypatch.setattr(making, "search", None)
    teacher = f"{result.folder}/teacher"
    grey = write(tmp_path / "grey", mode="L")
    weights = f"{teacher}/model.safetensors"
    with pytest.raises(ValueError, match=r"is of a network for images of 3 channels, this one takes 1; use in_chans=3"):
        make_least(grey, tmp_path / "net", teacher=weights)
    with pytest.raises(ValueError, match="unknown model 'nonsense'"):
        make_least(photos, tmp_path / "other", teacher="nonsense")
    # Nothing was done, so that another teacher is no other network.
    with pytest.raises(WeightsError, match=r"; use teacher=FILE for your own, or leave out teacher= to train it$"):
        make_least(photos, tmp_path / "other", teacher="blockswap_wrn16_2")
    with pytest.raises(RuntimeError, match="training"):
        make_least(photos, tmp_path / "other")
    assert json.loads((tmp_path / "other" / "make.json").read_text())["plan"]["teacher"] == "train"
    # One of as many classes of other names teaches by attention alone, and so does one of another number.
    for teacher, classes in (("blockswap_wrn40_2_404k", "abcdefghij"), (weights, "ab")):
        facts = making.image_facts(str(write(tmp_path / classes, classes, 2)))
        settings = making.RunSettings(("blockswap_wrn16_1",), "x", num_classes=len(classes), in_chans=3)
        given = making._given_teacher(teacher, settings)
        weight, why = making._soft_labels(given, facts)
        assert weight == 0
        assert "by attention transfer alone, since the " in why


def test_a_teacher_whose_weights_cannot_be_fetched(photos, tmp_path, monkeypatch):
    def fail(*_, **__):
        # As the Hub has it, without the number that errors of files have.
        raise FileNotFoundError("cannot find the requested files in the local cache\nmore")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"^the weights of the teacher blockswap_wrn40_2_404k are not .* cache$"):
        make_least(photos, tmp_path / "net", teacher="wrn40_2_404k")


def test_a_teacher_that_was_trained_before(made, photos):
    result, _, _ = made
    settings = making.RunSettings(("blockswap_wrn16_1",), str(photos), num_classes=3, in_chans=3)
    images = making.image_facts(str(photos))
    # The run of the teacher, that of the student with its own genome, and the saved network.
    for folder in (f"{result.folder}/teacher", f"{result.folder}/student", str(result.folder)):
        given = making._given_teacher(folder, settings)
        assert making._soft_labels(given, images)[0] == 0.5
    with pytest.raises(TrainingError, match="no finished run in"):
        making._soft_labels(making._given_teacher(str(photos), settings), images)


def test_a_run_teaches_the_next_one(made, photos, tmp_path):
    result, _, _ = made
    teacher = f"{result.folder}/teacher"
    words = f"train wrn16_1 --recipe finetune --epochs 1 --batch-size 4 --workers 0 --device cpu --teacher {teacher}"
    other = write(tmp_path / "xyz", "xyz")
    status, _, err = run(*words.split(), "--data", other, "--out", tmp_path / "run", "--soft-labels", 0.5)
    assert status == 2
    assert "a teacher of the same classes, and this one knows" in err
    assert "not x, y, z; use --soft-labels 0, which leaves attention transfer" in err
    assert not (tmp_path / "run").exists()
    status, _, err = run(*words.split(), "--data", photos, "--out", tmp_path / "run", "--soft-labels", 0.5)
    assert status == 0, err
    summary = read_summary(tmp_path / "run")
    weights = Path(teacher) / "model.safetensors"
    assert (summary["teacher"], summary["teacher_weights"]) == ("blockswap_wrn16_1", file_digest(weights))


@pytest.mark.parametrize("wrong", [1.0, 0.0])
def test_an_onnx_file_that_differs_loses_nothing(made, photos, tmp_path, monkeypatch, wrong):
    result, _, _ = made
    folder = Path(shutil.copytree(result.folder, tmp_path / "net"))
    (folder / "model.onnx").unlink()
    written = {"onnx": lambda model, x, about: (b"a file", lambda images: model(images) + wrong, 0)}
    monkeypatch.setattr("blockswap_models.export._WRITERS", written)
    if wrong:
        with pytest.raises(ExportError, match="the file would answer other than PyTorch: the largest difference is "):
            make_least(photos, folder)
        assert not (folder / "model.onnx").exists()
    else:
        # The same call again writes what is missing.
        assert Path(make_least(photos, folder)[0].onnx).read_bytes() == b"a file"
    assert str(timm.create_model(f"local-dir:{folder}", pretrained=True).genome) == result.genome


def test_a_full_disk_is_one_line_and_what_is_done_is_kept(made, photos, tmp_path, monkeypatch):
    result, _, _ = made
    folder = Path(shutil.copytree(result.folder, tmp_path / "net"))
    for name in ("config.json", "card.json"):
        (folder / name).unlink()

    def fail(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("blockswap_models.zoo.blockswap.save_for_hf", fail)
    command = f"make --params 60k --network wrn16_1 --samples 2 --epochs 1 --batch-size 4 --device cpu --data {photos}"
    status, out, err = run(*command.split(), "--workers", 1, "--out", folder)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"blockswap make: cannot write in '{folder}': No space left on device; what is done is kept, so make room and "
        "call again"
    )
    monkeypatch.undo()
    status, out, _ = run(*command.split(), "--workers", 1, "--out", folder)
    assert status == 0
    assert f"model        blockswap_wrn16_1 {result.genome}" in out
    assert f"load it: timm.create_model('local-dir:{folder}', pretrained=True)" in out
    assert (folder / "card.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data photos --out net", "a network needs a budget; use --params 1m, or --macs 60m, or --latency 4ms"),
        ("--data torch/cifar10 --out net --params 60k", "no folder 'torch/cifar10'"),
        ("--data photos --out net --params 60k --val-share 1", "the share of images held out is above 0 and below 1"),
        ("--data photos --out net --params 60k --network nonsense", "unknown network 'nonsense'"),
        ("--data photos --out net --params 60k --batch-size 99", "a minibatch has 2 to 15 images here, not 99"),
    ],
)
def test_mistakes_are_one_line(photos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    status, out, err = run("make", *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"blockswap make: {message}")
    assert not (tmp_path / "net").exists()


def test_what_is_said_of_a_folder_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("my 'net'", "resnet18"):
        Path(folder).mkdir()
        told = Made(folder, "m", "S", 1, 1, ("a",), (3, 8, 8), 1, 0.0, 0.0, None, 1.0, "net.onnx", None, 1.0)
        monkeypatch.setattr(making, "make", lambda *_, told=told, **__: told)
        status, out, err = run("make", "--data", "photos", "--params", "60k", "--out", folder)
        assert status == 0, err
        loading, trying = out.splitlines()[-2:]
        call = ast.parse(loading.removeprefix("load it: ")).body[0].value
        assert call.args[0].value == f"local-dir:{folder}"
        name = shlex.split(trying.removeprefix("try it: "))[2]
        assert is_folder(name)
        assert Path(name) == Path(folder)


def test_a_budget_of_latency_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "profile", partial(making.profile, rounds=1, passes=1, threads=1))
    said = []
    here = making._Place(tmp_path, torch.device("cpu"), 1, [], said.append, False)
    settings = making.RunSettings(("blockswap_wrn16_1",), "x", num_classes=3, in_chans=1, image_size=16)
    space = making._space({"network": "blockswap_wrn16_1"}, settings, True, here)
    assert said == ["   measuring the latency of each block type on cpu; let nothing else run meanwhile"]
    assert space.input_size == (1, 16, 16)
    low, high = space.range("latency")
    assert 0 < low < high
    again = making._space({"network": "blockswap_wrn16_1"}, settings, True, here)
    assert (len(said), again.range("latency")) == (1, (low, high))


def test_a_budget_in_percent_is_of_the_original_network(photos, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(*_):
        raise Enough

    monkeypatch.setattr(making, "_teacher", stop)
    with pytest.raises(Enough):
        make_least(photos, tmp_path / "net", "40%")
    plan = json.loads((tmp_path / "net" / making.PLAN).read_text())["plan"]
    original = SearchSpace("wrn16_1", num_classes=3, image_size=plan["image_size"]).original_cost
    assert plan["budget"]["params"] == pytest.approx([0.39 * original.params, 0.41 * original.params], rel=1e-4)
