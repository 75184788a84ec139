"""Fixtures: real images where BLOCKSWAP_DATA names their folder, and one thread a process."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blockswap_models.searching import workers

torch.set_num_threads(1)
# And so for the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where torch.compile or torch.export came before the first backward pass, autograd would start threads, and refuse to
# work in the forks of this process: an executor that a test makes may fork.
torch.zeros((), requires_grad=True).backward()
# Workers stay for the next test that searches with some, however slow this machine is: each has to load torch.
workers._IDLE_SECONDS = 3600


def pytest_configure(config: pytest.Config) -> None:
    """Has the layers in C compiled once, not again by each program that a test starts, which take 1.5 s for it."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    wrapper = Path(__file__).with_name("compile_once.py")
    # The processes of pytest-xdist have the compiler of the one that started them.
    if compiler is None or wrapper.name in compiler:
        return
    folder = tempfile.mkdtemp(prefix="compile_once")
    command = [sys.executable, "-IS", str(wrapper), folder]
    # It is split at spaces.
    if any(" " in each for each in command):
        shutil.rmtree(folder)
        return
    before = os.environ.get("CC")
    os.environ["CC"] = " ".join([*command, compiler])

    def clean() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("CC")
        if before is not None:
            os.environ["CC"] = before

    config.add_cleanup(clean)


def real_images(name: str) -> Path:
    """The folder of a data set in the folder that BLOCKSWAP_DATA names; skips the test where there is none."""
    root = os.environ.get("BLOCKSWAP_DATA")
    if not root:
        pytest.skip(f"set BLOCKSWAP_DATA to a folder with {name}")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"there is no {name} in the folder of BLOCKSWAP_DATA")
    return folder


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """The folder that torchvision has unpacked CIFAR-10 in."""
    return real_images("cifar-10-batches-py").parent


@pytest.fixture(scope="session")
def imagenet_val1300() -> Path:
    """Images of ImageNet's validation set, in folders of some of its classes."""
    return real_images("imagenet_val1300")


@pytest.fixture(scope="session")
def imagenet_284() -> Path:
    """Small images of ImageNet's training set, in train and val."""
    return real_images("imagenet_284")


@pytest.fixture(scope="session")
def coco_val57() -> Path:
    """Images of COCO with their annotations."""
    return real_images("coco_val57")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, whatever a test before has set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
