import os
import signal
from unittest import mock

import pytest

from blockswap_models import Budget, SearchSpace, search

dask = pytest.importorskip("dask", reason="needs the extra dask")
distributed = pytest.importorskip("distributed", reason="needs the extra dask")


@pytest.fixture
def forks():
    """Has workers fork from one process that has loaded what they need: that takes most of the time."""
    # A cluster leaves the variables that its workers start with.
    with (
        mock.patch.dict(os.environ),
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
    ):
        distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "blockswap_models.searching.scorer"])
        yield


def test_a_cluster_gives_the_same_answer_though_a_worker_is_killed(forks):
    space, budget = SearchSpace("wrn16_1"), Budget(params=70_000)
    small = {"samples": 10, "batch_size": 2, "refine": 1}
    expected = search(space, budget, **small)

    def kill_one(rows, *_):
        for number, row in enumerate(rows):
            if number == 3:
                os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
            yield row

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert search(space, budget, executor=client.get_executor(), progress=kill_one, **small) == expected
