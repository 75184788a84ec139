"""Fixtures: real images where BLOCKSWAP_DATA names their folder, and one thread a process."""

import os
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


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = os.environ.get("BLOCKSWAP_DATA")
    if not folder:
        pytest.skip("set BLOCKSWAP_DATA to a folder with cifar-10-batches-py and imagenet_val1300")
    return Path(folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, whatever a test before has set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
