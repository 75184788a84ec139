"""Scores that the draws of all genomes make surer."""

import math

import numpy as np
import pytest

from benchmarks.lib.correlation import spearman
from blockswap_models import Cost, Genome, SearchSpace, search, search_front
from blockswap_models.searching import shrinkage
from blockswap_models.searching.candidates import Candidate, estimated, rank, rank_by_own
from blockswap_models.searching.record import read_front, read_ranking
from blockswap_models.searching.shrinkage import FEWEST, estimates, features

NOISE = 0.3


@pytest.fixture(scope="module")
def genomes():
    space = SearchSpace("wrn16_1")
    return space.sample(200, space.resolve("60k")[1], 0)


def truths(genomes, additive=0.4, own=0.2, seed=0):
    """Scores, in logarithms, that blocks add up to but for a part of each genome's own."""
    random = np.random.default_rng(seed)
    given, _ = features(genomes)
    added = given @ random.normal(size=given.shape[1])
    return additive * added / added.std() + own * random.normal(size=len(genomes))


def drawn(truth, numbers, seed=1):
    random = np.random.default_rng(seed)
    return [(each + NOISE * random.normal(size=number)).tolist() for each, number in zip(truth, numbers, strict=True)]


def candidates_of(genomes, draws):
    scores = [tuple(map(math.exp, each)) for each in draws]
    return [Candidate(genome, Cost(1, 1), each) for genome, each in zip(genomes, scores, strict=True)]


def test_estimates_are_nearer_to_the_truth_and_say_how_near(genomes):
    # Every fourth was refined.
    numbers = [4 if number % 4 == 0 else 1 for number in range(len(genomes))]
    off, own, deviations = [], [], []
    for seed in range(5):
        truth = truths(genomes, seed=seed)
        draws = drawn(truth, numbers, seed + 100)
        found = estimates(genomes, draws)
        off += [each.mean - true for each, true in zip(found, truth, strict=True)]
        deviations += [each.deviation for each in found]
        own += [np.mean(each) - true for each, true in zip(draws, truth, strict=True)]
    assert np.std(off) < 0.8 * np.std(own)
    assert np.std(np.array(off) / deviations) == pytest.approx(1, abs=0.15)
    # More draws make surer.
    assert max(deviations[::4]) < min(deviations[1::4])


def test_the_posterior_is_that_of_the_whole_covariance(genomes, monkeypatch):
    """Solved by hand, genome by genome, at the variances with which the fit begins."""
    genomes = genomes[:40]
    numbers = np.array([1, 2, 4, 1] * 10)
    y = np.array([np.mean(each) for each in drawn(truths(genomes), numbers)])
    y -= y.mean()
    (given, groups), between, noise = features(genomes), 0.2, 0.09
    own = 0.1 * between
    prior = own * np.eye(len(genomes))
    for group in range(7):
        part = given[:, groups == group]
        prior += 0.9 * between / 7 * part @ part.T / np.square(part).sum(1).mean()
    whole = prior + np.diag(noise / numbers)
    variance = np.diag(prior - prior @ np.linalg.solve(whole, prior))
    monkeypatch.setattr(shrinkage, "_UPDATES", 1)
    found, deviations = shrinkage._posterior(given, groups, y, numbers, between, noise)
    assert found == pytest.approx(prior @ np.linalg.solve(whole, y), abs=1e-9)
    assert deviations == pytest.approx(np.sqrt(variance), abs=1e-9)


def test_updates_make_the_draws_likelier(genomes, monkeypatch):
    """Where one place alone matters, the fit finds that."""
    given, groups = features(genomes)
    random = np.random.default_rng(0)
    truth = given[:, groups == 2] @ random.normal(size=int((groups == 2).sum())) * 0.5
    draws = drawn(truth, [2] * len(genomes))

    def off(updates):
        monkeypatch.setattr(shrinkage, "_UPDATES", updates)
        return np.std([each.mean - true for each, true in zip(estimates(genomes, draws), truth, strict=True)])

    assert off(20) < 0.75 * off(1)


def test_genomes_that_are_additive_learn_from_each_other_and_others_do_not(genomes):
    numbers = [2] * len(genomes)
    of_blocks = estimates(genomes, drawn(truth := truths(genomes, 0.4, 0.0), numbers))
    assert np.std([each.mean - true for each, true in zip(of_blocks, truth, strict=True)]) < 0.7 * NOISE / math.sqrt(2)
    # Without anything in common, each is moved towards the mean of all, which is better than not.
    draws = drawn(truth := truths(genomes, 0.0, 0.4), numbers)
    alone = [each.mean - true for each, true in zip(estimates(genomes, draws), truth, strict=True)]
    assert np.std(alone) < np.std([np.mean(each) - true for each, true in zip(draws, truth, strict=True)])


def test_two_sets_of_draws_agree_more(genomes):
    truth = truths(genomes)
    one, other = (candidates_of(genomes, drawn(truth, [2] * len(genomes), seed)) for seed in (1, 2))

    def agreement(ranking):
        scores = [{each.genome: each.score for each in ranking(some)} for some in (one, other)]
        return spearman(*([each[genome] for genome in genomes] for each in scores))

    assert agreement(rank) > agreement(rank_by_own) + 0.02


@pytest.mark.parametrize(
    ("number", "draws"),
    [(FEWEST - 1, [1.0, 2.0]), (60, [1.0]), (60, [1.0, 1.0])],
    ids=["few genomes", "one draw", "draws that do not differ"],
)
def test_nothing_is_estimated_where_noise_is_unknown(genomes, number, draws):
    some = [(each, [draw * (1 + place) for draw in draws]) for place, each in enumerate(genomes[:number])]
    assert estimates(*zip(*some, strict=True)) is None
    scored = [Candidate(genome, Cost(1, 1), tuple(each)) for genome, each in some]
    assert rank(scored) == rank_by_own(scored) == scored[::-1]


def test_the_same_types_everywhere_are_no_features():
    same = [Genome("6xG4/6xG4/6xG4")] * 30
    assert features(same)[0].shape == (30, 0)
    found = estimates(same, drawn(np.linspace(0, 1, 30), [2] * 30))
    assert np.isfinite([each.mean for each in found]).all()


def test_scores_that_are_not_finite_stay_last_and_do_not_count(genomes):
    draws = drawn(truths(genomes), [2] * len(genomes))
    whole = candidates_of(genomes, draws)
    broken = Candidate(Genome("2xG16/2xG16/2xG16"), Cost(1, 1), (math.nan, 1.0))
    ranking = rank([broken, *whole])
    assert ranking[-1].genome == broken.genome
    assert math.isnan(ranking[-1].score)
    assert {each.genome: each.score for each in ranking[:-1]} == {each.genome: each.score for each in rank(whole)}


def test_scores_below_zero_are_estimated_as_they_are(genomes):
    draws = drawn(truths(genomes) - 5, [2] * len(genomes))
    found = estimated(Candidate(genome, Cost(1, 1), tuple(each)) for genome, each in zip(genomes, draws, strict=True))
    expected = estimates(genomes, draws)
    assert [each.score for each in found] == pytest.approx([each.mean for each in expected])
    assert all(math.isnan(each.standard_error_factor) for each in found)


def test_each_part_of_a_sum_of_ranks_is_estimated_by_its_own_draws(genomes):
    truth, numbers = truths(genomes), [2] * len(genomes)
    draws, cost = drawn(truth, numbers), np.arange(len(genomes)) + 1.0
    parts = [
        tuple({"noisy": math.exp(value), "exact": exact} for value in each)
        for each, exact in zip(draws, cost, strict=True)
    ]
    some = [
        Candidate(genome, Cost(1, 1), (math.nan, math.nan), None, each)
        for genome, each in zip(genomes, parts, strict=True)
    ]
    found = estimated(some)
    means = np.array([each.mean for each in estimates(genomes, draws)])
    shares = ((means[:, None] >= means).mean(1) + (cost / len(cost))) / 2
    # Both are without ties, so that a rank is the number of those that are not better.
    assert [each.score for each in found] == pytest.approx(shares.tolist(), abs=1 / len(genomes))
    assert all(1 < each.standard_error_factor < 3 for each in found)
    exact = [
        Candidate(each.genome, each.cost, each.scores, None, tuple({"exact": one["exact"]} for one in each.parts))
        for each in some
    ]
    assert not any(each.estimate for each in estimated(exact))


def wobbling(model, images, labels):
    """Depends on the genome and, by the weights, on the draw."""
    weights = torch_sum(model)
    return math.exp(0.3 * math.sin(1000 * weights) + sum(len(str(each)) for each in model.genome.blocks) / 10)


def torch_sum(model):
    return float(sum(each.detach().double().sum() for each in model.parameters()))


def test_search_and_record_name_the_same_order_by_estimates(tmp_path):
    record = tmp_path / "search.jsonl"
    found = search("wrn16_1", "60k", 60, score=wobbling, refine=1, record=record)
    assert all(each.estimate for each in found)
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)
    assert scores != [each.score for each in rank_by_own(found)]
    _, ranking = read_ranking(record)
    assert [(each.genome, each.score) for each in ranking] == [(each.genome, each.score) for each in found]
    # One draw each is the paper's way: nothing says how noisy they are.
    plain = search("wrn16_1", "60k", 60, score=wobbling, refine=0)
    assert not any(each.estimate for each in plain)


def test_a_front_and_its_budgets_give_a_genome_one_score(tmp_path):
    record = tmp_path / "front.jsonl"
    found = search_front("wrn16_1", ["50k", "80k"], 30, score=wobbling, strategy="random", refine=1, record=record)
    scores = {each.genome: each.score for result in found.results for each in result}
    assert len(scores) == 60
    assert all(each.estimate for each in found.candidates)
    assert {each.genome: each.score for each in found.candidates}.items() <= scores.items()
    # A genome of one draw may be on it.
    best = max(scores.values())
    assert found.candidates[-1].score == best
    read = read_front(record)
    assert [each.score for each in read.front] == [each.score for each in found.candidates]
