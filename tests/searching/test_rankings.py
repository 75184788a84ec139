import copy
import json
import math
import pickle
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import MeanLogits
from scipy import stats
from torch import nn

from blockswap_models import (
    Budget,
    Candidate,
    Cost,
    Genome,
    Layout,
    SearchSpace,
    count,
    fisher_potential,
    rank_networks,
    search,
    search_front,
)
from blockswap_models.cli.main import main
from blockswap_models.cli.search import SCORE_NAMES
from blockswap_models.nets.networks import build, residual_blocks
from blockswap_models.searching.candidates import ScoredDraw, rank, sum_ranks
from blockswap_models.searching.fisher import fisher_balanced, fisher_by_block
from blockswap_models.searching.one_pass import compute_scores
from blockswap_models.searching.probe_images import dataset_minibatch
from blockswap_models.searching.rankings import (
    SCORES,
    AfterTraining,
    after,
    fisher_printed,
    gradient_norm,
    l2_norm,
    macs,
    naswot,
    params,
    score_named,
    synflow,
    train_accuracy,
    zico,
)
from blockswap_models.searching.record import read_ranking, read_record
from blockswap_models.searching.score_bar import ScoreBar

WRN = Layout.wide_resnet(16, 1)
RESNET = Layout.resnet(18)
NETWORKS = [(WRN, "G4,W1/B2,B4W2/D,M6"), (RESNET, "G4,W1/B2,D/B2G4,M6/D,W4")]
ALL = [*SCORES.values(), after(fisher_potential, 3), after(train_accuracy, 2), after(synflow, 6)]


def named(score):
    return score.__name__


def network(layout=WRN, genome=NETWORKS[0][1], **kwargs):
    torch.manual_seed(0)
    return build(layout, genome, num_classes=7, **({} if layout.preact else {"zero_init_last": False}), **kwargs)


def minibatch(number=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(number, 3, 32, 32, generator=generator).to(dtype)
    return images, torch.randint(7, (number,), generator=generator)


@pytest.mark.parametrize(("layout", "genome"), NETWORKS)
def test_fisher_printed_equals_equation_2_as_printed(layout, genome):
    model = network(layout, genome).double()
    images, labels = minibatch(dtype=torch.float64)
    outputs = []

    def keep(_, __, output):
        output.retain_grad()
        outputs.append(output)
        # What follows may overwrite its input, or adds another gradient.
        return output * 1

    blocks = residual_blocks(model)
    plain = copy.deepcopy(model).train()
    for block in residual_blocks(plain):
        block.get_submodule(block.branch_end).register_forward_hook(keep)
    F.cross_entropy(plain(images), labels).backward()
    expected = sum(float((a.detach() ** 2 * a.grad**2).sum()) / (2 * len(images)) for a in outputs)
    assert len(outputs) == len(residual_blocks(model))
    first, *others = (f"{name}.{each.branch_end}" for name, each in model.named_modules() if each in blocks)
    parts = [fisher_printed(model, images, labels, blocks=names) for names in ([first], others)]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(expected, rel=1e-9)
    assert fisher_printed(model, images, labels) == pytest.approx(expected, rel=1e-9)
    assert fisher_printed(model, images, labels) != pytest.approx(fisher_potential(model, images, labels), rel=1e-2)


def test_by_hand():
    images, labels = torch.tensor([[[[1.0, 3.0]]], [[[-1.0, 3.0]]]]), torch.tensor([0, 1])
    near, far = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-3))
    # First image: A = (0.5, 1.5), m = 3, loss log(1 + exp(-2m)), each g is 1/N · 1/2 · -2σ(-6) = -σ(-6)/2.
    # Second image: A = (-0.5, 1.5), m = 1.5, loss log(1 + exp(2m)), each g is 1/N · 1/2 · 2σ(3) = σ(3)/2.
    printed = (0.25 + 2.25) * ((near / 2) ** 2 + (far / 2) ** 2) / (2 * 2)
    assert fisher_printed(MeanLogits(), images, labels) == pytest.approx(printed, rel=1e-5)
    # m is (1 + w) times the mean of the pixels, 2 and 1: the derivative by w is 1/N (-2σ(-6) · 2 + 2σ(3) · 1).
    assert gradient_norm(MeanLogits(), images, labels) == pytest.approx(far - 2 * near, rel=1e-5)
    assert l2_norm(MeanLogits(), images, labels) == 0.5
    # Both means are positive: the first class is chosen twice, and is right once.
    assert train_accuracy(MeanLogits(), images, labels) == 0.5
    assert params(MeanLogits(), images, labels) == 1
    assert macs(MeanLogits(), images, labels) == 2


def test_zico_by_hand():
    # The minibatches are [2] and [-1] with labels 0, and [1] and [3] with label 0. As above, the derivative by w is the
    # mean over a minibatch of -2σ(-2m) · x, with m = 1.5 x.
    pixels = [2.0, -1.0, 1.0, 3.0]
    images, labels = torch.tensor(pixels).reshape(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    one, other = (
        sum(-2 / (1 + math.exp(3 * pixel)) * pixel for pixel in half) / 2 for half in (pixels[:2], pixels[2:])
    )
    expected = math.log((abs(one) + abs(other)) / 2 / (abs(one - other) / 2))
    assert zico(MeanLogits(), images, labels) == pytest.approx(expected, rel=1e-5)
    # Gradients that do not vary are left out, and there are no others.
    assert zico(MeanLogits(), images[[0, 1, 0, 1]], labels) == 0
    with pytest.raises(ValueError, match="zico compares the gradients of two minibatches; give at least 4 images"):
        zico(MeanLogits(), images[:3], labels[:3])


def test_zico_equals_a_plain_computation():
    model, (images, labels) = network().double(), minibatch(8, dtype=torch.float64)
    gradients = []
    for half in (slice(4), slice(4, None)):
        plain = copy.deepcopy(model).train()
        F.cross_entropy(plain(images[half]), labels[half]).backward()
        layers = [each for each in plain.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
        gradients.append([layer.weight.grad.numpy() for layer in layers])
    # numpy's deviation is that of the population, as in the authors' code.
    pairs = [np.stack(pair) for pair in zip(*gradients, strict=True)]
    expected = sum(math.log((np.abs(pair).mean(axis=0) / pair.std(axis=0)).sum()) for pair in pairs)
    assert zico(model, images, labels) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("layout", "genome"), NETWORKS)
def test_gradient_norm_equals_backward(layout, genome):
    model, (images, labels) = network(layout, genome).double(), minibatch(dtype=torch.float64)
    plain = copy.deepcopy(model).train()
    F.cross_entropy(plain(images), labels).backward()
    expected = sum(float(p.grad.abs().sum()) for p in plain.parameters())
    assert gradient_norm(model, images, labels) == pytest.approx(expected, rel=1e-9)
    assert gradient_norm(model.requires_grad_(False), images, labels) == pytest.approx(expected, rel=1e-9)


def test_l2_norm_equals_the_norm_of_all_parameters_as_one_vector():
    model = network()
    expected = torch.nn.utils.parameters_to_vector(model.parameters()).detach().norm()
    assert l2_norm(model, *minibatch()) == pytest.approx(float(expected), rel=1e-5)


def test_accuracy_takes_the_statistics_of_the_minibatch():
    model, (images, labels) = network(), minibatch(12)
    expected = (copy.deepcopy(model).train()(images).argmax(1) == labels).float().mean()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(5)
    assert train_accuracy(model.eval(), images, labels) == pytest.approx(float(expected))


def test_params_and_macs_are_those_of_images_of_this_size():
    model = network()
    assert params(model, *minibatch()) == sum(p.numel() for p in model.parameters())
    small = torch.zeros(2, 3, 16, 24)
    assert macs(model, small, None) == count(model, (3, 16, 24)).macs < macs(model, *minibatch())


def test_naswot_by_hand():
    relus = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(inplace=True))
    with torch.no_grad():
        relus[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        relus[2].bias.zero_()
    images = torch.tensor([[1.0, -1.0], [1.0, 3.0], [-1.0, 2.0]]).reshape(3, 1, 1, 2)
    # Codes of the two layers: 10 1, 11 0, 01 0. They differ in 2, 3 and 1 of 3 places.
    kernel = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 2.0], [0.0, 2.0, 3.0]])
    assert naswot(relus, images, None) == pytest.approx(math.log(kernel.det()))
    assert math.log(kernel.det()) == pytest.approx(math.log(12))


@pytest.mark.parametrize(("layout", "genome"), NETWORKS)
def test_naswot_equals_pairs_compared_one_by_one(layout, genome):
    model, (images, labels) = network(layout, genome), minibatch(4)
    codes = []
    plain = copy.deepcopy(model).train()
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: codes.append((inputs[0] > 0).flatten(1)))
    plain(images)
    codes = torch.cat(codes, dim=1)
    kernel = torch.tensor([[float((one == other).sum()) for other in codes] for one in codes], dtype=torch.float64)
    assert naswot(model, images, labels) == pytest.approx(float(torch.logdet(kernel)), rel=1e-12)
    with torch.autocast("cpu"):
        assert naswot(model, images, labels) == pytest.approx(float(torch.logdet(kernel)), rel=1e-12)


def test_naswot_of_images_with_one_code_is_the_lowest_of_all():
    relus = nn.Sequential(nn.Flatten(), nn.ReLU())
    assert naswot(relus, torch.tensor([1.0, 2.0, -1.0]).reshape(3, 1, 1, 1), None) == -math.inf


def test_naswot_counts_an_image_that_is_there_several_times_once():
    relus = nn.Sequential(nn.Flatten(), nn.ReLU())
    images = minibatch(4)[0]
    assert naswot(relus, images[[0, 1, 1, 2, 3, 0]], None) == pytest.approx(naswot(relus, images, None), rel=1e-12)


@pytest.mark.parametrize(("layout", "genome"), NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_one_pass_are_those_that_each_has_alone(layout, genome, dtype):
    model, (images, labels) = network(layout, genome), minibatch(dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    asked = {"codes": naswot, "b": fisher_balanced, "params": params, "f": fisher_potential}
    drawn = []
    values, blocks = compute_scores(
        list(asked.items()), model, images, labels, lambda score: nullcontext(drawn.append(score))
    )
    assert list(values) == list(asked)
    assert values == {name: score(model, images, labels) for name, score in asked.items()}
    assert list(blocks) == fisher_by_block(model, images, labels)
    # One pass draws no random numbers.
    assert drawn == [params]
    # Of the balanced potential where the other is not asked for.
    values, blocks = compute_scores([("b", fisher_balanced)], model, images, labels, nullcontext)
    assert sum(blocks) == values["b"] == fisher_balanced(model, images, labels)
    assert compute_scores([("n", naswot)], model, images, labels, lambda _: nullcontext())[1] is None


def test_a_search_ranks_by_fisher_and_naswot_where_none_is_named():
    space = SearchSpace("wrn16_1", num_classes=7)
    given = {"samples": 5, "refine": 0, "batch_size": 4}
    result = search(space, None, **given)
    assert result.searched["score"] == "fisher+naswot"
    named_so = search(space, None, score="fisher+naswot", **given)
    assert (result.best.shares_of, len(result.best.shares)) == ("fisher", 6)
    assert search(space, None, score="fisher", **given).best.shares_of == "the score"
    assert [each.scores for each in result.candidates] == [each.scores for each in named_so.candidates]
    assert search_front(space, ["60k", "90k"], **given).results[0].searched["score"] == "fisher+naswot"


def test_a_network_without_relus_is_ranked_by_fisher_where_no_score_is_named():
    # Its activations are SiLU.
    space = SearchSpace("test_efficientnet", ("K", "G4"), num_classes=7, image_size=32)
    assert not space.has_relus
    given = {"samples": 2, "refine": 0, "batch_size": 4}
    result = search(space, None, **given)
    assert result.searched["score"] == "fisher"
    networks = rank_networks(["test_efficientnet", "wrn16_1"], num_classes=7, image_size=32, batch_size=4)
    assert not any(each.parts for each in networks)
    with pytest.raises(ValueError, match="has no ReLU modules, whose codes naswot compares"):
        search(space, None, score="fisher+naswot", **given)


def test_a_network_whose_relus_are_of_gates_is_ranked_by_fisher_where_no_score_is_named():
    # Its blocks have SiLU, and their squeeze-and-excite ReLU, which a new block has not.
    space = SearchSpace("seresnext26ts", ("K", "G4"), num_classes=7, image_size=32)
    assert any(isinstance(module, nn.ReLU) for module in space.network.model.modules())
    assert not space.has_relus
    result = search(space, None, samples=2, refine=0, batch_size=4)
    assert result.searched["score"] == "fisher"


def test_naswot_names_a_network_without_relus():
    with pytest.raises(ValueError, match="Linear has no ReLU modules, whose codes naswot compares"):
        naswot(nn.Linear(2, 2), *minibatch())


def test_synflow_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([-2.0, 3.0]).reshape(2, 1, 1, 1))
        model[3].weight.copy_(torch.tensor([[5.0, -7.0]]))
        model[3].bias.fill_(-11)
    # With absolute weights R = 2 · 5 + 3 · 7 + 11; each layer's weights carry 31 of it, and the bias is not counted.
    assert synflow(model, torch.full((3, 1, 1, 1), -4.0), None) == 62


@pytest.mark.parametrize(("layout", "genome"), NETWORKS)
def test_synflow_equals_a_finite_difference(layout, genome):
    model = network(layout, genome)

    # All terms θ · ∂R/∂θ are positive, so that their sum is the derivative of R by a common factor of all θ.
    def flow(factor):
        scaled = copy.deepcopy(model).double().eval()
        with torch.no_grad():
            for parameter in scaled.parameters():
                parameter.abs_().mul_(factor if parameter.ndim > 1 else 1)
            return float(scaled(torch.ones(1, 3, 32, 32, dtype=torch.float64)).sum())

    expected = (flow(1 + 1e-5) - flow(1 - 1e-5)) / 2e-5
    assert synflow(model, *minibatch()) == pytest.approx(expected, rel=1e-5)


def test_synflow_warns_where_it_overflows():
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    with pytest.warns(RuntimeWarning, match="synflow of WideResNet overflows float64: (inf|nan)"):
        assert not math.isfinite(synflow(model, *minibatch()))


@pytest.mark.parametrize("score", [fisher_potential, l2_norm], ids=named)
def test_after_equals_a_loop_written_out(score):
    model, (images, labels) = network().double(), minibatch(12, torch.float64)
    trained = copy.deepcopy(model).train()
    velocities = [torch.zeros_like(p) for p in trained.parameters()]
    for start in (0, 4):
        loss = F.cross_entropy(trained(images[start : start + 4]), labels[start : start + 4])
        gradients = torch.autograd.grad(loss, list(trained.parameters()))
        with torch.no_grad():
            for parameter, gradient, velocity in zip(trained.parameters(), gradients, velocities, strict=True):
                velocity.mul_(0.9).add_(gradient + 5e-4 * parameter)
                parameter.sub_(0.1 * velocity)
    expected = score(trained, images[8:], labels[8:])
    assert after(score, 3)(model, images, labels) == pytest.approx(expected, rel=1e-9)
    assert expected != pytest.approx(score(model, images[8:], labels[8:]), rel=1e-6)
    assert after(score, 3, lr=0.0)(model, images, labels) == score(model, images[8:], labels[8:])
    with torch.inference_mode():
        assert after(score, 3)(model.requires_grad_(False), images, labels) == pytest.approx(expected, rel=1e-9)


def test_after_one_minibatch_is_the_score_itself():
    assert after(fisher_potential, 1) is fisher_potential


def test_after_errors():
    with pytest.raises(ValueError, match="minibatches is at least 1, not 0"):
        after(fisher_potential, 0)
    with pytest.raises(ValueError, match="6 images do not split into 4 minibatches of one size"):
        after(fisher_potential, 4)(network(), *minibatch())


def test_names_tell_scores_apart():
    assert len({score.__name__ for score in SCORES.values()}) == len(SCORES)
    assert after(fisher_potential, 10).__name__ == "fisher_after_10"
    assert after(naswot, 100, lr=0.01).__name__ == "naswot_after_100_lr_0.01"
    assert AfterTraining.__name__ == "AfterTraining"


@pytest.mark.parametrize("score", ALL, ids=named)
def test_scores_are_pickled(score):
    again = pickle.loads(pickle.dumps(score))
    assert again == score
    assert again.__name__ == score.__name__


def snapshot(model):
    modules = list(model.modules())
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "parameters": [(id(p), p.data_ptr(), p.dtype, p.requires_grad) for p in model.parameters()],
        "modes": [(m.training, getattr(m, "track_running_stats", None), getattr(m, "groups", None)) for m in modules],
        "hooks": [
            [*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks, *m._backward_pre_hooks] for m in modules
        ],
        "attributes": [sorted(vars(m)) for m in modules],
        "checkpointing": model.grad_checkpointing,
    }


@pytest.mark.parametrize("layout_of", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("score", ALL, ids=named)
def test_leaves_the_model_as_it_was(score, broken, layout_of):
    model = network(drop_rate=0.3, drop_path_rate=0.3)
    model.set_grad_checkpointing()
    model.train()
    model.stages[1].eval()
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = snapshot(model)
    images, labels = minibatch()
    images = images.contiguous(memory_format=layout_of)
    kept = images.clone()
    try:
        score(model, images[:, :2] if broken else images, labels)
        raised = False
    except (RuntimeError, ValueError):
        raised = True
    assert raised == (broken and score not in (l2_norm, params))
    after_it = snapshot(model)
    for one, other in zip(before["values"].values(), after_it["values"].values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(before["gradients"], after_it["gradients"], strict=True):
        assert one is other is None or torch.equal(one, other)
    for key in ("parameters", "modes", "hooks", "attributes", "checkpointing"):
        assert before[key] == after_it[key], key
    assert images.grad is None
    assert torch.equal(images, kept)


@pytest.mark.parametrize("score", SCORES.values(), ids=named)
def test_is_the_same_whatever_surrounds_it(score):
    images, labels = minibatch()
    expected = score(network(), images, labels)
    model = network(drop_rate=0.5, drop_path_rate=0.5)
    model.set_grad_checkpointing()
    assert score(model.train(), images, labels) == expected
    assert score(model.eval(), images, labels) == expected
    with torch.inference_mode():
        assert score(model.requires_grad_(False), images, labels) == expected


def test_the_command_line_knows_the_scores():
    assert tuple(SCORES) == SCORE_NAMES
    code = (
        "import sys\nfrom blockswap_models.cli.main import main\n"
        "assert main('search wrn16_1 --params 60k --score nonsense'.split()) == 2\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "blockswap search: unknown score 'nonsense'; use fisher, " in done.stderr


SEARCH = "search wrn16_1 --params 60k --samples 3 --refine 0 --batch-size 4 --workers 1".split()


@pytest.mark.parametrize(
    ("arguments", "name", "images", "record"),
    [
        ("--score naswot", "naswot", 4, "wrn16_1-params60k-naswot-seed0.jsonl"),
        ("--minibatches 3", "fisher_after_3+naswot_after_3", 12, "wrn16_1-params60k-after3-seed0.jsonl"),
        (
            "--score synflow --minibatches 2",
            "synflow_after_2",
            8,
            "wrn16_1-params60k-synflow-after2-seed0.jsonl",
        ),
    ],
)
def test_search_by_another_score(capsys, tmp_path, monkeypatch, arguments, name, images, record):
    monkeypatch.chdir(tmp_path)
    assert main([*SEARCH, "--json", *arguments.split()]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["record"] == record
    assert [each["score"] for each in report["top"]] == sorted((each["score"] for each in report["top"]), reverse=True)
    header, rows = read_record(record)
    assert header["score"] == name
    assert f" of {images} images" in header["data"]
    assert len(rows) == 3
    # The same search by another score does not go on with it.
    assert main([*SEARCH, "--resume", record, "--score", "l2-norm"]) == 2
    assert "is the record of another search: " in capsys.readouterr().err


def test_minibatches_out_of_range(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SEARCH, "--minibatches", "0"]) == 2
    assert "minibatches is at least 1, not 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.data
def test_all_scores_are_finite_on_cifar10(cifar_dir):
    space = SearchSpace("wrn16_1")
    data = dataset_minibatch(space, "torch/cifar10", cifar_dir)
    for genome in space.sample(3, Budget(params=60_000)):
        torch.manual_seed(0)
        model = space.build(genome)
        for score in [*SCORES.values(), after(fisher_potential, 2)]:
            assert math.isfinite(score(model, data.images, data.labels)), score.__name__


def candidate(genome, *parts):
    draws = [ScoredDraw(Genome(genome), Cost(1, 1), draw, math.nan, None, each) for draw, each in enumerate(parts)]
    return Candidate.of_draws(draws)


def test_sums_of_ranks_by_hand():
    candidates = [
        candidate("S", {"a": 1.0, "b": 50.0}),
        candidate("G2", {"a": 2.0, "b": 10.0}, {"a": 9.0, "b": 20.0}),
        candidate("G4", {"a": 3.0, "b": 20.0}),
        candidate("G8", {"a": 3.0, "b": math.nan}),
    ]
    scores = {str(each.genome): each.scores for each in sum_ranks(candidates)}
    # By a the ranks are 1, 2, 3.5 and 3.5 of 4, by b 3, 1 and 2 of 3.
    assert scores["S"] == (pytest.approx((1 / 4 + 3 / 3) / 2),)
    # The second draw is above all four first draws by a, and as the second of three by b.
    assert scores["G2"] == pytest.approx([(2 / 4 + 1 / 3) / 2, (4.5 / 4 + 2 / 3) / 2])
    assert scores["G4"] == (pytest.approx((3.5 / 4 + 2 / 3) / 2),)
    assert math.isnan(scores["G8"][0])
    # Without the second, S and G4 have 4/3 in all, and by a G4 is higher.
    assert [str(each.genome) for each in rank(candidates[:1] + candidates[2:])] == ["G4", "S", "G8"]
    assert [str(each.genome) for each in rank(candidates[2:] + candidates[:1])] == ["G4", "S", "G8"]
    plain = Candidate(Genome("S"), Cost(1, 1), (3.0,))
    assert sum_ranks([plain]) == [plain]


@pytest.mark.parametrize("number", [6, 12, 100])
def test_equal_sums_of_ranks_tie_whatever_ranks_they_are_of(number):
    # Each has a rank by a, and what is missing to the same sum by b.
    candidates = [candidate("S", {"a": float(place), "b": float(number - place)}) for place in range(number)]
    assert len({each.scores for each in sum_ranks(candidates)}) == 1
    # Then the first of the scores decides.
    assert rank(candidates) == sum_ranks(candidates)[::-1]


def test_the_bar_of_a_search_shows_no_best_sum_of_ranks(capsys):
    draws = [ScoredDraw(Genome("S"), Cost(1, 1), draw, math.nan, None, {"a": 1.0}) for draw in range(2)]
    with ScoreBar() as bar:
        assert list(bar(draws, 2, 0, "scoring")) == draws
    err = capsys.readouterr().err
    assert "scoring" in err
    assert "best" not in err


def test_a_search_by_a_sum_of_ranks(tmp_path):
    space, record = SearchSpace("wrn10_1"), tmp_path / "record.jsonl"
    options = {"score": "macs+params", "samples": 6, "refine": 1, "batch_size": 2, "record": record}
    result = search(space, None, **options)
    ranks = [stats.rankdata([getattr(each.cost, cost) for each in result.candidates]) for cost in ("macs", "params")]
    assert [each.score for each in result.candidates] == pytest.approx(sum(ranks) / 12)
    assert result.best.score == max(each.score for each in result.candidates)
    header, draws = read_record(record)
    assert header["score"] == "macs+params"
    assert all(each.parts == {"macs": each.cost.macs, "params": each.cost.params} for each in draws)
    assert read_ranking(record)[1] == result.candidates
    # What a stopped search wrote is gone on with, to the same end.
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:4]))
    assert search(space, None, **options, resume=True).candidates == result.candidates
    assert record.read_bytes() == b"".join(lines)


def test_scores_have_names():
    both = score_named("fisher-balanced+naswot")
    assert both.parts == (("fisher-balanced", fisher_balanced), ("naswot", naswot))
    assert both.__name__ == "fisher-balanced+naswot"
    assert after(both, 2).__name__ == "fisher-balanced_after_2+naswot_after_2"
    with pytest.raises(TypeError, match="fisher-balanced\\+naswot is a sum of ranks among candidates"):
        both(network(), *minibatch())
    with pytest.raises(ValueError, match="fisher\\+fisher has 'fisher' 2 times; use it once"):
        score_named("fisher+fisher")
    with pytest.raises(ValueError, match="unknown score 'nazwot'; did you mean 'naswot'"):
        score_named("fisher+nazwot")
    assert score_named("naswot") is naswot
    assert score_named(naswot) is naswot
    with pytest.raises(ValueError, match="unknown score 'fischer'; did you mean 'fisher'\\?"):
        score_named("fischer")
    with pytest.raises(TypeError, match="a score is a name or a function of model, images and labels, not int"):
        score_named(3)
