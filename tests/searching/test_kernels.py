import copy

import pytest
import torch
from torch import nn

from blockswap_models import Layout, SearchSpace, fisher_potential
from blockswap_models.nets import native, native_norm
from blockswap_models.nets.networks import build
from blockswap_models.searching import kernels
from blockswap_models.searching.fisher import fisher_by_block
from blockswap_models.searching.probe_images import noise_minibatch
from blockswap_models.searching.scorer import Scorer, fast_dtype

WRN = Layout.wide_resnet(16, 2)
GENOME = "G4,W1/B2,D/B2G4,M6"

needs_compiler = pytest.mark.skipif(native.native_library() is None, reason="no C compiler on this machine")


def scored(model, images, labels):
    return torch.tensor(fisher_by_block(model, images.contiguous(memory_format=torch.channels_last), labels))


@needs_compiler
@pytest.mark.parametrize("layout", [WRN, Layout.resnet(18)])
def test_scores_with_and_without_the_compiler_agree(layout, one_thread, monkeypatch):
    genome = GENOME if layout.preact else "G4,W1/B2,D/B2G4,M6/D,W4"
    torch.manual_seed(0)
    model = build(layout, genome, num_classes=7, **({} if layout.preact else {"zero_init_last": False}))
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    calls = []
    real = native.call_native
    for module in (native, native_norm):
        monkeypatch.setattr(module, "call_native", lambda name, *args: calls.append(name) or real(name, *args))
    fast = scored(model, images, labels)
    # Every BN of the network, but for that of a shortcut nobody scores.
    assert calls.count("norm_act_forward") == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert "grouped_conv_forward" in calls
    for module in (native, native_norm, kernels):
        monkeypatch.setattr(module, "native_library", lambda: None)
    del calls[:]
    plain = scored(model, images, labels)
    assert not calls
    assert torch.allclose(fast, plain, rtol=1e-2)
    exact = torch.tensor(fisher_by_block(copy.deepcopy(model).double(), images.double(), labels))
    assert torch.allclose(fast.double(), exact.double(), rtol=5e-3)


def test_a_score_is_computed_in_the_type_of_the_images_and_the_model_stays(one_thread):
    torch.manual_seed(0)
    model = build(WRN, GENOME, num_classes=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    full = fisher_potential(model, images, labels)
    for layout in (torch.contiguous_format, torch.channels_last):
        half = fisher_potential(model, images.to(torch.bfloat16, memory_format=layout), labels)
        assert half != full
        assert half == pytest.approx(full, rel=0.3)
    assert all("forward" not in vars(module) for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("network", ["wrn16_1", "resnet10"])
def test_a_scorers_network_has_its_weights_by_seed_genome_and_draw_alone(network):
    space = SearchSpace(network)
    scorer = Scorer(space, noise_minibatch(space, 2))
    start = {} if network.startswith("wrn") else {"zero_init_last": False}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for draw, genome in enumerate(space.sample(2)):
        first, again = scorer.network(genome, draw), scorer.network(genome, draw)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.random.fork_rng():
            torch.manual_seed(scorer.seed_of(genome, draw))
            expected = space.build(genome, **start).state_dict()
        for model in (first, again):
            assert model.genome == genome
            assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_draw_takes_the_next_minibatch_and_new_weights():
    space = SearchSpace("wrn16_2")
    data = noise_minibatch(space, 4, num_batches=3)
    assert data.images.shape[0] == 12
    scorer = Scorer(space, data)
    parts = [scorer.minibatch(draw)[0] for draw in range(4)]
    assert torch.equal(parts[0], parts[3])
    assert not torch.equal(parts[0], parts[1])
    assert torch.equal(torch.cat(parts[:3]), data.images)
    # A minibatch is prepared once.
    assert parts[0] is parts[3]
    genome = space.layout.original
    rows = [scorer((genome, draw)) for draw in (0, 1, 0)]
    assert rows[0] == rows[2]
    assert rows[0].score != rows[1].score


@pytest.mark.parametrize(
    ("known", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "amx_tile": False}, torch.float32),
        ({"avx512_bf16": True, "amx_tile": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_tile": True}, torch.bfloat16),
        ({"amx_tile": True}, torch.bfloat16),
    ],
)
def test_the_fast_type_is_that_of_the_device(monkeypatch, known, dtype):
    # Not every version of torch can say both.
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
    for name, answer in known.items():
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda answer=answer: answer, raising=False)
    assert fast_dtype("cpu") == fast_dtype() == dtype
    assert fast_dtype("cuda") == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_a_model_on_the_cpu_is_scored_on_the_gpu():
    space = SearchSpace("wrn16_1")
    genome = "S,G4/W1,B2/S,M6"
    data = noise_minibatch(space, 8)
    rows = [Scorer(space, data, device=device)((genome, 0)) for device in ("cpu", "cuda")]
    assert rows[1].score == pytest.approx(rows[0].score, rel=1e-2)
