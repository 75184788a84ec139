import pytest
import torch

from blockswap_models.training.distributed import process_group, rank_and_size


@pytest.mark.parametrize("size", [None, "", " ", "1"])
def test_without_torchrun_there_is_one_process(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with process_group(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
        assert rank_and_size() == (0, 1)
        assert not torch.distributed.is_initialized()


def test_a_world_size_that_is_no_number(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with (
        pytest.raises(
            ValueError, match=r"^WORLD_SIZE is 'two' in the environment, not a number; unset it, or use torch"
        ),
        process_group(torch.device("cpu")),
    ):
        pass
