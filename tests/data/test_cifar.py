import pickle
from itertools import chain

import numpy as np
import pytest
import timm
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import functional as one_image

from blockswap_models.data.cifar import CifarLoader, Draws, augment, draw, normalize, read_cifar
from blockswap_models.data.folders import DataError
from blockswap_models.training.evaluate import evaluation_loader
from blockswap_models.training.loaders import training_loader
from blockswap_models.training.recipes import Recipe

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def noise(number, height=32, width=32):
    return torch.randint(
        256, (number, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def labelled(number):
    """Makes images that say which they are: every pixel has the number of its image."""
    labels = torch.arange(number)
    return labels.to(torch.uint8)[:, None, None, None].expand(number, 3, 8, 8), labels


def plain(images, labels, batch_size, **arguments):
    """Makes a loader that shuffles, and changes no pixel."""
    as_read = {"padding": 0, "flip": False, "cutout": 0, "mean": (0, 0, 0), "std": (1 / 255,) * 3}
    return CifarLoader(images, labels, batch_size, training=True, **{**as_read, **arguments})


def labels_of(loader):
    return [labels.tolist() for _, labels in loader]


# -- the augmentation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "padding", "cutout"), [((32, 32), 4, 16), ((20, 28), 3, 9), ((32, 32), 0, 0), ((8, 8), 2, 16)]
)
def test_as_torchvision_does_one_image_at_a_time(size, padding, cutout):
    images = noise(200, *size)
    draws = draw(len(images), size, padding, generator=seeded())
    found = augment(images, draws, padding, cutout, MEAN, STD)
    assert found.dtype == torch.float32
    for image, crop, flip, centre, result in zip(images, *draws, found, strict=True):
        expected = one_image.crop(one_image.pad(image, padding), *crop.tolist(), *size)
        if flip:
            expected = one_image.hflip(expected)
        expected = one_image.normalize(one_image.convert_image_dtype(expected), MEAN, STD)
        top, left = (centre - cutout // 2).tolist()
        expected[:, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = 0
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_a_hidden_square_reaches_over_the_border():
    centres = torch.tensor([[0, 0], [16, 16], [31, 5], [8, 24]])
    draws = Draws(torch.full((4, 2), 4), torch.zeros(4, dtype=torch.bool), centres)
    hidden = (augment(torch.full((4, 3, 32, 32), 255, dtype=torch.uint8), draws) == 0).all(dim=1)
    assert hidden.sum(dim=(1, 2)).tolist() == [8 * 8, 16 * 16, 9 * 13, 16 * 16]
    assert hidden[1, 8:24, 8:24].all()


def test_padding_is_black_before_normalisation():
    draws = Draws(torch.tensor([[0, 8]]), torch.tensor([False]), torch.tensor([[31, 0]]))
    image = augment(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8), draws, cutout=0)[0]
    black, grey = ((torch.tensor(value) - torch.tensor(MEAN)) / torch.tensor(STD) for value in (0, 200 / 255))
    torch.testing.assert_close(image[:, 0, 0], black)
    torch.testing.assert_close(image[:, 31, 0], grey)
    torch.testing.assert_close(image[:, 31, 28], black)


def test_draws_are_uniform_and_independent():
    number = 40_000
    draws = draw(number, (32, 24), padding=4, generator=seeded())
    columns = {
        "crop row": (draws.crops[:, 0], 9),
        "crop column": (draws.crops[:, 1], 9),
        "flip": (draws.flips.long(), 2),
        "centre row": (draws.centres[:, 0], 32),
        "centre column": (draws.centres[:, 1], 24),
    }
    for name, (values, kinds) in columns.items():
        counts = torch.bincount(values, minlength=kinds)
        assert len(counts) == kinds, name
        # Six standard deviations of a count.
        assert (counts - number / kinds).abs().max() < 6 * (number / kinds) ** 0.5, name
    correlations = torch.corrcoef(torch.stack([values.double() for values, _ in columns.values()]))
    assert (correlations - torch.eye(5)).abs().max() < 6 / number**0.5
    assert not draw(100, (32, 32), flip=False, generator=seeded()).flips.any()


# -- the loader ------------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_image_once_with_its_label():
    loader = plain(*labelled(100), 32, drop_last=False)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [32, 32, 32, 4]
    assert len(loader) == 4
    for images, labels in batches:
        torch.testing.assert_close(images, labels.float()[:, None, None, None].expand_as(images))
    seen = [label for labels in labels_of(loader) for label in labels]
    assert sorted(seen) == list(range(100))
    assert seen != sorted(seen)


def test_the_last_minibatch():
    images, labels = labelled(100)
    assert [len(each) for each in labels_of(plain(images, labels, 32))] == [32, 32, 32]
    assert len(plain(images, labels, 32)) == 3
    assert [len(each) for each in labels_of(CifarLoader(images, labels, 50))] == [50, 50]
    assert [len(each) for each in labels_of(CifarLoader(images, labels, 99))] == [99, 1]
    assert [len(each) for each in labels_of(CifarLoader(images, labels, 99, drop_last=True))] == [99]
    assert [len(each) for each in labels_of(CifarLoader(images, labels, 200))] == [100]


def test_an_epoch_depends_on_seed_and_epoch_only():
    images, labels = noise(60), torch.arange(60)

    def epoch(number, seed=0, **arguments):
        loader = CifarLoader(images, labels, 16, training=True, seed=seed, **arguments)
        for before in range(2):
            loader.set_epoch(before)
            torch.rand(3)
            next(iter(loader))
        loader.set_epoch(number)
        return [torch.cat(each) for each in zip(*loader, strict=True)]

    first, same, later, other = epoch(3), epoch(3), epoch(4), epoch(3, seed=1)
    assert all(map(torch.equal, first, same))
    for different in (later, other):
        assert not torch.equal(first[1], different[1])
    # Also an image is augmented anew in every epoch.
    three, four = (each[0][each[1].argsort()] for each in (epoch(3, drop_last=False), epoch(4, drop_last=False)))
    assert all(not torch.equal(*pair) for pair in zip(three, four, strict=True))


def test_images_do_not_depend_on_the_size_of_minibatches():
    images, labels = noise(48), torch.arange(48)
    small, large = (CifarLoader(images, labels, size, training=True) for size in (8, 48))
    for one, other in zip(zip(*small, strict=True), next(iter(large)), strict=True):
        assert torch.equal(torch.cat(one), other)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(CifarLoader(noise(8), torch.arange(8), 4, training=True))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", [96, 97, 101])
def test_shards_are_disjoint_and_complete(number, training):
    def shard(rank, world_size):
        images, labels = labelled(number)
        return CifarLoader(
            images, labels, 8, training=training, drop_last=False, rank=rank, world_size=world_size, seed=5
        )

    shards = [labels_of(shard(rank, 4)) for rank in range(4)]
    flat = [[label for labels in each for label in labels] for each in shards]
    assert sorted(chain.from_iterable(flat)) == list(range(number))
    assert max(map(len, flat)) - min(map(len, flat)) <= 1
    whole = [label for labels in labels_of(shard(0, 1)) for label in labels]
    for rank in range(4):
        assert flat[rank] == whole[rank::4]
        assert len(shards[rank]) == len(shard(rank, 4))


def test_the_minibatches_of_a_step_are_those_of_one_process():
    images, labels = noise(103), torch.arange(103)
    ranks = [CifarLoader(images, labels, 8, training=True, rank=rank, world_size=3) for rank in range(3)]
    whole = CifarLoader(images, labels, 24, training=True)
    assert {len(each) for each in ranks} == {len(whole)} == {4}
    for parts, (together, their_labels) in zip(zip(*ranks, strict=True), whole, strict=True):
        order = torch.cat([part for _, part in parts])
        assert sorted(order.tolist()) == sorted(their_labels.tolist())
        assert torch.equal(torch.cat([part for part, _ in parts])[order.argsort()], together[their_labels.argsort()])


@pytest.mark.parametrize("training", [True, False])
def test_precision_and_memory_format(training):
    images, labels = noise(8), torch.arange(8)
    (expected, _), *_ = CifarLoader(images, labels, 8, training=training)
    (found, _), *_ = CifarLoader(images, labels, 8, training=training, dtype=torch.bfloat16, channels_last=True)
    assert expected.is_contiguous()
    assert (expected.dtype, found.dtype) == (torch.float32, torch.bfloat16)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, expected.bfloat16())


def test_without_training_images_are_in_order_and_whole():
    images, labels = noise(20), torch.arange(20)
    loader = CifarLoader(images, labels, 8, mean=MEAN, std=STD)
    assert (loader.mean, loader.std) == (MEAN, STD)
    loader.set_epoch(7)
    assert list(chain.from_iterable(labels_of(loader))) == list(range(20))
    expected = one_image.normalize(images / 255, MEAN, STD)
    torch.testing.assert_close(torch.cat([each for each, _ in loader]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": noise(8).float()}, r"images are uint8 \(N, C, H, W\) and labels \(N,\), not torch.float32"),
        ({"labels": torch.arange(7)}, r"not torch.uint8 \(8, 3, 32, 32\) and \(7,\)"),
        ({"batch_size": 0}, "a minibatch has at least 1 image, not 0"),
        ({"rank": 2, "world_size": 2}, "the rank of one of 2 processes is 0 to 1, not 2"),
        ({"batch_size": 9, "training": True}, "8 images make no minibatch of 9 for 1 processes; use a smaller"),
        ({"batch_size": 4, "world_size": 3, "drop_last": True}, "8 images make no minibatch of 4 for 3 processes"),
    ],
)
def test_errors_say_what_to_write(arguments, message):
    with pytest.raises(DataError, match=message):
        CifarLoader(**{"images": noise(8), "labels": torch.arange(8), **arguments})


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images, labels = noise(64), torch.arange(64)
    loaders = (CifarLoader(images, labels, 16, training=True, device=device) for device in ("cpu", "cuda"))
    for (expected, their_labels), (found, found_labels) in zip(*loaders, strict=True):
        assert found.is_cuda
        assert torch.equal(their_labels, found_labels.cpu())
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)


# -- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dataset_class", "key"), [("cifar10", CIFAR10, "labels"), ("cifar100", CIFAR100, "fine_labels")]
)
def test_files_as_torchvision_unpacks_them(tmp_path, monkeypatch, name, dataset_class, key):
    monkeypatch.setattr(dataset_class, "_check_integrity", lambda _: True)
    monkeypatch.setattr(dataset_class, "_load_meta", lambda _: None)
    folder = tmp_path / dataset_class.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels, labels = [], []
    for file, _ in dataset_class.train_list:
        data, own = rng.integers(256, size=(4, 3072), dtype=np.uint8), rng.integers(10, size=4).tolist()
        (folder / file).write_bytes(pickle.dumps({"data": data, key: own}))
        pixels.append(data)
        labels += own
    images, found = read_cifar(tmp_path, name, train=True)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(np.concatenate(pixels)).view(-1, 3, 32, 32))
    assert found.tolist() == labels


@pytest.mark.parametrize("channels", [1, 4])
def test_torchvisions_images_have_the_networks_channels(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda _: None)
    (tmp_path / CIFAR10.base_folder).mkdir()
    for file, _ in CIFAR10.train_list + CIFAR10.test_list:
        batch = {"data": np.zeros((4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
        (tmp_path / CIFAR10.base_folder / file).write_bytes(pickle.dumps(batch))
    model = timm.create_model("blockswap_wrn16_1", in_chans=channels)
    images, labels = next(iter(evaluation_loader(model, "torch/cifar10", tmp_path, workers=0)))
    assert (images.shape, labels.tolist()) == ((4, channels, 32, 32), [0, 1, 2, 3])
    loader = training_loader(model, "torch/cifar10", tmp_path, Recipe(batch_size=4), workers=0)
    assert next(iter(loader))[0].shape == (4, channels, 32, 32)
    two = timm.create_model("blockswap_wrn16_1", in_chans=2)
    with pytest.raises(DataError, match="have 1, 3 or 4 channels, but the network takes 2"):
        evaluation_loader(two, "torch/cifar10", tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"no whole CIFAR10 in '.*'; use the folder that holds cifar-10-batches-py"):
        read_cifar(tmp_path)
    with pytest.raises(DataError, match=r"no whole CIFAR100 in 'nowhere'; use the folder that holds cifar-100-python"):
        read_cifar("nowhere", "cifar100", train=False)
    with pytest.raises(DataError, match="no CIFAR data set 'cifar'; use cifar10 or cifar100"):
        read_cifar(tmp_path, "cifar")


@pytest.mark.data
def test_cifar10(cifar_dir):
    images, labels = read_cifar(cifar_dir, train=True)
    assert images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(labels).tolist() == [5000] * 10
    picture, label = CIFAR10(str(cifar_dir), train=True)[77]
    assert torch.equal(images[77], torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    assert labels[77] == label
    assert len(read_cifar(cifar_dir, train=False)[1]) == 10_000
    loader = CifarLoader(images, labels, 128, training=True)
    assert len(loader) == 390
    batch, _ = next(iter(loader))
    assert batch.shape == (128, 3, 32, 32)
    # The deviation is the paper's, and not that of all pixels.
    assert normalize(images[:5000]).mean().abs() < 0.02
    assert normalize(images[:5000]).std() == pytest.approx(1.24, abs=0.03)
