import functools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import blockswap_models
from blockswap_models import (
    Budget,
    BudgetError,
    Cost,
    Genome,
    GenomeError,
    SearchSpace,
    fisher_potential,
    rank_networks,
)
from blockswap_models.searching.candidates import Candidate, rank
from blockswap_models.searching.probe_images import affordable_batches, noise_minibatch, tensor_minibatch
from blockswap_models.searching.rankings import naswot
from blockswap_models.searching.record import RecordError, read_ranking, read_record
from blockswap_models.searching.scorer import fast_dtype
from blockswap_models.searching.search import SearchError

# One score a genome, and the same on every machine.
search = functools.partial(blockswap_models.search, refine=0, dtype=torch.float32)

SPACE = SearchSpace("wrn16_1", ["S", "G4", "W1", "B2", "B2G4"])
BUDGET = Budget(params=70_000, tolerance=0.1)
SMALL = {"samples": 6, "batch_size": 4}


def test_returns_genomes_within_budget_ranked_by_score():
    result = search(SPACE, BUDGET, **SMALL)
    scores = [each.score for each in result.candidates]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    assert result.best is result.candidates[0]
    assert all(BUDGET.fits(each.cost) and each.cost == SPACE.cost(each.genome) for each in result.candidates)
    assert all(sum(each.shares) == pytest.approx(1) for each in result.candidates)


def test_a_score_is_the_fisher_potential_of_the_network_drawn_for_it():
    seen = {}

    def spy(model, images, labels):
        seen[model.genome] = fisher_potential(model, images, labels)
        return seen[model.genome]

    result = search(SPACE, BUDGET, score=spy, **SMALL)
    assert seen == {each.genome: each.score for each in search(SPACE, BUDGET, score="fisher", **SMALL).candidates}
    assert result.best.shares is None


def test_budget_and_score_as_a_person_says_them():
    expected = search(SPACE, Budget(params=(None, 70_000)), score=naswot, **SMALL)
    assert search(SPACE, "..70k", score="naswot", **SMALL) == expected
    assert search(SPACE, {"params": (None, 70_000)}, score="naswot", **SMALL) == expected
    with pytest.raises(ValueError, match="unknown score 'fischer'"):
        search(SPACE, 70_000, score="fischer")


def test_depends_on_seed_genome_and_draw_never_on_order_or_worker():
    given = {"score": "fisher", **SMALL}
    few = {each.genome: each.scores for each in search(SPACE, BUDGET, draws=2, **given).candidates}
    random_before = torch.get_rng_state()
    many = {each.genome: each.scores for each in search(SPACE, BUDGET, **{**given, "samples": 9}).candidates}
    assert torch.equal(torch.get_rng_state(), random_before)
    with ThreadPoolExecutor(2) as executor:
        beside = search(SPACE, BUDGET, draws=2, executor=executor, **given)
    parallel = {each.genome: each.scores for each in beside.candidates}
    other = {each.genome: each.scores for each in search(SPACE, BUDGET, seed=1, **given).candidates}
    assert few == parallel
    assert few.keys() <= many.keys()
    assert all(many[genome][0] == draws[0] != draws[1] for genome, draws in few.items())
    assert few.keys() != other.keys()


def test_scores_exactly_the_genomes_given(tmp_path):
    record = tmp_path / "record.jsonl"
    sampled = search(SPACE, BUDGET, record=record, **SMALL)
    genomes = SPACE.sample(6, BUDGET)
    # Each once, in any spelling and order, as the search that samples scores them; its record serves too.
    spelled = [genome.replace(",", " , ") for genome in [*reversed(genomes), genomes[0]]]
    assert search(SPACE, BUDGET, genomes=spelled, batch_size=4) == sampled
    before = record.read_bytes()
    assert search(SPACE, BUDGET, genomes=iter(genomes), batch_size=4, record=record, resume=True) == sampled
    assert record.read_bytes() == before


def test_the_seed_of_given_genomes_is_that_of_weights_and_minibatch():
    genomes = SPACE.sample(6, BUDGET, seed=0)
    given = {"score": "fisher", "refine": 1}
    one, other = (search(SPACE, BUDGET, genomes=genomes, seed=seed, batch_size=4, **given) for seed in (0, 1))
    assert one == search(SPACE, BUDGET, seed=0, **SMALL, **given)
    assert {each.genome for each in one.candidates} == {each.genome for each in other.candidates}
    assert not {draw for each in one.candidates for draw in each.scores} & {
        draw for each in other.candidates for draw in each.scores
    }


def test_given_genomes_need_no_budget():
    result = search(SPACE, None, genomes=["2xS/S, S/2xS", "2xW1/2xB2/2xG4", "2xS/2xS/2xS"], batch_size=4)
    assert sorted(each.genome for each in result.candidates) == ["2xS/2xS/2xS", "2xW1/2xB2/2xG4"]


@pytest.mark.parametrize(
    ("genomes", "error", "message"),
    [
        ([], ValueError, "no genomes to score; give at least one"),
        (
            ["2xS/2xS/2xS"],
            BudgetError,
            "genome 1 of those to score, 2xS/2xS/2xS, has 175,066 parameters, .*; the budget",
        ),
        (["3xS/2xS/2xS"], GenomeError, "genome 1 of those to score: blockswap_wrn16_1 has stages of 2, 2 and 2 blocks"),
        (["S,G2/2xS/2xS"], GenomeError, "genome 1 of those to score: stage 1, block 2 'G2': not in this search space"),
    ],
)
def test_refuses_genomes_that_do_not_fit(tmp_path, genomes, error, message):
    with pytest.raises(error, match=message):
        search(SPACE, BUDGET, genomes=genomes, record=tmp_path / "record.jsonl")
    assert not list(tmp_path.iterdir())


def test_draws_are_averaged_as_logarithms():
    best = search(SPACE, BUDGET, draws=3, **SMALL).best
    assert math.log(best.score) == pytest.approx(sum(map(math.log, best.scores)) / 3)


def test_takes_tensors_and_minibatches():
    minibatches = noise_minibatch(SPACE, 4, num_batches=affordable_batches(SPACE, 4))
    expected = search(SPACE, BUDGET, draws=2, **SMALL).candidates
    assert search(SPACE, BUDGET, 6, draws=2, data=minibatches).candidates == expected
    # A pair of tensors is one minibatch.
    firsts = {each.genome: each.scores[0] for each in expected}
    result = search(SPACE, BUDGET, 6, data=minibatches.batch(0))
    assert {each.genome: each.score for each in result.candidates} == firsts


def test_refines_by_default_and_computes_in_the_fastest_type(tmp_path):
    record = tmp_path / "record.jsonl"
    result = blockswap_models.search(SPACE, BUDGET, samples=16, batch_size=4, record=record)
    assert [len(each.scores) for each in result.candidates] == [64] + 3 * [4] + 12 * [1]
    assert read_record(record)[0]["dtype"] == str(fast_dtype()).removeprefix("torch.")
    other = next(dtype for dtype in (torch.float32, torch.bfloat16) if dtype != fast_dtype())
    with pytest.raises(RecordError, match=f"another search: dtype .* there, .*{other}".replace("torch.", "")):
        search(SPACE, BUDGET, samples=16, batch_size=4, dtype=other, record=record, resume=True)


def test_resnet_branches_do_not_start_at_zero():
    space = SearchSpace("resnet18", ["S", "G4"], num_classes=10, image_size=32)
    assert search(space, Budget(params=(0, None)), samples=2, batch_size=4).best.score > 0


class Broken(Exception):
    pass


def failing_after(number):
    calls = []

    def score(model, images, labels):
        calls.append(model)
        if len(calls) > number:
            raise Broken
        return fisher_potential(model, images, labels)

    score.__name__ = "spied"
    return score


def test_resumes_to_the_same_record(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    score = failing_after(99)
    expected = search(SPACE, BUDGET, score=score, draws=2, record=whole, **SMALL)
    for number in (4, 3):
        with pytest.raises(Broken):
            search(SPACE, BUDGET, score=failing_after(number), draws=2, record=parts, resume=number == 3, **SMALL)
    # A kill in the middle of a line.
    parts.write_bytes(parts.read_bytes()[:-7])
    calls = failing_after(6)
    assert search(SPACE, BUDGET, score=calls, draws=2, record=parts, resume=True, **SMALL) == expected
    assert parts.read_bytes() == whole.read_bytes()
    # Nothing is left to score.
    assert search(SPACE, BUDGET, score=failing_after(0), draws=2, record=parts, resume=True, **SMALL) == expected


def test_a_record_can_be_extended(tmp_path):
    record = tmp_path / "record.jsonl"
    search(SPACE, BUDGET, record=record, **SMALL)
    more = {"samples": 9, "batch_size": 4, "draws": 2}
    assert search(SPACE, BUDGET, record=record, resume=True, **more) == search(SPACE, BUDGET, **more)
    # Asked for less, it ranks what the record holds, which names the same winner.
    less = search(SPACE, BUDGET, record=record, resume=True, **SMALL)
    assert less.candidates == search(SPACE, BUDGET, **more).candidates == read_ranking(record)[1]
    given = [less.candidates[-1].genome]
    assert search(SPACE, BUDGET, genomes=given, record=record, resume=True, batch_size=4).best.genome == given[0]


def test_a_score_of_the_users_own_draws_the_random_numbers_of_its_genome_and_draw():
    def noisy(model, images, labels):
        return float(torch.rand(()))

    torch.manual_seed(1)
    one = search(SPACE, BUDGET, score=noisy, **SMALL, draws=2)
    torch.manual_seed(2)
    few = search(SPACE, BUDGET, score=noisy, genomes=[one.best.genome], batch_size=4, draws=2)
    assert few.best == one.best
    assert len({score for each in one.candidates for score in each.scores}) == 2 * len(one.candidates)
    mine = rank_networks(["wrn16_1", "wrn16_2"], score=lambda *_: noisy(*_), image_size=16, batch_size=2)
    assert {each.scores for each in mine} == {
        each.scores for each in rank_networks(["wrn16_2", "wrn16_1"], score=noisy, image_size=16, batch_size=2)
    }


def test_means_of_one_ranking_are_of_one_kind():
    cost = Cost(1, 1)
    below, above = Candidate(Genome("S"), cost, (-1.0, 3.2)), Candidate(Genome("G2"), cost, (0.5, 2.5))
    # The geometric mean of the second is 1.118, and its arithmetic mean, as that of the first is, 1.5.
    ranking = rank([below, above])
    assert [each.genome for each in ranking] == ["G2", "S"]
    assert [each.score for each in ranking] == [1.5, pytest.approx(1.1)]
    assert rank([above])[0].score == pytest.approx(1.25**0.5)
    wider = Candidate(Genome("S"), cost, (-1.0, 3.4))
    assert [each.score for each in rank([wider, above])] == [1.5, pytest.approx(1.2)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"batch_size": 5}, 'data "1/f noise, 16 minibatches of 4 images" there, "1/f noise, 16 minibatches of 5 '),
    ],
)
def test_refuses_the_record_of_another_search(tmp_path, change, said):
    record = tmp_path / "record.jsonl"
    search(SPACE, BUDGET, record=record, **SMALL)
    before = record.read_bytes()
    with pytest.raises(RecordError, match=f"is the record of another search: {said}"):
        search(SPACE, BUDGET, record=record, resume=True, **{**SMALL, **change})
    with pytest.raises(RecordError, match=r"exists; continue it with resume=True, or use another record="):
        search(SPACE, BUDGET, record=record, **SMALL)
    assert record.read_bytes() == before


def test_scores_that_are_not_finite_stand_last_and_are_kept(tmp_path):
    record = tmp_path / "record.jsonl"
    broken = search(SPACE, BUDGET, **SMALL).best.genome

    def score(model, images, labels):
        return math.nan if model.genome == broken else fisher_potential(model, images, labels)

    result = search(SPACE, BUDGET, score=score, record=record, **SMALL)
    assert result.candidates[-1].genome == broken
    assert math.isnan(result.candidates[-1].score)
    _, scored = read_record(record)
    assert [each.genome for each in scored if math.isnan(each.score)] == [broken]
    assert search(SPACE, BUDGET, score=score, record=record, resume=True, **SMALL).best == result.best


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_finite_score_is_an_error_that_loses_nothing(tmp_path, value):
    record = tmp_path / "record.jsonl"
    with pytest.raises(SearchError, match="none of 6 scores is finite; look at the data, or choose another score"):
        search(SPACE, BUDGET, score=lambda *_: value, record=record, **SMALL)
    assert len(read_record(record)[1]) == 6


def test_pixels_are_ranked_as_the_images_that_they_are(tmp_path):
    pixels = torch.randint(256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.arange(8)
    normalised = tensor_minibatch(SPACE, pixels, labels).images
    expected = search(SPACE, BUDGET, 3, data=(normalised, labels))
    for data in ((pixels.numpy(), labels.int()), DataLoader(TensorDataset(pixels, labels), batch_size=2)):
        assert search(SPACE, BUDGET, 3, data=data, batch_size=8).candidates == expected.candidates


def test_a_search_whose_scores_are_all_nan_says_so():
    with pytest.raises(SearchError, match="none of 6 scores is finite"):
        search(SPACE, BUDGET, 6, score=lambda model, images, labels: math.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples is at least 1, not 0"),
        ({"draws": 0}, "draws is at least 1, not 0"),
        ({"workers": 0}, "workers is at least 1, not 0"),
        ({"seed": -1}, "seed is at least 0, not -1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(SPACE, BUDGET, **{**SMALL, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 2.5}, "samples is a whole number, not 2.5"),
        ({"samples": "8"}, "samples is a whole number, not '8'"),
        ({"workers": 1.5}, "workers is a whole number, not 1.5"),
        ({"refine": 0.5}, "refine is a whole number, not 0.5"),
        ({"seed": 1.0}, "seed is a whole number, not 1.0"),
        ({"batch_size": 2.5}, "batch_size is a whole number, not 2.5"),
    ],
)
def test_arguments_that_are_no_whole_numbers(tmp_path, arguments, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        search(SPACE, BUDGET, **{**SMALL, **arguments}, record=tmp_path / "record.jsonl")
    assert not list(tmp_path.iterdir())


def test_whole_numbers_of_numpy_are_numbers(tmp_path):
    given = {"samples": np.int64(6), "seed": np.int32(1), "refine": np.int8(0), "batch_size": np.uint8(4)}
    result = search(SPACE, BUDGET, **given, score="fisher", record=tmp_path / "record.jsonl")
    plain = search(SPACE, BUDGET, **{name: int(value) for name, value in given.items()}, score="fisher")
    assert result.best.genome == plain.best.genome
    assert len(read_record(tmp_path / "record.jsonl")[1]) == 6


def test_a_budget_that_cannot_be_met_leaves_no_record(tmp_path):
    with pytest.raises(BudgetError, match="no genome of blockswap_wrn16_1 meets"):
        search(SPACE, Budget(params=10), record=tmp_path / "record.jsonl")
    assert not list(tmp_path.iterdir())


def test_refinement_gives_the_leaders_more_draws(tmp_path):
    record = tmp_path / "record.jsonl"
    once = search(SPACE, BUDGET, samples=16, batch_size=4, score="fisher")
    result = search(SPACE, BUDGET, samples=16, batch_size=4, score="fisher", refine=2, record=record)
    assert [len(each.scores) for each in result.candidates] == [16] + 3 * [4] + 12 * [1]
    leaders = {each.genome for each in once.candidates[:4]}
    assert {each.genome for each in result.candidates[:4]} == leaders
    assert [each.scores[0] for each in result.candidates[4:]] == [each.score for each in once.candidates[4:]]
    (alone,) = search(SPACE, BUDGET, genomes=[result.best.genome], batch_size=4, score="fisher", draws=16).candidates
    assert result.best == alone
    # Stopped anywhere, and resumed.
    lines = record.read_bytes().splitlines(keepends=True)
    for number in (5, 20, 30):
        stopped = tmp_path / f"{number}.jsonl"
        stopped.write_bytes(b"".join(lines[:number]))
        again = search(SPACE, BUDGET, samples=16, batch_size=4, score="fisher", refine=2, record=stopped, resume=True)
        assert again == result
        assert stopped.read_bytes() == record.read_bytes()


def test_the_result_states_its_confidence():
    assert search(SPACE, BUDGET, **SMALL).num_tied is None
    result = search(SPACE, BUDGET, draws=8, **SMALL)
    logs = [math.log(draw) for draw in result.best.scores]
    deviation = (sum((log - sum(logs) / 8) ** 2 for log in logs) / 7) ** 0.5
    assert math.log(result.best.standard_error_factor) == pytest.approx(deviation / 8**0.5)
    within = [
        each
        for each in result.candidates[1:]
        if each.score * each.standard_error_factor >= result.best.score / result.best.standard_error_factor
    ]
    assert result.num_tied == len(within)
