"""Networks of timm with other blocks in the places of theirs."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from timm.models._features import FeatureGetterNet, FeatureListNet
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from blockswap_models import Genome, GenomeError, Layout, SplitError, count, count_blocks, swap
from blockswap_models.nets.swap import BlockNetwork, find_blocks
from blockswap_models.searching.fisher import fisher_by_block

# Small networks of each family: order, channels of its stages, and the genome of the network itself.
FAMILIES = {
    "test_resnet": ("post", (32, 48, 192, 96), "K/K/K/K"),
    "regnetx_002": ("post", (24, 56, 152, 368), "K/K/4xK/7xK"),
    "resnetv2_18": ("pre", (64, 128, 256, 512), "2xK/2xK/2xK/2xK"),
    "mobilenetv3_small_050": ("linear", (8, 16, 24, 24, 48), "K/2xK/3xK/2xK/3xK"),
    "test_convnext": ("linear", (24, 32, 48, 64), "K/2xK/4xK/2xK"),
}


@pytest.fixture(scope="module")
def resnet():
    return timm.create_model("test_resnet", num_classes=7).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_a_family_are_found(name):
    order, channels, genome = FAMILIES[name]
    network = BlockNetwork(timm.create_model(name))
    assert {each.order for each in network.blocks} == {order}
    assert network.layout.channels == channels
    assert network.layout.original == genome


def test_resnet50_has_the_blocks_of_the_paper_that_made_it():
    with torch.device("meta"):
        found = find_blocks(timm.create_model("resnet50"))
    assert [each.name for each in found][:4] == ["layer1.0", "layer1.1", "layer1.2", "layer2.0"]
    assert [(p.stage, p.block, p.in_chs, p.out_chs, p.stride) for p in (each.place for each in found[:5])] == [
        (1, 1, 64, 256, 1),
        (1, 2, 256, 256, 1),
        (1, 3, 256, 256, 1),
        (2, 1, 256, 512, 2),
        (2, 2, 512, 512, 1),
    ]
    assert {each.end for each in found} == {"bn3"}


@pytest.mark.parametrize("name", [*FAMILIES])
def test_what_is_kept_computes_the_same_and_what_is_replaced_has_its_shape(name):
    model = timm.create_model(name, num_classes=5).eval()
    size = (3, 32, 32)
    x = torch.randn(1, *size)
    depths = [len(stage.split(",")) if "x" not in stage else int(stage[0]) for stage in FAMILIES[name][2].split("/")]
    kept = swap(model, FAMILIES[name][2])
    assert torch.equal(kept(x), model(x))
    network = BlockNetwork(model, image_size=(32, 32))
    types = ["S", "G4", "B2", "W1", "D", "M2"]
    blocks = []
    for index, place in enumerate(network.layout.places):
        fitting = [block for block, _ in place.distinct(map(type(Genome("S").blocks[0]).parse, types))]
        blocks.append(fitting[index % len(fitting)])
    genome = Genome.from_blocks(blocks, depths)
    swapped = network.build(genome)
    assert swapped.genome == genome
    shapes = [[tuple(each.shape) for each in net.forward_intermediates(x)[1]] for net in (model, swapped)]
    assert shapes[0] == shapes[1]
    assert swapped(x).shape == (1, 5)
    # The cost is that of what was built, block by block.
    parts = [network.option_cost(index, block) for index, block in enumerate(genome.blocks)]
    assert parts == count_blocks(swapped, size)
    assert sum(parts, network.fixed) == count(swapped, size)


def test_new_blocks_are_of_the_family():
    model = timm.create_model("mobilenetv3_small_050").eval()
    block = swap(model, "K/2xK/K,G2,K/2xK/3xK").blocks[2][1]
    assert isinstance(block.act1, nn.Hardswish)
    # A linear bottleneck has no activation after the addition.
    x = torch.randn(1, 24, 8, 8)
    branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), branch + x)
    # MobileNet has no shortcut where it halves the images.
    halving = swap(model, "S/2xK/3xK/2xK/3xK").blocks[0][0]
    y = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(
        halving(y), halving.bn2(halving.conv2(halving.act1(halving.bn1(halving.conv1(y))))), msg="no addition"
    )
    assert halving(y).shape == (1, 8, 4, 4)
    norms = {type(each) for each in swap(timm.create_model("test_convnext"), "S/2xK/4xK/2xK").stages[0].modules()}
    assert nn.BatchNorm2d not in norms


@pytest.mark.parametrize(
    ("name", "order", "ends"),
    [
        # A norm of the input beside the branch, and an attention after the addition.
        ("repvgg_a0", "post", {"drop_path", "attn"}),
        ("mobileone_s0", "post", {"drop_path", "attn"}),
        # An activation after the addition that does nothing; blocks that halve images add nothing.
        ("regnetz_b16", "linear", {"drop_path", "act"}),
        # A convolution in the shortcut that runs before the first norm.
        ("coatnet_nano_rw_224", "pre", {"drop_path"}),
    ],
)
def test_what_runs_beside_the_branch_and_after_the_addition_is_none_of_it(name, order, ends):
    with torch.device("meta"):
        found = find_blocks(timm.create_model(name))
    assert {each.order for each in found} == {order}
    assert {each.end for each in found} == ends
    if len(ends) > 1:
        with_shortcut = {
            each.end for each in found if each.place.in_chs == each.place.out_chs and each.place.stride == 1
        }
        assert with_shortcut == {"drop_path"}


def test_a_block_that_adds_nothing_has_no_stochastic_depth():
    model = timm.create_model("mobilenetv3_small_050", num_classes=3, drop_path_rate=0.5)
    block = swap(model, "K/2xK/3xK/2xK/S,2xK", input_size=(3, 64, 64)).train().blocks[4][0]
    assert block(torch.randn(64, 24, 4, 4)).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("name", "order", "norm", "act"),
    [
        ("convnext_zepto_rms", "linear", "SimpleNorm2d", "GELU"),
        ("dm_nfnet_f0", "linear", "BatchNorm2d", "GammaAct"),
        # Their norms are activations too, and a new block has BN and ReLU.
        ("resnetv2_50d_evos", "pre", "BatchNorm2d", "ReLU"),
        ("resnetv2_50d_frn", "pre", "BatchNorm2d", "ReLU"),
    ],
)
def test_norms_and_activations_of_timm_s_own_are_known(name, order, norm, act):
    with torch.device("meta"):
        network = BlockNetwork(timm.create_model(name))
    assert network.blocks[-1].order == order
    block = network.build(Genome.from_blocks([*network.layout.original.blocks[:-1], "B2"], network.layout.depths))
    kinds = {type(each).__name__ for each in block.get_submodule(network.blocks[-1].name).modules()}
    assert {norm, act} <= kinds
    assert not {"BatchNorm2d", "ReLU"} - {norm, act} & kinds


def test_a_frozen_norm_is_a_norm_and_a_new_block_learns_its_own():
    network = BlockNetwork(freeze_batch_norm_2d(timm.create_model("resnetv2_18")), image_size=(64, 64))
    assert {each.order for each in network.blocks} == {"pre"}
    block = network.build("S,K/2xK/2xK/2xK").get_submodule(network.blocks[0].name)
    assert sum(isinstance(each, nn.BatchNorm2d) for each in block.modules()) == 2


def test_all_but_what_is_replaced_keeps_its_weights(resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    swapped = swap(resnet, "K/S/G8/K")
    after = swapped.state_dict()
    replaced = {name for name in before if name.startswith(("layer2.0.", "layer3.0."))}
    for name in before.keys() - replaced:
        assert torch.equal(after[name], before[name]), name
    # The shortcut starts with the weights that it had.
    shortcuts = [name for name in replaced if "downsample" in name]
    assert shortcuts
    assert all(torch.equal(after[name], before[name]) for name in shortcuts)
    # And the network that was given is what it was, without a tensor in common.
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert not {each.data_ptr() for each in resnet.parameters()} & {each.data_ptr() for each in swapped.parameters()}


def test_what_timm_does_with_a_network_it_does_with_a_swapped_one(resnet):
    swapped = swap(resnet, "S/B2/K/G4").eval()
    x = torch.randn(2, 3, 64, 64)
    assert swapped.get_classifier().out_features == 7
    wanted = swapped.forward_intermediates(x, intermediates_only=True)
    for wrapper in (FeatureGetterNet, FeatureListNet):
        features = wrapper(copy.deepcopy(swapped), (0, 1, 2, 3, 4))
        for ours, theirs in zip(features(x), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
    for copied in (copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        assert torch.equal(copied(x), swapped(x))
        assert copied.genome == "S/B2/K/G4"
        assert copied.layout == swapped.layout
    again = swap(resnet, "S/B2/K/G4").eval()
    again.load_state_dict(swapped.state_dict())
    assert torch.equal(again(x), swapped(x))
    swapped.reset_classifier(3)
    assert swapped(x).shape == (2, 3)


def test_what_is_wrapped_is_swapped_without_the_wrapper(resnet):
    # As torch.compile does.
    wrapped = nn.DataParallel(resnet)
    swapped = swap(wrapped, "K/G8/K/K")
    assert (type(swapped), swapped.genome) == (type(resnet), "K/G8/K/K")
    assert BlockNetwork(wrapped).layout == swapped.layout


def test_a_wrapper_of_features_can_be_swapped():
    features = timm.create_model("test_resnet", features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    swapped = swap(features, "K/S/K/K", input_size=(3, 64, 64))
    ours, theirs = swapped(x), features(x)
    assert [each.shape for each in ours] == [each.shape for each in theirs]
    assert torch.equal(ours[1], theirs[1])
    assert not torch.equal(ours[2], theirs[2])


def test_a_network_of_the_zoo_has_the_types_that_it_kept():
    model = timm.create_model("blockswap_wrn16_1", genome="2xS/S,G4/2xB2")
    swapped = swap(model, "K,G2/2xK/W4,K")
    assert swapped.genome == "S,G2/S,G4/W4,B2"
    same = timm.create_model("blockswap_wrn16_1", genome=swapped.genome)
    assert {n: v.shape for n, v in same.state_dict().items()} == {n: v.shape for n, v in swapped.state_dict().items()}


@pytest.mark.parametrize("genomes", [["2xK/2xK/B2,K/B2,S"], ["2xK/2xK/B2,K/2xK", "2xK/2xK/S,K/2xB2"]])
def test_dilations_are_those_of_the_same_genome_made_anew(genomes):
    with torch.device("meta"):
        swapped = timm.create_model("blockswap_resnet18", output_stride=8)
        for genome in genomes:
            swapped = swap(swapped, genome)
        same = timm.create_model("blockswap_resnet18", output_stride=8, genome=swapped.genome)
    convs = [[str(each) for each in net.modules() if isinstance(each, nn.Conv2d)] for net in (swapped, same)]
    assert convs[0] == convs[1]


def test_a_shortcut_that_pools_alone_is_no_projection():
    with torch.device("meta"):
        swapped = swap(timm.create_model("dla34"), "K/W1/K/K", input_size=(3, 64, 64))
        assert swapped.level3(torch.empty(1, 64, 16, 16)).shape == (1, 128, 8, 8)


def test_the_fisher_potential_of_kept_blocks_is_that_of_the_same_blocks_of_ours():
    ours = timm.create_model("blockswap_resnet18", num_classes=4, zero_init_last=False)
    theirs = timm.create_model("resnet18", num_classes=4)
    theirs.load_state_dict(ours.state_dict())
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    kept = swap(theirs, "2xK/2xK/2xK/2xK", input_size=(3, 32, 32))
    wanted = fisher_by_block(ours, images, labels)
    assert fisher_by_block(kept, images, labels) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_vit", "VisionTransformer does not split into blocks: its stages blocks.0, blocks.1"),
        (
            "hrnet_w18_small",
            "HighResolutionNet does not split into blocks: its module 'stage2.0' (HighResolution",
        ),
    ],
)
def test_the_error_of_a_network_without_blocks_names_the_module(name, said):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(SplitError) as error:
        swap(model, "K")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stride_that_small_images_hide_is_not_taken_for_1(resnet):
    # The last stage is given images of 2x2 from 32 pixels, and of 1x1 from 16.
    assert [each.place.stride for each in find_blocks(resnet, (3, 32, 32))] == [1, 2, 2, 2]
    with pytest.raises(SplitError, match=r"'layer4.0' \(BasicBlock\) is given images of 1x1, which do not show its "):
        swap(resnet, "K/K/K/S", input_size=(3, 16, 16))


def test_the_stride_of_narrow_images_is_that_of_their_longer_axis(resnet):
    for size in ((3, 16, 64), (3, 64, 16)):
        assert [each.place.stride for each in find_blocks(resnet, size)] == [1, 2, 2, 2]


def test_a_network_that_does_not_say_its_size_is_given_one():
    with torch.device("meta"):
        model = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5)
    swapped = swap(model, "K/S/K/K", input_size=(3, 64, 64))
    assert (swapped.genome, swapped.layout.input_size) == ("K/S/K/K", (3, 64, 64))
    assert BlockNetwork(model, image_size=(64, 64)).build("K/S/K/K").layout == swapped.layout


def test_genomes_that_do_not_fit_are_refused(resnet):
    with pytest.raises(GenomeError, match="test_resnet has stages of 1, 1, 1 and 1 blocks; this genome has 2 and 1"):
        swap(resnet, "2xK/S")
    with pytest.raises(GenomeError, match="stage 2, block 1 'B32'"):
        swap(resnet, "K/B32/K/K")
    with pytest.raises(GenomeError, match=r"stage 1, block 1 'K': K keeps the block of a given network"):
        Layout.named("wrn16_1").fit("2xK/2xS/2xS")
    with pytest.raises(SplitError, match="has no feature_info"):
        swap(nn.Sequential(nn.Conv2d(3, 3, 3)), "K", input_size=(3, 8, 8))


def test_what_is_swapped_twice_is_what_is_swapped_once():
    # A separable convolution makes a projection where the original has none.
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    twice = swap(swap(model, "D/2xK/3xK/2xK/3xK"), "S/2xK/3xK/2xK/3xK")
    once = swap(model, "S/2xK/3xK/2xK/3xK")
    assert twice.genome == once.genome
    assert {name: each.shape for name, each in twice.state_dict().items()} == {
        name: each.shape for name, each in once.state_dict().items()
    }
