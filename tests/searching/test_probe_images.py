import pytest
import torch

from blockswap_models import SearchSpace
from blockswap_models.data.folders import DataError
from blockswap_models.searching.probe_images import dataset_minibatch, noise_minibatch, tensor_minibatch

WRN = SearchSpace("wrn16_1", ["S"])
RESNET = SearchSpace("resnet18", ["S"])


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

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
    # Along one axis the amplitude falls as 1/f: four times the frequency, a quarter of the amplitude.
    amplitude = torch.fft.rfft2(minibatch.images).abs().square().mean(dim=(0, 1)).sqrt()
    assert float(amplitude[0, 2] / amplitude[0, 8]) == pytest.approx(4, rel=0.25)


def test_noise_depends_on_the_seed_only():
    one, same, other = (noise_minibatch(WRN, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)


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
            r"no data folder 'nowhere'; use the folder that holds torch/cifar10 \(root=\)",
        ),
        ("nowhere", None, 8, r"no folder 'nowhere'; write a folder of images, or torch/cifar10 and its folder"),
        ("torch/cifar10", "", 8, r"no dataset torch/cifar10 in '.*': Dataset not found"),
        ("torch/no_such", "", 8, r"no dataset torch/no_such in '.*': .+"),
        ("folder", "", 13, r"folder has 12 images; use a batch_size= of at most 12"),
    ],
)
def test_errors_say_what_to_write(folder, name, root, batch_size, message):
    with pytest.raises(DataError, match=message) as error:
        dataset_minibatch(WRN, name, folder if root == "" else root, batch_size)
    assert "\n" not in str(error.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"no dataset folder in .*0 images"):
        dataset_minibatch(WRN, str(tmp_path))


def test_labels_must_fit_the_network(folder):
    with pytest.raises(DataError, match=r"labels run from 0 to 2, but the network has 2 classes; use num_classes=3"):
        dataset_minibatch(SearchSpace("wrn16_1", ["S"], num_classes=2), str(folder), batch_size=12)


def test_tensors():
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    assert torch.equal(tensor_minibatch(WRN, images, labels).images, images)
    for bad in [(images[:, :1], labels), (images, labels[:3]), (images[0], labels), (images[:0], labels[:0])]:
        with pytest.raises(DataError, match=r"images are \(N, 3, H, W\) and labels \(N,\), not"):
            tensor_minibatch(WRN, *bad)
    with pytest.raises(DataError, match="labels run from 8 to 11, but the network has 10 classes"):
        tensor_minibatch(WRN, images, labels + 8)


@pytest.mark.data
def test_cifar10(data_dir):
    minibatch = dataset_minibatch(WRN, "torch/cifar10", data_dir, batch_size=128)
    assert minibatch.images.shape == (128, 3, 32, 32)
    assert minibatch.images.mean().abs() < 0.1
    assert minibatch.images.std() == pytest.approx(1.24, abs=0.1)
    assert set(minibatch.labels.tolist()) == set(range(10))


@pytest.mark.data
def test_imagenet_folder(data_dir):
    minibatch = dataset_minibatch(RESNET, "folder", data_dir / "imagenet_val1300", batch_size=8)
    assert minibatch.images.shape == (8, 3, 224, 224)
    assert len(set(minibatch.labels.tolist())) > 4
