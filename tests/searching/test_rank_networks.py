"""Rankings of given networks: genomes of one network, and whole networks of any layouts."""

import json
import math

import pytest
import timm
import torch
from command_line import run
from PIL import Image
from torch import nn

from blockswap_models import SearchSpace, count, fisher_potential, rank_networks, search
from blockswap_models.errors import BlockSwapError
from blockswap_models.machine import threads_set
from blockswap_models.searching.probe_images import noise_minibatch, tensor_minibatch
from blockswap_models.searching.rankings import macs, naswot
from blockswap_models.searching.scorer import weights_seed

# Small images of few classes, for networks of any layout.
SMALL = {"batch_size": 4, "num_classes": 10, "image_size": 32}
GENOMES = ["2xS/2xG4/2xW1", "2xW1/2xS/2xB2", "2xG4/2xM6/S,I"]
WRN = SearchSpace("wrn16_1")


def images_of(draw):
    """The images of a draw, as scores are computed with them."""
    images, labels = noise_minibatch(WRN, 4, 3, 16).batch(draw)
    return images.contiguous(memory_format=torch.channels_last), labels


def directly(name, draw, **arguments):
    """The Fisher potential of one draw of a network of timm, with nothing of the ranking."""
    torch.manual_seed(weights_seed(3, name, draw))
    model = timm.create_model(name, num_classes=10, **arguments)
    with threads_set(1):
        return fisher_potential(model, *images_of(draw))


def test_whole_networks_have_the_scores_of_fisher_potential():
    state = torch.random.get_rng_state()
    ranking = rank_networks(["wrn16_1", "test_resnet"], score="fisher", draws=2, seed=3, **SMALL)
    assert torch.equal(torch.random.get_rng_state(), state)
    found = {each.name: each for each in ranking}
    # Its branches start at zero, but not where they are scored.
    expected = [directly("test_resnet", draw, zero_init_last=False) for draw in (0, 1)]
    assert found["test_resnet"].scores == pytest.approx(expected, rel=1e-5)
    expected = [directly("blockswap_wrn16_1", draw) for draw in (0, 1)]
    assert found["wrn16_1"].scores == pytest.approx(expected, rel=1e-5)
    assert found["test_resnet"].cost == count(timm.create_model("test_resnet", num_classes=10), (3, 32, 32))
    assert ranking[0].score > ranking[1].score
    assert ranking[0].score == pytest.approx(math.sqrt(math.prod(ranking[0].scores)))


def test_no_branch_of_a_name_starts_at_zero_whatever_it_ends_in():
    (found,) = rank_networks(["regnetx_002"], score="fisher", **SMALL)
    assert found.score > 0


def test_genomes_are_scored_as_by_a_search():
    ranking = rank_networks(GENOMES[:2], "wrn16_1", draws=2, seed=3, batch_size=4)
    found = search(WRN, None, genomes=GENOMES[:2], draws=2, refine=0, seed=3, batch_size=4)
    assert [(each.name, each.scores, each.cost) for each in ranking] == [
        (each.genome, each.scores, each.cost) for each in found.candidates
    ]


def test_genomes_may_have_any_types():
    ranking = rank_networks(GENOMES, "wrn16_1", score="params", batch_size=2)
    models = {each: timm.create_model("blockswap_wrn16_1", genome=each) for each in GENOMES}
    expected = {each: sum(p.numel() for p in model.parameters()) for each, model in models.items()}
    assert {each.name: each.score for each in ranking} == expected
    assert [each.name for each in ranking] == sorted(GENOMES, key=expected.get, reverse=True)


def test_sums_of_ranks_and_functions_are_scores():
    names = ["test_resnet", "wrn16_1", "wrn16_2"]
    # Of three: test_resnet has the second most parameters and the fewest MACs.
    ranking = rank_networks(names, score="params+macs", **SMALL)
    assert {each.name: each.score for each in ranking}["wrn16_1"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert ranking[0].name == "wrn16_2"
    by_number = rank_networks(names, score=lambda model, images, labels: -len([*model.modules()]), **SMALL)
    numbers = [len([*timm.create_model(f"{'blockswap_' * (n[0] == 'w')}{n}").modules()]) for n in names]
    assert sorted(-each.score for each in by_number) == sorted(numbers)
    assert [each.score for each in by_number] == sorted((each.score for each in by_number), reverse=True)


def test_given_networks_of_one_class_are_told_apart():
    models = [timm.create_model("blockswap_wrn16_1", genome=each) for each in GENOMES[:2]]
    ranking = rank_networks([models[0], "test_resnet", models[1]], score="params", **SMALL)
    found = {each.name: each.cost.params for each in ranking}
    assert found["WideResNet 1"] == count(models[0]).params != found["WideResNet 2"] == count(models[1]).params
    assert found.keys() == {"WideResNet 1", "WideResNet 2", "test_resnet"}


def test_a_network_that_is_given_keeps_its_weights():
    torch.manual_seed(0)
    model = timm.create_model("blockswap_wrn16_1")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    images, labels = images_of(0)
    ranking = rank_networks([model, model, "test_resnet"], score=naswot, data=(images, labels))
    found = {each.name: each for each in ranking}
    assert found.keys() == {"WideResNet", "test_resnet"}
    assert found["WideResNet"].scores == (pytest.approx(naswot(model, images, labels), rel=1e-5),)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    # Names become networks of the classes and the images of those that are given.
    assert found["test_resnet"].cost.params == count(timm.create_model("test_resnet", num_classes=10)).params


def test_images_are_made_for_the_networks():
    specs = []

    def images(spec):
        specs.append(spec)
        return tensor_minibatch(spec, torch.zeros(2, *spec.input_size).random_(0, 255).byte(), [0, 1])

    rank_networks(["test_resnet"], score=macs, data=images, image_size=64, num_classes=2)
    assert (specs[0].input_size, specs[0].num_classes) == ((3, 64, 64), 2)
    assert specs[0].data_config["mean"] == timm.get_pretrained_cfg("test_resnet").mean


@pytest.mark.parametrize(
    ("networks", "arguments", "message"),
    [
        ([], {}, "no networks to rank; give at least one"),
        (["6xS/6xG4/6xB2"], {}, "'6xS/6xG4/6xB2' is a genome; say of which network, such as network='wrn40_2'"),
        (["test_resnett"], {}, "unknown model 'test_resnett'; did you mean 'test_resnet'?"),
        (["S/S/Q"], {"network": "wrn16_1"}, "genome 1 of those to score: "),
        (["test_resnet"], {"score": "fishy"}, "unknown score 'fishy'; did you mean 'fisher'?"),
        (["test_resnet"], {"draws": 0}, "draws is at least 1, not 0"),
        (["test_vit"], SMALL, "test_vit cannot be scored: VisionTransformer does not split into blocks"),
        (["test_resnet", "wrn16_1"], {"in_chans": 0}, "in_chans is at least 1, not 0"),
        ([nn.Linear(1, 1)], {}, "Linear does not say how many classes it has; use num_classes="),
        ([nn.Linear(1, 1)], {"num_classes": 1}, "Linear does not say which images it takes; use image_size=224"),
        ([nn.Linear(1, 1)], {"network": "wrn16_1"}, "network= is what genomes are of; leave it out to rank networks"),
    ],
)
def test_errors(networks, arguments, message):
    with pytest.raises((ValueError, BlockSwapError)) as caught:
        rank_networks(networks, **arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_networks_that_do_not_fit_the_images_are_named():
    model = timm.create_model("blockswap_wrn16_1")
    with pytest.raises(ValueError, match=r"^WideResNet has 10 classes, fewer than the 100 of the images; use"):
        rank_networks(["test_resnet", model], score="macs", num_classes=100)
    with pytest.raises(ValueError, match=r"^WideResNet takes no images of 1x32x32: "):
        rank_networks([model], score="macs", in_chans=1)


def test_a_network_that_cannot_be_scored_is_named():
    with pytest.raises(ValueError, match=r"^test_efficientnet cannot be scored: .* has no ReLU modules"):
        rank_networks(["test_efficientnet"], score="naswot", **SMALL)


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_ranks_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("# networks\n\ntest_resnet\nwrn16_1  # of the zoo\n")
    command = ["rank", file, "--image-size", 32, "--num-classes", 10, "--score", "macs", "--batch-size", 2]
    command += ["--workers", 1]
    status, out, _ = run(*command)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "2 networks by macs, on images of 3x32x32:"
    assert lines[2].split() == ["rank", "score", "±", "draws", "params", "MACs", "name"]
    assert [line.split()[-1] for line in lines[3:]] == ["wrn16_1", "test_resnet"]
    status, out, _ = run(*command, "--json")
    report = json.loads(out)
    assert (report["score"], report["input_size"]) == ("macs", [3, 32, 32])
    assert report["networks"][0]["score"] == report["networks"][0]["macs"] == count_of("blockswap_wrn16_1").macs


def count_of(name):
    return count(timm.create_model(name), (3, 32, 32))


def test_the_command_ranks_genomes(tmp_path):
    file = tmp_path / "genomes.txt"
    file.write_text("\n".join(GENOMES[:2]))
    status, out, _ = run(
        "rank", file, "--network", "wrn16_1", "--batch-size", 4, "--draws", 2, "--seed", 3, "--workers", 1, "--json"
    )
    assert status == 0
    expected = rank_networks(GENOMES[:2], "wrn16_1", draws=2, seed=3, batch_size=4)
    assert json.loads(out)["networks"] == [each.as_json() for each in expected]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("6xS/6xG4/6xB2", [], "'6xS/6xG4/6xB2' is a genome; say of which network, such as --network wrn40_2"),
        ("# nothing\n", [], " names no networks; use a file with a genome or a name a line"),
        ("test_resnet", ["--data-dir", "x"], "a data folder needs the dataset's name; use --data torch/cifar10"),
        ("test_resnet", ["--batch-size", "1"], "a minibatch has at least 2 images, not 1"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, text, options, message):
    file = tmp_path / "networks.txt"
    file.write_text(text)
    status, out, errors = run("rank", file, *options)
    assert (status, out, errors.count("\n")) == (2, "", 1)
    assert message in errors


def test_standard_input_is_read():
    from click.testing import CliRunner

    from blockswap_models.cli.main import blockswap

    options = ["--network", "wrn16_1", "--score", "params", "--batch-size", "2", "--workers", "1", "--json"]
    result = CliRunner().invoke(blockswap, ["rank", "-", *options], input="2xG4/2xG4/2xG4\n2xS/2xS/2xS\n")
    assert [each["name"] for each in json.loads(result.stdout)["networks"]] == ["2xS/2xS/2xS", "2xG4/2xG4/2xG4"]


def test_images_of_a_dataset(imagenet_val1300, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("test_resnet\n")
    options = ["--batch-size", 4, "--image-size", 32, "--workers", 1, "--json"]
    status, out, errors = run("rank", file, "--data", imagenet_val1300, *options)
    assert status == 0, errors
    # As many classes as the folder has.
    classes = len([each for each in imagenet_val1300.iterdir() if each.is_dir()])
    model = timm.create_model("test_resnet", num_classes=classes)
    assert json.loads(out)["networks"][0]["params"] == count(model).params


def test_images_of_a_folder_say_what_networks_are_made_for(tmp_path):
    folder = tmp_path / "grey"
    for label in "abc":
        (folder / label).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (40, 40), 40 * number).save(folder / label / f"{number}.png")
    given = {"data": str(folder), "batch_size": 4, "score": "params"}
    (genome,) = rank_networks(["2xS/2xS/2xS"], "wrn16_1", **given)
    assert genome.cost == SearchSpace("wrn16_1", num_classes=3, in_chans=1).original_cost
    # As the command does, and a search.
    (network,) = rank_networks(["resnet18"], **given)
    assert network.cost == count(timm.create_model("resnet18", num_classes=3, in_chans=1), (1, 32, 32))
    (tmp_path / "list").write_text("resnet18\n", encoding="utf-8-sig")
    options = ["--data", folder, "--score", "params", "--batch-size", 4, "--json"]
    status, out, err = run("rank", tmp_path / "list", *options)
    assert status == 0, err
    assert json.loads(out)["networks"][0]["params"] == network.cost.params
    result = search("wrn16_1", "60k", 2, data=folder, refine=0, batch_size=4, score="params")
    assert (result.space.input_size, result.space.num_classes) == ((1, 32, 32), 3)


@pytest.mark.parametrize("asked", [{"num_classes": 9}, {"in_chans": 1}, {"image_size": 64}])
def test_a_space_is_of_the_sizes_that_are_asked_for(asked):
    space = SearchSpace("wrn16_1")
    own = {"num_classes": 10, "in_chans": 3, "image_size": 32}
    assert rank_networks(["2xS/2xS/2xS"], space, score="params", batch_size=4, **own)
    ((name, value),) = asked.items()
    with pytest.raises(ValueError, match=f"the search space has {name}={own[name]}, not {value}; leave {name} out"):
        rank_networks(["2xS/2xS/2xS"], space, score="params", batch_size=4, **asked)
