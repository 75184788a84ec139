import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from blockswap_models import Layout, SearchSpace
from blockswap_models.data.folders import DataError
from blockswap_models.searching.probe_images import dataset_minibatch, noise_minibatch, tensor_minibatch, user_minibatch

WRN = SearchSpace("wrn16_1", ["S"])
RESNET = SearchSpace("resnet18", ["S"])


@pytest.fixture
def folder(tmp_path):
    for label in ("cat", "dog", "eel"):
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 40), (50 * number, 100, 30)).save(tmp_path / label / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("space", [WRN, RESNET, SearchSpace("wrn16_1", ["S"], in_chans=1, image_size=48)])
def test_noise_has_a_spectrum_of_1_over_f(space):
    minibatch = noise_minibatch(space, 64, seed=3)
    assert minibatch.images.shape == (64, *space.input_size)
    assert minibatch.images.std(dim=(1, 2, 3)).allclose(torch.ones(64))
    assert minibatch.images.mean().abs() < 1e-5
    assert 0 <= minibatch.labels.min() <= minibatch.labels.max() < space.num_classes
    assert len(minibatch.labels.unique()) > 1
    # Along each axis the amplitude falls as 1/f, four times the frequency, a quarter of the amplitude; alike in both.
    amplitude = torch.fft.rfft2(minibatch.images).abs().square().mean(dim=(0, 1)).sqrt()
    assert float(amplitude[0, 2] / amplitude[0, 8]) == pytest.approx(4, rel=0.25)
    assert float(amplitude[2, 0] / amplitude[8, 0]) == pytest.approx(4, rel=0.25)
    assert float(amplitude[2, 0] / amplitude[0, 2]) == pytest.approx(1, rel=0.25)


def test_noise_depends_on_the_seed_only():
    one, same, other = (noise_minibatch(WRN, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)


def test_what_training_holds_out_is_not_searched_with(tmp_path):
    for place in range(2):
        (tmp_path / "ab"[place]).mkdir()
        for each in range(10):
            Image.new("RGB", (32, 32), (20 * each, 100 * place, 0)).save(tmp_path / "ab"[place] / f"{each}.png")
    space = SearchSpace("wrn16_1", num_classes=2)
    assert len(user_minibatch(space, tmp_path, 16).images) == 16
    with pytest.raises(DataError, match="has 16 images"):
        user_minibatch(space, tmp_path, 17)
    assert user_minibatch(space, str(tmp_path), 8).about["val_share"] == 0.2


@pytest.mark.parametrize("name", ["folder", None])
def test_a_folder_of_images(folder, name):
    root = folder if name else None
    minibatch = dataset_minibatch(WRN, name or str(folder), root, batch_size=8, seed=1)
    assert minibatch.images.shape == (8, 3, 32, 32)
    assert set(minibatch.labels.tolist()) <= {0, 1, 2}
    again = dataset_minibatch(WRN, name or str(folder), root, batch_size=8, seed=1)
    other = dataset_minibatch(WRN, name or str(folder), root, batch_size=8, seed=2)
    assert minibatch.source == again.source
    assert minibatch.source != other.source
    # Normalised with the mean and standard deviation of the network: a green of 100 stays one number.
    expected = (100 / 255 - 0.4822) / 0.1994
    assert minibatch.images[:, 1].allclose(torch.tensor(expected), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "root", "batch_size", "message"),
    [
        (
            "torch/cifar10",
            "nowhere",
            8,
            r"no data folder 'nowhere'; use the one in which torch/cifar10 is \(root=\)",
        ),
        ("nowhere", None, 8, r"no folder 'nowhere'; use a folder of images, or torch/cifar10 and its folder"),
        ("torch/cifar10", "", 8, r"no dataset torch/cifar10 in '.*': it is not whole, as torchvision unpacks it"),
        ("torch/no_such", "", 8, r"no dataset torch/no_such in '.*': .+"),
        ("folder", "", 13, r"' has 12 images; use a batch_size= of at most 12"),
    ],
)
def test_errors_say_what_to_write(folder, name, root, batch_size, message):
    with pytest.raises(DataError, match=message) as error:
        dataset_minibatch(WRN, name, folder if root == "" else root, batch_size)
    assert "\n" not in str(error.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"no images in '.*'; use a folder of one folder a class"):
        dataset_minibatch(WRN, str(tmp_path))


def test_labels_must_fit_the_network(folder):
    with pytest.raises(DataError, match=r"labels run from 0 to 2, but the network has 2 classes; use num_classes=3"):
        dataset_minibatch(SearchSpace("wrn16_1", ["S"], num_classes=2), str(folder), batch_size=12)


IMAGES, LABELS = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10
PIXELS = torch.arange(12 * 3 * 32 * 32).remainder(256).view(12, 3, 32, 32).byte()
MEAN, STD = (torch.tensor(each).view(3, 1, 1) for each in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
NORMALISED = (PIXELS / 255 - MEAN) / STD


class Items(Dataset):
    """A dataset of whatever its items are."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    """The same, one after the other."""

    def __init__(self, *items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_tensors():
    expected = tensor_minibatch(WRN, IMAGES, LABELS)
    assert expected.num_batches == 1
    assert torch.equal(expected.images, IMAGES)
    backwards, unwritable = IMAGES.numpy()[::-1].copy()[::-1], IMAGES.numpy().copy()
    unwritable.flags.writeable = False
    for images in (backwards, unwritable):
        for labels in (LABELS.int(), LABELS.byte(), LABELS.short().numpy(), LABELS.tolist()):
            minibatch = tensor_minibatch(WRN, images, labels)
            # The record of a search with one is that of a search with the other.
            assert minibatch.source == expected.source
            assert torch.equal(minibatch.images, IMAGES)
            assert (minibatch.labels.dtype, minibatch.labels.tolist()) == (torch.int64, LABELS.tolist())
    assert tensor_minibatch(WRN, IMAGES.bfloat16(), LABELS).images.dtype == torch.float32
    assert tensor_minibatch(WRN, IMAGES.double(), LABELS).images.dtype == torch.float64


def test_pixels_are_normalised_as_the_network_wants_them():
    for images in (PIXELS, PIXELS.numpy()):
        torch.testing.assert_close(tensor_minibatch(WRN, images, LABELS).images, NORMALISED)
    grey = SearchSpace("wrn16_1", ["S"], in_chans=1)
    torch.testing.assert_close(
        tensor_minibatch(grey, PIXELS[:, :1], LABELS).images, (PIXELS[:, :1] / 255 - 0.4734) / 0.2009
    )
    # The normalised ones are taken as they are, and so are those that are normalised otherwise.
    for images in (NORMALISED, (PIXELS / 255 - 0.5) / 0.1, torch.zeros_like(IMAGES)):
        assert torch.equal(tensor_minibatch(WRN, images, LABELS).images, images)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS.float(), LABELS, r"^images of floats run from 0 to 255, so they are not normalised; use uint8"),
        (PIXELS.double() - 128, LABELS, r"^images of floats run from -128 to 127, so they are not normalised"),
        (PIXELS / 255, LABELS, r"^images of floats run from 0 to 1, scaled but not normalised; use .* mean \(0\.49"),
        (PIXELS.long(), LABELS, "^images are uint8, or floats that are normalised, not int64; use uint8$"),
        (
            IMAGES[..., :28, :28],
            LABELS,
            r"^images are \(N, 3, 32, 32\) in this space, not \(12, 3, 28, 28\); use "
            r"SearchSpace\(…, image_size=28\), or other images$",
        ),
        (IMAGES[..., :28], LABELS, r"; use SearchSpace\(…, image_size=\(32, 28\)\), or other images$"),
        (IMAGES[:, :1, :28, :28], LABELS, r"; use SearchSpace\(…, in_chans=1, image_size=28\), or other images$"),
        (IMAGES.permute(0, 2, 3, 1), LABELS, r"not \(12, 32, 32, 3\); put the channels first, as images\.transpose\("),
        (IMAGES[:, 0], LABELS, r"^images are \(N, 3, 32, 32\), not \(12, 32, 32\); use images\[:, None\] for grey"),
        (IMAGES, LABELS[:3], r"^labels are \(N,\), one an image, not \(3,\) for images \(12, 3, 32, 32\)$"),
        (
            IMAGES.index_fill(0, torch.tensor([3]), torch.nan),
            LABELS,
            "^images have 3,072 values that are NaN; use images without any$",
        ),
        (IMAGES[:0], LABELS[:0], r"^there are no images: their shape is \(0, 3, 32, 32\); use one or more$"),
        (IMAGES, LABELS.float(), "^labels are whole numbers, one an image, not float32; use the numbers"),
        (
            IMAGES,
            LABELS + 8,
            r"^labels run from 8 to 17, but the network has 10 classes; use .*num_classes=18\) or more$",
        ),
        (IMAGES, LABELS - 1, "^labels run from -1 to 8, but the network has 10 classes; use labels from 0 on$"),
        (["bird"], LABELS, "^images are tensors or numpy arrays of numbers, not list$"),
    ],
)
def test_tensors_that_do_not_fit(images, labels, message):
    for data in ((images, labels), [(images, labels)]):
        with pytest.raises(DataError, match=message):
            user_minibatch(WRN, data, batch_size=4)


def test_a_network_that_takes_pixels_as_they_are():
    layout = Layout.custom("takes_pixels", [1], [8])
    name = "blockswap_models.searching.space.data_config"
    for std, images in ((1 / 255, PIXELS.float()), (1.0, PIXELS / 255)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, lambda *_, std=std: {"mean": (0.0,) * 3, "std": (std,) * 3})
            assert torch.equal(tensor_minibatch(SearchSpace(layout, ["S"]), images, LABELS).images, images)


def test_a_dataset_is_drawn_from():
    sets = [
        TensorDataset(IMAGES, LABELS),
        Items(*zip(IMAGES.numpy(), LABELS.tolist(), strict=True)),
        Items(*zip(IMAGES, LABELS.int(), strict=True)),
    ]
    minibatches = [user_minibatch(WRN, each, 5, seed=1) for each in sets]
    for minibatch in minibatches:
        assert (minibatch.images.shape, minibatch.num_batches) == ((10, 3, 32, 32), 2)
        assert torch.equal(minibatch.images, minibatches[0].images)
        assert torch.equal(minibatch.labels, minibatches[0].labels)
        # Each image once, with its own label.
        places = [int((image == IMAGES).flatten(1).all(dim=1).nonzero()) for image in minibatch.images]
        assert len({*places}) == 10
        assert LABELS[places].tolist() == minibatch.labels.tolist()
    assert not torch.equal(user_minibatch(WRN, sets[0], 5, seed=2).images, minibatches[0].images)
    with pytest.raises(DataError, match=r"^the TensorDataset has 12 images; use a batch_size of at most 12$"):
        user_minibatch(WRN, sets[0], 13)
    with pytest.raises(DataError, match=r"^the Items gives dict, not pairs of images and labels; have it give pairs$"):
        user_minibatch(WRN, Items({"image": IMAGES[0]}), 1)


def test_pictures_of_a_dataset_are_made_as_the_network_wants_them():
    pictures = [Image.new("RGB", (40, 40), (20 * each, 100, 255)) for each in range(4)]
    minibatch = user_minibatch(WRN, Items(*zip(pictures, range(4), strict=True)), 4)
    red = (torch.tensor([20.0 * label for label in minibatch.labels]) / 255 - 0.4914) / 0.2023
    torch.testing.assert_close(minibatch.images[:, 0], red.view(4, 1, 1).expand(4, 32, 32))
    # As bright as these can be, they are normalised.
    white = Image.new("L", (40, 40), 150)
    torch.testing.assert_close(
        user_minibatch(WRN, Items((white, 1)), 1).images, ((150 / 255 - MEAN) / STD).expand(1, 3, 32, 32)
    )


def test_the_first_images_of_a_loader_are_taken():
    loaders = [
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3),
        Stream(*zip(IMAGES, LABELS, strict=True)),
        DataLoader(Stream(*zip(IMAGES, LABELS, strict=True)), batch_size=7),
        [(IMAGES[:2], LABELS[:2]), (IMAGES[2:3], LABELS[2:3]), (IMAGES[3:].numpy(), LABELS[3:])],
    ]
    for loader in loaders:
        minibatch = user_minibatch(WRN, loader, 5)
        assert minibatch.num_batches == 2
        assert torch.equal(minibatch.images, IMAGES[:10])
        assert torch.equal(minibatch.labels, LABELS[:10])
    torch.testing.assert_close(
        user_minibatch(WRN, DataLoader(TensorDataset(PIXELS, LABELS), batch_size=4), 12).images, NORMALISED
    )
    taken = []
    endless = ((taken.append(1), (IMAGES, LABELS))[1] for _ in range(1000))
    assert user_minibatch(WRN, endless, 12).num_batches == len(taken) == 16
    with pytest.raises(DataError, match=r"^the DataLoader has 12 images; use a batch_size of at most 12$"):
        user_minibatch(WRN, loaders[0], 13)
    with pytest.raises(DataError, match=r"^the Stream has 0 images$"):
        user_minibatch(WRN, Stream(), 13)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("photos", "no folder 'photos'; use a folder of images"),
        (3, "data are a pair of images and labels, a dataset, a loader or a folder of images, not int$"),
        (
            {"images": IMAGES},
            "data are a pair of images and labels, a dataset, a loader or a folder of images, not dict$",
        ),
    ],
)
def test_data_of_other_kinds(data, message):
    with pytest.raises(DataError, match=f"^{message}"):
        user_minibatch(WRN, data)


def test_a_minibatch_is_for_networks_of_its_size():
    minibatch = noise_minibatch(WRN, 4)
    assert user_minibatch(WRN, minibatch) is minibatch
    with pytest.raises(
        DataError, match=r"^images are \(N, 3, 28, 28\) in this space, not \(4, 3, 32, 32\); use Search"
    ):
        user_minibatch(SearchSpace("wrn16_1", ["S"], image_size=28), minibatch)


@pytest.mark.data
def test_cifar10(cifar_dir):
    minibatch = dataset_minibatch(WRN, "torch/cifar10", cifar_dir, batch_size=128)
    assert minibatch.images.shape == (128, 3, 32, 32)
    assert minibatch.images.mean().abs() < 0.1
    assert minibatch.images.std() == pytest.approx(1.24, abs=0.1)
    assert set(minibatch.labels.tolist()) == set(range(10))


@pytest.mark.data
def test_imagenet_folder(imagenet_val1300):
    minibatch = dataset_minibatch(RESNET, "folder", imagenet_val1300, batch_size=8)
    assert minibatch.images.shape == (8, 3, 224, 224)
    assert len(set(minibatch.labels.tolist())) > 4


@pytest.mark.parametrize("pixels", [np.full((32, 32), 32768, np.uint16), np.full((32, 32), 128, np.uint8)])
def test_pictures_of_16_bits_are_scaled(pixels):
    pictures = [(Image.fromarray(pixels), number % 2) for number in range(4)]
    images = user_minibatch(WRN, PicturesOf(pictures), 4).images
    grey = torch.tensor(WRN.data_config["mean"]), torch.tensor(WRN.data_config["std"])
    assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx(((128 / 255 - grey[0]) / grey[1]).tolist(), abs=1e-3)


def test_pictures_of_floats_have_no_known_range():
    pictures = [(Image.fromarray(np.full((32, 32), 0.5, np.float32)), number % 2) for number in range(4)]
    with pytest.raises(DataError, match="an image of the dataset cannot be used: its values have 32 bits"):
        user_minibatch(WRN, PicturesOf(pictures), 4)


class PicturesOf(Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index]


def test_scaled_images_are_told_a_little_beyond_their_range_too():
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for scaled in (images, 1.05 * images - 0.02):
        with pytest.raises(DataError, match="scaled but not normalised"):
            tensor_minibatch(WRN, scaled, torch.zeros(8, dtype=torch.long))
