"""A search does not depend on what the user's program has set around it, and leaves that as it was."""

import functools
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import prune

from blockswap_models import (
    Budget,
    DataError,
    Genome,
    LatencyTable,
    SearchError,
    SearchSpace,
    fisher_potential,
    search,
    search_front,
    swap,
)
from blockswap_models.nets.networks import branch_ends, residual_blocks
from blockswap_models.searching.front import budgets_along
from blockswap_models.searching.plot import plot_genome
from blockswap_models.searching.probe_images import noise_minibatch
from blockswap_models.searching.profile import profile
from blockswap_models.searching.rank_networks import rank_networks
from blockswap_models.searching.rankings import after, score_named
from blockswap_models.searching.record import RecordError, read_front
from blockswap_models.searching.result import SearchResult
from blockswap_models.strips import FAMILIES, family_of

BUDGET = Budget(params=60_000)
SMALL = {"samples": 2, "refine": 0, "batch_size": 4}
GENOME = "2xW1/2xB2W1/2xW1"


def images(dtype=torch.float32, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 3, 32, 32, generator=generator).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return pixels.contiguous(memory_format=layout), torch.tensor([0, 1, 2, 3])


@pytest.fixture
def restored():
    """The defaults of torch, as they were before the test."""
    yield
    torch.set_default_dtype(torch.float32)


def found(score):
    return search("wrn16_1", BUDGET, score=score, dtype=torch.float32, **SMALL).candidates


@pytest.mark.parametrize("score", ["fisher", "naswot", "zico"])
def test_scores_are_those_of_plain_defaults(score, restored):
    wanted = found(score)
    for kind in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(kind)
        assert found(score) == wanted
        assert torch.get_default_dtype() == kind
        torch.set_default_dtype(torch.float32)
    for around in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta")):
        with around:
            assert found(score) == wanted


def test_the_random_numbers_of_a_gpu_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the generator of the GPU is set"))
    search("wrn16_1", BUDGET, **SMALL)


def test_a_space_of_a_name_takes_no_random_numbers():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    SearchSpace("test_resnet")
    assert torch.equal(torch.rand(1), wanted)


def test_parts_of_one_function_are_scores_of_their_own(tmp_path):
    def scaled(model, images, labels, factor):
        return factor * fisher_potential(model, images, labels)

    record = tmp_path / "record.jsonl"
    search("wrn16_1", BUDGET, score=functools.partial(scaled, factor=1), record=record, **SMALL)
    with pytest.raises(RecordError, match=r"score \"scaled\(factor=1\)\" there, \"scaled\(factor=-1\)\" here"):
        search("wrn16_1", BUDGET, score=functools.partial(scaled, factor=-1), record=record, resume=True, **SMALL)


def test_an_error_that_is_kept_gives_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def failing(scores, *_):
        for each in scores:
            yield each
            raise OSError("of the progress")

    try:
        with pytest.raises(OSError, match="of the progress") as kept:
            search("wrn16_1", BUDGET, progress=failing, **SMALL)
        assert torch.get_num_threads() == 2
        assert kept.value.__traceback__ is not None
    finally:
        torch.set_num_threads(before)


# -- networks as people have them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["prune", "weight_norm"])
def test_weights_that_are_computed_are_scored_and_stay(change):
    torch.manual_seed(0)
    model = timm.create_model("blockswap_wrn16_1", genome=GENOME)
    conv = next(each for each in model.stages[0][0].modules() if type(each) is nn.Conv2d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if change == "prune":
            prune.l1_unstructured(conv, "weight", 0.5)
        else:
            nn.utils.weight_norm(conv)
    keys = list(model.state_dict())
    one, other = (fisher_potential(model, *images(channels_last=each)) for each in (False, True))
    assert one == pytest.approx(other, rel=1e-2)
    assert list(model.state_dict()) == keys
    model(images()[0])


def test_probes_within_the_zoos_blocks_are_measured_before_what_overwrites_them():
    torch.manual_seed(0)
    scores = []
    for inplace in (True, False):
        torch.manual_seed(0)
        model = timm.create_model("blockswap_wrn16_1", act_layer=functools.partial(nn.SiLU, inplace=inplace))
        scores.append(fisher_potential(model, *images(), blocks=["conv1", "stages.0.0.bn1"]))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert fisher_potential(timm.create_model("blockswap_wrn16_1"), *images(), blocks="stages.*.0.bn1") > 0


def test_a_swapped_network_has_its_blocks_also_where_it_is_wrapped():
    network = swap(timm.create_model("test_resnet"), "K/G4/B2/K")
    wrapped = nn.Sequential(nn.Identity(), network)
    assert residual_blocks(wrapped) == residual_blocks(network)
    assert branch_ends(wrapped) == branch_ends(network)
    assert len(residual_blocks(network)) == 4


def test_a_given_network_is_ranked_in_float32_and_stays_as_it_is():
    torch.manual_seed(0)
    model = timm.create_model("blockswap_wrn16_1", genome=GENOME)
    (wanted,) = rank_networks([model], score="naswot", batch_size=4)
    (found,) = rank_networks([model.half()], score="naswot", batch_size=4)
    assert found.score == pytest.approx(wanted.score, rel=1e-3)
    assert next(model.parameters()).dtype == torch.float16


def test_kept_blocks_that_differ_have_no_common_time():
    plain = timm.create_model("blockswap_wrn16_1")
    assert isinstance(profile(SearchSpace(swap(plain, "2xK/2xK/2xK"), ["K", "G4"]), rounds=1, passes=1), LatencyTable)
    # In a Wide ResNet of width 1 both blocks of the first stage have 16 channels.
    mixed = swap(plain, "K,D/2xK/2xK")
    with pytest.raises(ValueError, match=r"^blocks 1 and 2 of .* have the same channels and differ, and a table has"):
        profile(SearchSpace(mixed, ["K", "G4"]), rounds=1, passes=1)


def test_an_identity_is_no_place_for_a_block():
    model = timm.create_model("blockswap_wrn16_1", genome="S,I/2xS/2xS")
    with pytest.raises(ValueError, match=r"^stages\.0\.1 of this WideResNet is an identity, in whose place no other"):
        swap(model, "B2/2xS/2xS")


# -- pictures and fronts ---------------------------------------------------------------------------------------------


def test_every_family_has_a_colour(tmp_path):
    genome = Genome("S,G2,W2,B2,B2G2/B2W2,M6,M6K5,D,I")
    assert {family_of(block) for block in genome.blocks} <= FAMILIES.keys()
    assert "I" in genome._repr_html_()
    pytest.importorskip("matplotlib", reason='needs pip install "blockswap_models[plot]"')
    plot_genome("wrn16_1", "S,I/2xS/2xS", tmp_path / "identity.svg")
    with pytest.raises(ValueError, match=r"^no network 'wrn16_1_999k' in the zoo; did you mean 'wrn16_1'"):
        plot_genome("wrn16_1_999k")


def test_a_front_by_a_sum_of_ranks_has_a_record(tmp_path):
    record = tmp_path / "front.jsonl"
    front = search_front("wrn16_1", [60_000, 80_000], score="naswot+params", record=record, **SMALL)
    found = read_front(record)
    assert [each.genome for each in found.front] == [each.genome for each in front.candidates]
    for number, result in enumerate(front.results):
        result.save(tmp_path / f"{number}.jsonl")
        again = SearchResult.load(tmp_path / f"{number}.jsonl")
        assert [each.genome for each in again.candidates] == [each.genome for each in result.candidates]
        assert again.budget == result.budget


def test_a_front_has_the_classes_of_a_folder(tmp_path):
    for place in range(2):
        (tmp_path / "train" / "ab"[place]).mkdir(parents=True)
        for each in range(4):
            Image.new("RGB", (32, 32), (60 * each, 200 * place, 0)).save(
                tmp_path / "train" / "ab"[place] / f"{each}.png"
            )
    front = search_front("wrn16_1", [60_000], data=tmp_path, **SMALL)
    assert front.results[0].space.num_classes == 2


def test_budgets_of_a_narrow_range_are_not_asked_twice():
    budgets = budgets_along(SearchSpace("resnet18", ["G16", "W16"]), "params", 6)
    assert len(set(budgets)) == len(budgets) < 6


def test_noise_is_the_same_in_any_surroundings(restored):
    space = SearchSpace("wrn16_1")
    wanted = noise_minibatch(space, 2).images
    torch.set_default_dtype(torch.float64)
    assert torch.equal(noise_minibatch(space, 2).images, wanted)


# -- what is searched, and on what -----------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers(tmp_path):
    space = SearchSpace("wrn16_1", num_classes=np.int64(5), image_size=np.int64(16))
    result = search(space, BUDGET, seed=np.int64(1), record=tmp_path / "record.jsonl", **SMALL)
    plain = SearchSpace("wrn16_1", num_classes=5, image_size=16)
    assert (
        search(plain, BUDGET, seed=1, record=tmp_path / "record.jsonl", resume=True, **SMALL).candidates
        == result.candidates
    )


def test_scores_that_are_all_0_are_told():
    # The loss of one class is 0.
    with pytest.raises(
        SearchError, match=r"^each of 2 Fisher potentials is 0, since the loss depends on no block; use images"
    ):
        search(SearchSpace("wrn16_1", num_classes=1), BUDGET, **SMALL)


def test_labels_and_shapes_are_looked_at_in_every_form():
    pixels, labels = images()
    many = noise_minibatch(SearchSpace("wrn16_1", num_classes=1000), 8)
    with pytest.raises(DataError, match=r"^labels run from \d+ to \d{2,3}, but the network has 10 classes"):
        search("wrn16_1", BUDGET, data=many, **SMALL)
    last = pixels.numpy().transpose(0, 2, 3, 1)
    with pytest.raises(DataError, match=r"^images are \(N, C, H, W\), not \(4, 32, 32, 3\); put the channels first"):
        rank_networks(["wrn16_1"], data=(last, labels), score="naswot")
    # A list of two minibatches is no pair of images and labels.
    halves = [(pixels[:2], labels[:2]), (pixels[2:], labels[2:])]
    few = {**SMALL, "batch_size": 2, "draws": 2}
    with_loader = search("wrn16_1", BUDGET, data=iter(halves), **few)
    assert search("wrn16_1", BUDGET, data=halves, **few).candidates == with_loader.candidates
    with pytest.raises(DataError, match=r"^7,000 images are one minibatch here, which takes too much memory; use some"):
        search("wrn16_1", BUDGET, data=(pixels[:1].expand(7000, -1, -1, -1), labels[:1].expand(7000)), **SMALL)


def test_a_text_stands_for_itself():
    one = search("wrn16_1", None, genomes=GENOME, **SMALL)
    assert [each.genome for each in one.candidates] == [GENOME]
    assert len(search_front("wrn16_1", "60k", **SMALL).results) == 1
    with pytest.raises(ValueError, match=r"^there is no genome to draw; plot a result that has some$"):
        one[:0].plot()


def test_buffers_are_computed_with_as_images_are():
    # Its pooling blurs by a filter that is no parameter.
    blurred = timm.create_model("resnetblur18", num_classes=10, zero_init_last=False)
    pixels, labels = images(channels_last=True)
    exact = fisher_potential(blurred, pixels, labels)
    assert fisher_potential(blurred, pixels.bfloat16(), labels) == pytest.approx(exact, rel=0.1)
    assert blurred.layer2[0].aa.filt.dtype == torch.float32


def test_what_was_trained_how_is_in_the_name_of_a_sum():
    names = {after(score_named("gradient-norm+naswot"), 2, lr=lr).__name__ for lr in (0.1, 0.01)}
    assert names == {"gradient-norm_after_2+naswot_after_2", "gradient-norm_after_2_lr_0.01+naswot_after_2_lr_0.01"}
    part = functools.partial(fisher_potential, blocks="x")
    assert after(part, 3).__name__ == "fisher(blocks='x')_after_3"


def test_a_notebook_shows_the_strides_of_any_network():
    layout = SearchSpace("mobilenetv2_100").layout
    assert "<td>2</td><td>2</td><td>24</td><td>2</td>" in layout._repr_html_()
    assert repr(layout).startswith("Layout(mobilenetv2_100: ")
