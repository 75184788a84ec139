"""The choice of a library's blocks."""

import copy
import itertools
import multiprocessing
import os
import signal
import statistics

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from blockswap_models import (
    BlockLibrary,
    BlockType,
    Budget,
    BudgetError,
    Genome,
    RecordError,
    SearchResult,
    profile,
    swap,
    train_library,
)
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.searching.block_choice import best_by_errors, joined_accuracy, search_library, space_of_library
from blockswap_models.searching.probe_images import Minibatch, tensor_minibatch
from blockswap_models.searching.record import read_ranking, read_record

TYPES = ("G4", "B2")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5, zero_init_last=False).eval()


@pytest.fixture(scope="module")
def library(model, tmp_path_factory):
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8)
    loader = CifarLoader(images, torch.zeros(16, dtype=torch.long), 8, training=True, cutout=0)
    folder = tmp_path_factory.mktemp("library") / "lib"
    with pytest.warns(UserWarning, match="random weights"):
        return train_library(model, loader, folder, data="noise", types=TYPES, steps=1, measure=1)


@pytest.fixture(scope="module")
def space(model, library):
    return space_of_library(model, library)


def every(space, library, budget):
    """All genomes within a budget with their sums of errors, by listing them."""
    found = []
    for types in itertools.product(("K", *TYPES), repeat=4):
        genome = Genome("/".join(types))
        if budget.fits(space.cost(genome)):
            error = sum(library.error(at, block) for at, block in enumerate(genome.blocks))
            found.append((error, genome))
    return sorted(found)


@pytest.mark.parametrize(
    "budget", [Budget(params=(100_000, 300_000)), Budget(params=(100_000, 300_000), macs=(None, 90_000_000))]
)
def test_the_genomes_with_the_smallest_sums_are_found_in_order(space, library, budget):
    wanted = every(space, library, budget)
    assert len(wanted) > 8
    found = best_by_errors(space, budget, library, 6)
    assert [each.error for each in found] == pytest.approx([error for error, _ in wanted[:6]])
    assert [each.genome for each in found] == [genome for _, genome in wanted[:6]]
    assert all(each.cost == space.cost(each.genome) and each.gap < 1e-6 for each in found)
    assert len(best_by_errors(space, budget, library, 1000)) == len(wanted)


def test_budgets_of_size_and_latency_are_met_exactly(model, library):
    table = profile(space_of_library(model, library), rounds=1, passes=1)
    space = space_of_library(model, library, table)
    middle = statistics.median(
        space.cost("/".join(types)).latency for types in itertools.product(("K", *TYPES), repeat=4)
    )
    for asked in ({"size": "..600kB"}, {"size": "300kB..600kB", "macs": "..80m"}, {"latency": (0, middle)}):
        sized, budget = space.resolve(asked)
        wanted = every(sized, library, budget)
        assert 1 < len(wanted) < 81, asked
        found = best_by_errors(sized, budget, library, 100)
        assert [each.genome for each in found] == [genome for _, genome in wanted]
        assert all(budget.fits(each.cost) for each in found)


def measured(model, library, images, record, **kwargs):
    return search_library(model, library, Budget(params=(100_000, 300_000)), images, number=4, record=record, **kwargs)


def test_a_killed_search_keeps_what_it_measured(model, library, space, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    pictures = random.integers(256, size=(16, *space.input_size), dtype=np.uint8)
    images = tensor_minibatch(space, pictures, random.integers(5, size=16))

    def killed(genomes):
        for number, genome in enumerate(genomes):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield genome

    record = tmp_path / "record.jsonl"
    process = multiprocessing.get_context("fork").Process(
        target=measured, args=(model, library, images, record), kwargs={"progress": killed}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(read_record(record)[1]) == 2
    whole = measured(model, library, images, None)
    joined = []
    monkeypatch.setattr(
        "blockswap_models.searching.block_choice.joined_accuracy",
        lambda network, given: joined.append(network) or joined_accuracy(network, given),
    )
    again = measured(model, library, images, record, resume=True)
    assert again.candidates == whole.candidates
    assert len(joined) == 2
    # The record says all that the accuracies depend on.
    assert read_ranking(record)[1] == whole.candidates
    assert SearchResult.load(record, space).best == whole.best
    with pytest.raises(RecordError, match="is of a test_resnet with weights of its own; use space="):
        SearchResult.load(record)
    with pytest.raises(RecordError, match="exists; continue it with resume=True"):
        measured(model, library, images, record)
    other = tensor_minibatch(space, pictures[::-1].copy(), images.labels.numpy())
    with pytest.raises(RecordError, match="is the record of another search: data"):
        measured(model, library, other, record, resume=True)


def test_a_budget_that_nothing_meets(space, library):
    with pytest.raises(BudgetError, match="no genome of the library meets params up to 1,000"):
        best_by_errors(space, Budget(params=(None, 1_000)), library)


def test_what_is_best_when_joined_is_chosen(model, library, space):
    random = np.random.default_rng(0)
    pictures = random.integers(256, size=(32, *space.input_size), dtype=np.uint8)
    images = tensor_minibatch(space, pictures, random.integers(5, size=32))
    budget = Budget(params=(100_000, 300_000))
    result = search_library(model, library, budget, images, number=3)
    assert {each.genome for each in result.candidates} == {
        each.genome for each in best_by_errors(space, budget, library, 3)
    }
    scores = [each.score for each in result.candidates]
    assert scores == sorted(scores, reverse=True)
    joined = swap(model, result.best.genome, library=BlockLibrary.load(library.folder))
    assert joined_accuracy(joined, images) == result.best.score
    assert library.error(0, BlockType("K")) == 0


def test_the_statistics_of_a_joined_network_are_those_of_the_images(model):
    random = np.random.default_rng(0)
    joined = copy.deepcopy(model)
    norms = [each for each in joined.modules() if isinstance(each, nn.BatchNorm2d)]
    # Statistics with which nothing is right, of many batches.
    for each in norms:
        each.running_mean.fill_(5)
        each.num_batches_tracked.fill_(1000)
    images = torch.from_numpy(random.normal(size=(32, 3, 32, 32))).float()
    batches = [images[:16], images[16:]]
    right = copy.deepcopy(joined)
    update_bn(batches, right)
    with torch.no_grad():
        # The answers of the network as it should be are the labels, so that one other answer shows.
        labels = torch.cat([right.eval()(each).argmax(1) for each in batches])
        assert len(labels.unique()) > 1
        assert (torch.cat([joined.eval()(each).argmax(1) for each in batches]) != labels).any()
    assert joined_accuracy(joined, Minibatch(images, labels, "noise", 2)) == 100
    assert not any(each.training for each in joined.modules())
    for one, other in zip(joined.buffers(), right.buffers(), strict=True):
        torch.testing.assert_close(one, other)
