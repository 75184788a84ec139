"""Libraries of trained blocks."""

import json
import math
import multiprocessing
import os
import shutil
import signal

import pytest
import timm
import torch
from command_line import run

import blockswap_models.training.library
from blockswap_models import BlockLibrary, BlockType, LibraryError, swap, train_library
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.files import append_json_line, json_line, locked, write_atomic
from blockswap_models.nets.cost import count
from blockswap_models.nets.swap import BlockNetwork, new_block
from blockswap_models.searching.block_choice import space_of_library
from blockswap_models.training.library import has_random_weights
from blockswap_models.zoo.original import original_network

TYPES = ("G4", "B2")


@pytest.fixture(scope="module")
def model():
    """A network whose BN knows the images."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, zero_init_last=False)
    with torch.no_grad():
        for images, _ in loader():
            model.train()(images)
    return model.eval()


def loader(size=16):
    images = torch.randint(256, (128, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return CifarLoader(images, torch.zeros(128, dtype=torch.long), size, training=True, cutout=0)


SETTINGS = {"data": "noise", "types": TYPES, "steps": 20, "measure": 2}


@pytest.fixture(scope="module")
def library(model, tmp_path_factory):
    return train_library(model, loader(), tmp_path_factory.mktemp("library") / "lib", **SETTINGS)


def test_blocks_learn_what_the_original_does(model, library, tmp_path):
    untrained = train_library(model, loader(), tmp_path / "lib", **{**SETTINGS, "steps": 1})
    assert library.errors.keys() == untrained.errors.keys() == {(at, block) for at in range(4) for block in TYPES}
    for item, error in library.errors.items():
        assert error < untrained.errors[item], item
    assert sum(library.errors.values()) < 0.7 * sum(untrained.errors.values())
    # By hand: what the block of one position gives for the original's input.
    seen = {}
    hook = model.layer2[0].register_forward_hook(lambda _, given, made: seen.update(given=given[0], made=made))
    branch = model.layer2[0].bn2.register_forward_hook(lambda _, __, made: seen.update(added=made.clone()))
    student = swap(model, "K/G4/K/K", library=library).eval()
    many = loader()
    many.set_epoch(1_000_000)
    differences, variances = [], []
    with torch.no_grad():
        for images, _ in [each for each, _ in zip(many, range(2), strict=False)]:
            model(images)
            differences.append((student.layer2[0](seen["given"]) - seen["made"]).square().mean())
            variances.append(seen["added"].var(dim=(0, 2, 3)).mean())
    hook.remove()
    branch.remove()
    assert float(sum(differences) / sum(variances)) == pytest.approx(library.errors[1, "G4"], rel=1e-3)


def test_a_loader_without_minibatches_is_refused(model, tmp_path):
    with pytest.raises(
        LibraryError, match=r"^the loader gives no minibatch; use more images, or a smaller batch_size="
    ):
        train_library(model, [], tmp_path / "lib", **SETTINGS)
    assert not (tmp_path / "lib").exists()


def test_a_student_has_the_blocks_of_the_library(model, library):
    student = swap(model, "G4/K/B2/B2", library=library.folder)
    wanted = library.state(0, BlockType("G", groups=4))
    assert all(torch.equal(value, wanted[name]) for name, value in student.layer1[0].state_dict().items())
    assert torch.equal(student.layer2[0].conv1.weight, model.layer2[0].conv1.weight)
    with pytest.raises(LibraryError, match=r"stage 1, block 1 'W1': not in the library .*, whose types are G4, B2"):
        swap(model, "W1/K/K/K", library=library)
    with pytest.raises(LibraryError, match="is of a test_resnet with other weights"):
        swap(timm.create_model("test_resnet", num_classes=5), "B2/K/K/K", library=library)


def test_parts_of_little_memory_learn_the_same(model, library, tmp_path):
    parts = train_library(model, loader(), tmp_path / "lib", **SETTINGS, memory=2_000_000)
    rows = [json.loads(line) for line in (tmp_path / "lib" / "errors.jsonl").read_text().splitlines()]
    assert len(rows) == rows[0]["parts"] > 2
    for item, error in library.errors.items():
        assert parts.errors[item] == pytest.approx(error, rel=1e-3)


def test_last_convolutions_are_solved_for(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("blockswap_wrn16_1", num_classes=5)
    with torch.no_grad():
        model.train()(next(iter(loader()))[0])
    settings = {**SETTINGS, "types": ("S", "G8"), "steps": 1, "measure": 1}
    library = train_library(model, loader(), tmp_path / "lib", **settings)
    network = BlockNetwork(model)
    index, block = 5, BlockType.parse("G8")
    found = network.blocks[index]
    module = new_block(block, model.get_submodule(found.name), found)
    module.load_state_dict(library.state(index, block))
    seen, watched = {}, model.eval().get_submodule(found.name)
    watched.register_forward_hook(lambda _, given, made: seen.update(given=given[0], made=made))
    last = module.eval().conv2[-1]
    # No step of its weights lowers the error on the images that they were solved for, but for the ridge.
    many = loader()
    many.set_epoch(1_000_001)
    model(next(iter(many))[0])
    gradient = torch.autograd.grad((module(seen["given"]) - seen["made"].detach()).square().mean(), last.weight)[0]
    with torch.no_grad():
        last.weight.mul_(1.1)
    larger = torch.autograd.grad((module(seen["given"]) - seen["made"].detach()).square().mean(), last.weight)[0]
    assert gradient.norm() < 0.05 * larger.norm()


class Killed(Exception):
    """What ends a run in its middle."""


def test_a_killed_run_goes_on_to_the_same_library(model, library, tmp_path):
    folder = tmp_path / "lib"

    def killed(steps):
        for step in steps:
            if step == 12:
                raise Killed
            yield step

    with pytest.raises(Killed):
        train_library(model, loader(), folder, **SETTINGS, checkpoint_minutes=0, progress=killed)
    # And the end came while it wrote the table.
    (folder / "errors.jsonl").write_bytes(b'{"part": 1, "bl')
    taken = []
    again = train_library(
        model, loader(), folder, **SETTINGS, resume=True, progress=lambda steps: taken.extend(steps) or taken
    )
    assert taken == [*range(12, 20)]
    for item, error in library.errors.items():
        assert again.errors[item] == pytest.approx(error, rel=1e-4)
    assert not (folder / "checkpoint.pth").exists()
    with pytest.raises(LibraryError, match="there is a library in"):
        train_library(model, loader(), folder, **SETTINGS)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step(_):
    """Kills in the middle of the second part, of whose steps each has a checkpoint."""

    def steps(taken):
        parts.append(taken)
        for step in taken:
            if len(parts) == 2 and step == 2:
                kill()
            yield step

    parts = []
    return {"progress": steps}


def before_its_line_is_in_the_table(monkeypatch):
    """Kills when the tensors of the second part are written, and its line is not."""

    def write(path, content, error):
        write_atomic(path, content, error)
        if path.name == "part-002.safetensors":
            kill()

    monkeypatch.setattr(blockswap_models.training.library, "write_atomic", write)
    return {}


def in_a_line_of_the_table(monkeypatch):
    """Kills when half of the line of the second part is written."""

    def append(file, row):
        if row["part"] == 2:
            line = json_line(row)
            file.write(line[: len(line) // 2])
            file.flush()
            kill()
        append_json_line(file, row)

    monkeypatch.setattr(blockswap_models.training.library, "append_json_line", append)
    return {}


IN_PARTS = {**SETTINGS, "steps": 4, "measure": 1, "memory": 2_000_000, "checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def in_parts(model, tmp_path_factory):
    return train_library(model, loader(), tmp_path_factory.mktemp("parts") / "lib", **IN_PARTS)


@pytest.mark.parametrize("moment", [in_a_step, before_its_line_is_in_the_table, in_a_line_of_the_table])
def test_a_library_is_the_same_to_the_bit_whenever_its_process_was_killed(model, in_parts, tmp_path, moment):
    folder = tmp_path / "lib"

    def train():
        train_library(model, loader(), folder, **IN_PARTS, **moment(pytest.MonkeyPatch()))

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(BlockLibrary.load(folder).errors) < len(in_parts.errors)
    torch.manual_seed(99)
    train_library(model, loader(), folder, **IN_PARTS, resume=True)
    files = {each.name: each.read_bytes() for each in in_parts.folder.iterdir()}
    assert len(files) > 5
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == files


def test_a_library_killed_before_it_began_begins_again(model, in_parts, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def write(path, content, error):
        if path.name == "library.json":
            raise Killed
        write_atomic(path, content, error)

    with monkeypatch.context() as patched:
        patched.setattr(blockswap_models.training.library, "write_atomic", write)
        with pytest.raises(Killed):
            train_library(model, loader(), tmp_path, **IN_PARTS)
    with pytest.raises(LibraryError, match=r"no library to resume in .*; leave out resume=True"):
        train_library(model, loader(), tmp_path, **IN_PARTS, resume=True)
    assert train_library(model, loader(), tmp_path, **IN_PARTS).errors == in_parts.errors


def test_blocks_that_did_not_learn_have_an_infinite_error(model, tmp_path):
    settings = {**SETTINGS, "types": ("W1",), "steps": 3, "measure": 1, "lr": 1e30}
    library = train_library(model, loader(), tmp_path, **settings)
    assert set(library.errors.values()) == {math.inf}
    assert json.loads((tmp_path / "errors.jsonl").read_text())["blocks"][0]["error"] is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": "other"}, "has data 'noise', not 'other'"),
        ({"types": ("B2",)}, r"has types \['G4', 'B2'\], not \['B2'\]"),
    ],
)
def test_a_library_of_other_data_or_types_is_refused(model, library, changed, said):
    with pytest.raises(LibraryError, match=said):
        train_library(model, loader(), library.folder, **{**SETTINGS, **changed}, resume=True)


def test_a_library_of_other_images_or_another_network_is_refused(model, library):
    with pytest.raises(LibraryError, match="has batch_size 16, not 32"):
        train_library(model, loader(32), library.folder, **SETTINGS, resume=True)
    fewer = loader()
    fewer.images, fewer.labels = fewer.images[:64], fewer.labels[:64]
    with pytest.raises(LibraryError, match="has minibatches 8, not 4; use what it has, or another folder="):
        train_library(model, fewer, library.folder, **SETTINGS, resume=True)
    other = timm.create_model("test_resnet", num_classes=5)
    other.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    with pytest.raises(LibraryError, match=r"has weights 'sha256 .*', not 'sha256"):
        train_library(other, loader(), library.folder, **SETTINGS, resume=True)
    theirs = timm.create_model("resnet10t", num_classes=5)
    theirs.bn1.running_mean.fill_(1)
    with pytest.raises(LibraryError, match="has network 'test_resnet', not 'resnet10t'"):
        train_library(theirs, loader(), library.folder, **SETTINGS, resume=True)


def test_networks_without_bn_may_be_random_too():
    convnext = timm.create_model("test_convnext")
    assert has_random_weights(convnext)
    torch.nn.init.normal_(convnext.head.norm.weight)
    assert not has_random_weights(convnext)


@pytest.mark.parametrize("lr", [math.nan, math.inf, 0, -0.1])
def test_a_rate_that_trains_nothing_leaves_no_folder(model, tmp_path, lr):
    with pytest.raises(ValueError, match=rf"^lr is above 0 and finite, not {lr}$"):
        train_library(model, loader(), tmp_path / "lib", **SETTINGS, lr=lr)
    assert not (tmp_path / "lib").exists()


def test_mistakes(model, library, tmp_path):
    with pytest.raises(LibraryError, match="no library in"):
        BlockLibrary.load(tmp_path)
    (tmp_path / "library.json").write_text("[]")
    with pytest.raises(LibraryError, match="holds no library of blocks"):
        BlockLibrary.load(tmp_path)
    with pytest.raises(LibraryError, match="no library to resume"):
        train_library(model, loader(), tmp_path / "none", **SETTINGS, resume=True)
    damaged = tmp_path / "damaged"
    shutil.copytree(library.folder, damaged)
    (damaged / "part-001.safetensors").write_bytes(b"")
    with pytest.raises(LibraryError, match="is missing or damaged"):
        swap(model, "B2/K/K/K", library=damaged)
    fresh = timm.create_model("test_resnet", num_classes=5)
    with pytest.warns(UserWarning, match="has random weights"):
        train_library(fresh, loader(), tmp_path / "fresh", **{**SETTINGS, "steps": 1, "types": ("W1",), "measure": 1})


def test_blocks_that_the_network_has_itself_are_kept(cifar_dir, tmp_path):
    code, out, _ = run(
        *("library", "wrn40_2", "--data", "torch/cifar10", "--data-dir", cifar_dir, "--out", tmp_path / "lib"),
        *("--types", "S,B4W8", "--steps", "1", "--batch-size", "4", "--workers", "0"),
    )
    assert code == 0
    assert out.startswith("blockswap_wrn40_2: relative error of each block type by stage.block")
    library = BlockLibrary.load(tmp_path / "lib")
    assert {block for _, block in library.errors} == {"B4W8"}
    model = timm.create_model("blockswap_wrn40_2", pretrained=True)
    student = swap(model, "5xS,B4W8/6xS/6xS", library=library)
    assert student.genome == "5xS,B4W8/6xS/6xS"
    assert torch.equal(student.stages[0][0].conv1.weight, model.stages[0][0].conv1.weight)
    assert count(student) == count(timm.create_model("blockswap_wrn40_2", genome=student.genome))
    code, _, said = run(
        *("library", "resnet34", "--data", "torch/cifar10", "--data-dir", cifar_dir, "--out", tmp_path / "other"),
        *("--teacher-checkpoint", tmp_path / "none.safetensors"),
    )
    assert code == 2
    assert said.startswith("blockswap library: no checkpoint")


def test_a_library_that_does_not_say_how_images_were_made_is_gone_on_with(model, library, tmp_path):
    folder = tmp_path / "lib"
    shutil.copytree(library.folder, folder)
    header = json.loads((folder / "library.json").read_text())
    del header["config"]
    (folder / "library.json").write_text(json.dumps(header))
    again = train_library(model, loader(), folder, **SETTINGS, resume=True)
    assert again.errors == library.errors


SHORT = {"data": "noise", "types": ("G4",), "steps": 1, "measure": 1}


def test_an_identity_is_measured_and_has_nothing_to_learn(model, tmp_path):
    for types in (("G4", "I"), ("I",)):
        library = train_library(model, loader(), tmp_path / types[0], **{**SHORT, "types": types})
        # It fits where the widths stay.
        assert [at for at, block in library.errors if block == "I"] == [0]
        assert swap(model, "I/K/K/K", library=library).genome == "I/K/K/K"
    # It lacks what the original adds, so that its error is that of the sum of squares over the variance.
    assert 0.5 < library.errors[0, "I"] < 10


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_library_of_a_wrapped_network_is_that_of_the_network(model, tmp_path, wrap):
    wrapped = wrap(model)
    library = train_library(wrapped, loader(), tmp_path / "lib", **SHORT)
    assert swap(model, "G4/K/K/K", library=library).genome == "G4/K/K/K"
    assert space_of_library(wrapped, library).options == space_of_library(model, library).options
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(original_network(library)(x), model.eval()(x))


def test_the_original_is_made_with_its_arguments(tmp_path):
    arguments = {"num_classes": 5, "output_stride": 8, "act_layer": "silu", "global_pool": "max"}
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", **arguments)
    with torch.no_grad():
        model.train()(next(iter(loader()))[0])
    library = train_library(model, loader(), tmp_path / "lib", **SHORT)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(original_network(library)(x), model.eval()(x))
    # A library that does not say with which is gone on with.
    header = json.loads((tmp_path / "lib" / "library.json").read_text())
    assert {name: header["arguments"][name] for name in arguments} == arguments
    del header["arguments"]
    (tmp_path / "lib" / "library.json").write_text(json.dumps(header))
    assert train_library(model, loader(), tmp_path / "lib", **SHORT, resume=True).errors == library.errors
    theirs = timm.create_model("test_resnet", num_classes=5, act_layer=torch.nn.SiLU)
    theirs.load_state_dict(model.state_dict())
    other = train_library(theirs, loader(), tmp_path / "other", **SHORT)
    with pytest.raises(LibraryError, match="is of a test_resnet made with arguments that no file can hold; use swap"):
        original_network(other)


def test_blocks_learn_without_stochastic_depth(model, library, tmp_path):
    deep = timm.create_model("test_resnet", num_classes=5, zero_init_last=False, drop_path_rate=0.5)
    deep.load_state_dict(model.state_dict())
    for item, error in train_library(deep, loader(), tmp_path / "lib", **SETTINGS).errors.items():
        assert error == pytest.approx(library.errors[item], rel=1e-3), item


def test_a_type_by_another_name_is_the_same_block(tmp_path):
    torch.manual_seed(0)
    # On 16 channels W1 is G16.
    model = timm.create_model("blockswap_wrn16_1", num_classes=5, genome="W1,S/2xS/2xS")
    with torch.no_grad():
        model.train()(next(iter(loader()))[0])
    library = train_library(model, loader(), tmp_path / "lib", **{**SHORT, "types": ("G16",)})
    same = BlockType.parse("G16")
    assert (0, "G16") not in library.errors
    assert library.is_kept(0, same)
    assert library.error(0, same) == 0
    assert not library.is_unfinished
    student = swap(model, "G16,K/2xK/2xK", library=library)
    assert torch.equal(student.stages[0][0].bn1.weight, model.stages[0][0].bn1.weight)


def test_an_unfinished_library_says_so(model, in_parts, tmp_path):
    folder = tmp_path / "lib"
    shutil.copytree(in_parts.folder, folder)
    first, *_ = (folder / "errors.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "errors.jsonl").write_bytes(first)
    library = BlockLibrary.load(folder)
    assert library.is_unfinished
    assert not in_parts.is_unfinished
    with pytest.raises(LibraryError, match=r"stage 4, block 1 'B2': not yet in the library .*, which is unfinished; "):
        swap(model, "K/K/K/B2", library=library)
    with pytest.raises(LibraryError, match=r"stage 4, block 1 'W1': not in the library .*, whose types are G4, B2$"):
        swap(model, "K/K/K/W1", library=library)
    with pytest.warns(UserWarning, match="is unfinished: blocks that it has yet to train are left out; finish it"):
        space_of_library(model, library)


def test_one_process_trains_a_library(model, tmp_path):
    folder = tmp_path / "lib"
    folder.mkdir()
    with (
        locked(folder / ".lock", Killed()),
        pytest.raises(LibraryError, match=r"another process trains the library .*; wait for its end, or use another f"),
    ):
        train_library(model, loader(), folder, **SHORT)
    assert not (folder / "library.json").exists()
