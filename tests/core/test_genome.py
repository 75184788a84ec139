"""The genome language and the layouts that carry it: reading, writing, and every message."""

import copy
import itertools
import json
import pickle
import random
import re
import time
from collections.abc import Callable

import pytest

from blockswap_models import SEARCH_TYPES, BlockType, Genome, GenomeError, Layout, count
from blockswap_models.nets.networks import build

# Types that fit every width from 16 on, and types that do not.
EASY = ["S", "G2", "G16", "W1", "W4", "B2", "B8", "B2G8", "B2W1", "B4W4", "M2", "M6", "M3K5", "D"]
FAMILIES = [*EASY, "G3", "G32", "W5", "B3", "B2G16", "B4G8", "B3W7"]
KERNEL = "a kernel is an odd number from 5 up; for one of 3 use the 'M' alone, such as 'M6'"
NUMBERS = "use S, G4, W4, B2, B2G4, B2W4, M6, M6K5, D or I, with any numbers"


def random_genome(rng: random.Random, depths: tuple[int, ...], types: list[str]) -> str:
    return "/".join(",".join(rng.choice(types) for _ in range(depth)) for depth in depths)


def message_of(call: Callable[[], object], kind: type[Exception] = GenomeError) -> str:
    """Says what a call raises: a message of one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# -- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("S", "S"),
        ("6xS/6xS/6xS", "6xS/6xS/6xS"),
        ("S,S,S/G4", "3xS/G4"),
        ("2xS,S,1xS,G4,S", "4xS,G4,S"),
        (" 2 x S , G4 /\n B2W4,\tB2W4 ", "2xS,G4/2xB2W4"),
        ("W1,W1/W1", "2xW1/W1"),
        ("9999xM6", "9999xM6"),
    ],
)
def test_canonical_text_has_no_spaces_and_the_longest_runs(text: str, canonical: str) -> None:
    assert str(Genome.parse(text)) == canonical
    assert Genome(text) == canonical


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("S", ("S", 1, None, None)),
        ("G4", ("G", 1, 4, None)),
        ("W4", ("G", 1, None, 4)),
        ("W1", ("G", 1, None, 1)),
        ("B2", ("B", 2, None, None)),
        ("B2G4", ("B", 2, 4, None)),
        ("B4W8", ("B", 4, None, 8)),
        ("M6", ("M", 6, None, None)),
        ("M3K7", ("M", 3, None, None, 7)),
        ("D", ("D", 1, None, None)),
        ("I", ("I", 1, None, None)),
    ],
)
def test_block_types(text: str, fields: tuple) -> None:
    block = BlockType.parse(text)
    assert block == BlockType(*fields)
    assert repr(block) == f"BlockType.parse('{text}')"
    assert str(block) == text


def test_random_genomes_come_back_the_same() -> None:
    rng = random.Random(0)
    for _ in range(300):
        depths = tuple(rng.randint(1, 7) for _ in range(rng.randint(1, 4)))
        written = random_genome(rng, depths, FAMILIES)
        genome = Genome(written)
        assert [str(block) for block in genome.blocks] == re.split("[,/]", written)
        assert genome.depths == depths
        assert Genome.parse(str(genome)) == genome
        assert Genome.parse(str(genome)).stages == genome.stages
        assert Genome.from_stages(genome.stages) == genome
        assert Genome.from_blocks(genome.blocks, depths) == genome
        assert Genome.from_blocks([str(block) for block in genome.blocks], depths) == genome
        # Longest runs: no two neighbours in a stage have the same type.
        for stage in genome.split("/"):
            types = [run.rpartition("x")[2] for run in stage.split(",")]
            assert all(left != right for left, right in itertools.pairwise(types))


def test_a_genome_is_text() -> None:
    genome = Genome("2xS,G4/B2W4")
    assert isinstance(genome, str)
    assert type(str(genome)) is str
    assert json.loads(json.dumps({"genome": genome})) == {"genome": "2xS,G4/B2W4"}
    assert {genome: 1}["2xS,G4/B2W4"] == 1
    assert hash(genome) == hash("2xS,G4/B2W4")
    assert Genome(genome) is genome
    copies = [copy.copy(genome), copy.deepcopy(genome)]
    copies += [pickle.loads(pickle.dumps(genome, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in copies:
        assert type(other) is Genome
        assert other == genome
        assert other.stages == genome.stages


def test_the_paper_has_23_types() -> None:
    assert len(set(SEARCH_TYPES)) == 23
    assert {block.family for block in SEARCH_TYPES} == {"S", "G", "B"}


# -- the reference code's names --------------------------------------------------------------------------------------

REFERENCE = {
    "Conv": "S",
    "DConvA2": "G2",
    "DConvA4": "G4",
    "DConvA8": "G8",
    "DConvA16": "G16",
    "DConv": "W1",
    "DConvG2": "W2",
    "DConvG4": "W4",
    "DConvG8": "W8",
    "DConvG16": "W16",
    "ConvB2": "B2",
    "ConvB4": "B4",
    "A2B2": "B2G2",
    "A4B2": "B2G4",
    "A8B2": "B2G8",
    "A16B2": "B2G16",
    "G2B2": "B2W2",
    "G4B2": "B2W4",
    "G8B2": "B2W8",
    "G16B2": "B2W16",
    "G2B4": "B4W2",
    "G4B4": "B4W4",
    "G8B4": "B4W8",
    "MBConv6": "M6",
    "DARTSBlock": "D",
}


def test_names_of_the_reference_are_translated() -> None:
    translated = Genome.from_reference(list(REFERENCE), [len(REFERENCE)])
    assert [str(block) for block in translated.blocks] == list(REFERENCE.values())
    assert set(translated.blocks) - {BlockType("M", 6), BlockType("D")} == set(SEARCH_TYPES)
    assert Genome.from_reference(["Conv", "Conv", "G4B2"], [2, 1]) == "2xS/B2W4"


@pytest.mark.parametrize("name", REFERENCE)
def test_names_of_the_reference_are_never_read_as_ours(name: str) -> None:
    advice = f"unknown block type '{name}', a name of the reference code; use '{REFERENCE[name]}' here"
    assert message_of(lambda: Genome(f"S,{name}")) == f"{advice} (stage 1, block 2 of 'S,{name}')"


# -- messages --------------------------------------------------------------------------------------------------------

EMPTY = "use one block type a block, such as '6xS/6xS/6xS'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q", f"unknown block type 'Q'; {NUMBERS}"),
        ("", f"unknown block type ''; {NUMBERS}"),
        ("S\nS", "unknown block type 'S\\nS'; did you mean 'S'?"),
        ("BG2", "unknown block type 'BG2'; did you mean 'B2G2'?"),
        ("b2g4", "unknown block type 'b2g4'; did you mean 'B2G4'?"),
        ("B(2)", "unknown block type 'B(2)'; did you mean 'B2'?"),
        ("G(N)", "unknown block type 'G(N)'; did you mean 'W1'?"),
        ("depthwise", "unknown block type 'depthwise'; did you mean 'W1'?"),
        ("g04", "unknown block type 'g04'; did you mean 'G4'?"),
        ("G4B2", "unknown block type 'G4B2', a name of the reference code; use 'B2W4' here"),
        ("Q" * 500, f"unknown block type '{'Q' * 197}…'; {NUMBERS}"),
        (
            "G1",
            "block type 'G1': a grouped 3x3 has at least 2 groups; without groups use 'S', or 'B2' for a bottleneck",
        ),
        ("B1", "block type 'B1': a bottleneck contracts by at least 2; without one use 'S', 'G4' or 'W4'"),
        ("M1", "block type 'M1': an inverted bottleneck expands by at least 2; use 'M6'"),
        ("M6K4", f"block type 'M6K4': {KERNEL}"),
        ("M6K3", f"block type 'M6K3': {KERNEL}"),
        ("K5", "unknown block type 'K5'; did you mean 'M6K5'?"),
        ("B2W0", "block type 'B2W0': a group has at least 1 channel; use 'W1' or more"),
        ("B02", "'B02': numbers have one spelling; use 2 for 02"),
        ("B2G12345", "'B2G12345': a number of 5 digits is too large; use at most 9999"),
        (4, "a block type is text such as 'B2G4', not int"),
    ],
)
def test_messages_for_a_block_type(text: str, message: str) -> None:
    assert message_of(lambda: BlockType.parse(text)) == message


@pytest.mark.parametrize(
    "fields", [("W", 1, None, 4), ("S", 2, None, None), ("G", 2, 4, None), ("B", 2, 2, 2), ("B", 2, 0, None)]
)
def test_a_block_type_made_by_hand_is_what_its_text_says(fields: tuple) -> None:
    family, *sizes = fields
    given = f"BlockType('{family}', {', '.join(map(str, sizes))})"
    message = f"there is no {given}; read one from text, such as BlockType.parse('B2G4')"
    assert message_of(lambda: BlockType(*fields)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"an empty genome; {EMPTY}"),
        (" \n", f"an empty genome; {EMPTY}"),
        (None, "a genome is text such as '6xS/6xS/6xS', not NoneType"),
        (
            "S/S,,S",
            "a block type is missing; use one between separators, or drop the extra ',' or '/' "
            "(stage 2, block 2 of 'S/S,,S')",
        ),
        (
            "S/",
            "a block type is missing; use one between separators, or drop the extra ',' or '/' "
            "(stage 2, block 1 of 'S/')",
        ),
        ("BG2/S", "unknown block type 'BG2'; did you mean 'B2G2'? (stage 1, block 1 of 'BG2/S')"),
        ("2xS,Q", f"unknown block type 'Q'; {NUMBERS} (stage 1, block 3 of '2xS,Q')"),
        ("3XS", "unknown run '3XS'; did you mean '3xS'? (stage 1, block 1 of '3XS')"),
        ("S * 3", "unknown run 'S * 3'; did you mean '3xS'? (stage 1, block 1 of 'S * 3')"),
        ("B2x3", "unknown run 'B2x3'; did you mean '3xB2'? (stage 1, block 1 of 'B2x3')"),
        ("3x2", "unknown block type '2'; did you mean 'W2'? (stage 1, block 1 of '3x2')"),
        ("3*", f"unknown block type '3*'; {NUMBERS} (stage 1, block 1 of '3*')"),
        ("0xS", "'0xS' repeats a block 0 times; drop it (stage 1, block 1 of '0xS')"),
        ("S,3x", "'3x' repeats nothing; use a block type after the 'x' (stage 1, block 2 of 'S,3x')"),
        ("03xS", "'03xS': numbers have one spelling; use 3 for 03 (stage 1, block 1 of '03xS')"),
        (
            "10000xS",
            "'10000xS': a number of 5 digits is too large; use at most 9999 (stage 1, block 1 of '10000xS')",
        ),
        ("9999xS/S", "more than 9999 blocks; use fewer (stage 2, block 1 of '9999xS/S')"),
    ],
)
def test_messages_for_a_genome(text: str, message: str) -> None:
    assert message_of(lambda: Genome(text)) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Genome.from_stages([]), f"an empty genome or stage; {EMPTY}"),
        (lambda: Genome.from_stages([["S"], []]), f"an empty genome or stage; {EMPTY}"),
        (lambda: Genome.from_stages([["S", "Q"]]), f"unknown block type 'Q'; {NUMBERS}"),
        (lambda: Genome.from_stages([[3]]), "a block type is text such as 'B2G4', not int"),
        (lambda: Genome.from_blocks(["S"] * 3, [2, 2]), "3 block types do not fill stages of 2 and 2 blocks"),
        (lambda: Genome.from_blocks(["S"], []), "1 block types do not fill stages of 0 blocks"),
        (lambda: Genome.from_reference(["Conv"], [1, 2, 3]), "1 block types do not fill stages of 1, 2 and 3 blocks"),
        *(
            (
                lambda name=name: Genome.from_reference(["Conv", name], [2]),
                f"block 2: the reference code has no block {name!r}; "
                "its names look like 'Conv', 'DConvA4', 'DConvG4', 'ConvB2', 'A4B2' and 'G4B2'",
            )
            for name in ("S", "B2G4", "conv", "DConvA3", "DConvA4\n", "A4B4", "", None)
        ),
    ],
)
def test_messages_for_a_genome_made_of_parts(call: Callable[[], object], message: str) -> None:
    assert message_of(call) == message


@pytest.mark.parametrize(
    ("name", "genome", "message"),
    [
        ("resnet34", "6xS/6xS/6xS", "has stages of 3, 4, 6 and 3 blocks; this genome has 6, 6 and 6"),
        ("wrn16_1", "S", "has stages of 2, 2 and 2 blocks; this genome has 1"),
    ],
)
def test_messages_for_a_genome_of_another_depth(name: str, genome: str, message: str) -> None:
    assert message_of(lambda: Layout.named(name).fit(genome)) == f"blockswap_{name} {message}"


@pytest.mark.parametrize(
    ("genome", "message"),
    [
        (
            "S,G32/2xS/2xS",
            "stage 1, block 2 'G32': its 3x3 works on 16 channels, which do not split into 32 groups",
        ),
        # The first 3x3 of a G block works on its input, which is still narrow.
        (
            "2xS/W32,S/2xS",
            "stage 2, block 1 'W32': its 3x3 works on 16 channels, which do not split into groups of 32",
        ),
        (
            "2xS/2xS/S,B4W32",
            "stage 3, block 2 'B4W32': its 3x3 works on 16 channels, which do not split into groups of 32",
        ),
        ("2xS/2xS/S,B3", "stage 3, block 2 'B3': its 64 channels do not divide by 3"),
        (
            "S,I/I,S/2xS",
            "stage 2, block 1 'I': an identity changes neither channels nor resolution, and this block goes from 16 to "
            "32 channels with stride 2",
        ),
    ],
)
def test_messages_for_widths_that_do_not_divide(genome: str, message: str) -> None:
    layout = Layout.named("wrn16_1")
    assert message_of(lambda: layout.fit(genome)) == message
    assert message_of(lambda: build(layout, genome)) == message


# -- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("wrn40_2", Layout.wide_resnet(40, 2)),
        ("blockswap_wrn16_1", Layout.wide_resnet(16, 1)),
        ("wrn40_2_811k", Layout.wide_resnet(40, 2)),
        ("resnet18", Layout.resnet(18)),
        ("blockswap_resnet34_3m", Layout.resnet(34)),
    ],
)
def test_layouts_have_names(name: str, layout: Layout) -> None:
    assert Layout.named(name) == layout
    assert Layout.named(layout.name) == layout
    assert layout.fit(layout.original) == layout.original
    assert set(layout.original.blocks) == {BlockType("S")}


def test_positions_of_a_layout() -> None:
    places = [(p.stage, p.block, p.in_chs, p.out_chs, p.stride) for p in Layout.named("wrn16_2").positions]
    assert places == [
        (1, 1, 16, 32, 1),
        (1, 2, 32, 32, 1),
        (2, 1, 32, 64, 2),
        (2, 2, 64, 64, 1),
        (3, 1, 64, 128, 2),
        (3, 2, 128, 128, 1),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *(
            (
                name,
                f"there is no WRN-{said}: its depth is 6n + 4, such as 16, 22, 28 or 40, and its width at least 1",
            )
            for name, said in {"wrn41_2": "41-2", "blockswap_wrn4_2": "4-2", "wrn40_0": "40-0"}.items()
        ),
        (
            "resnet50",
            "there is no ResNet-50 of basic blocks; use resnet10, resnet18 or resnet34, or Layout.custom in Python",
        ),
        *(
            (name, f"unknown network {name!r}; use wrn40_2, resnet34 or another name of 'blockswap list'")
            for name in ("vgg16", "")
        ),
        *(
            (name, f"unknown network {name!r}; did you mean {meant!r}?")
            for name, meant in {"resnet34\n": "resnet34", "wrn40_2_404": "wrn40_2", "resent18": "resnet18"}.items()
        ),
    ],
)
def test_messages_for_a_layout(name: str, message: str) -> None:
    assert message_of(lambda: Layout.named(name), ValueError) == message


# -- any text --------------------------------------------------------------------------------------------------------

ALPHABET = "SGWBMDx0123456789/, x*×X()\n\t\0\u2028é²٢４😀'\"\\{}%\ud800qN"


def mutated(rng: random.Random, text: str) -> str:
    """Changes a few characters of a text: inserts, deletes, replaces or repeats."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([1, 1, 1, 4]))
        piece = rng.choice([rng.choice(ALPHABET), rng.choice(FAMILIES), str(rng.getrandbits(rng.choice([4, 900])))])
        middle = rng.choice([piece + text[start:end], "", piece, text[start:end] * 2])
        text = text[:start] + middle + text[end:]
    return text


def any_texts(number: int, seed: int) -> list[str]:
    """Lists texts that are genomes of small networks, most of them mutated, or no genomes at all."""
    rng = random.Random(seed)
    texts = []
    for place in range(number):
        depths = Layout.named(rng.choice(["wrn16_1", "resnet18"])).depths
        if place % 10:
            types = EASY if place % 3 else FAMILIES
            genome = str(Genome(random_genome(rng, depths, types)))
            texts.append(mutated(rng, genome) if place % 10 > 1 else genome)
        else:
            texts.append("".join(rng.choices(ALPHABET, k=rng.choice([0, 1, 3, 30, 3000]))))
    return texts


def test_any_text_is_a_genome_or_a_genome_error() -> None:
    read = 0
    for text in any_texts(4_000, seed=1):
        try:
            genome = Genome(text)
        except GenomeError as error:
            message = str(error)
            assert len(message.splitlines()) == 1
            assert message.isprintable()
            assert len(message) < 700
            # What the message says to use is not refused in turn.
            for advice in re.findall(r"(?:did you mean|code; use) '(.*?)'(?:\?| here)", message):
                Genome(advice)
        else:
            read += 1
            assert re.fullmatch("[0-9xSGWBMKDI,/]+", genome)
            assert Genome.parse(str(genome)) == genome
            assert Genome.parse(str(genome)).stages == genome.stages
    assert 400 < read < 3600


def test_long_texts_are_answered_at_once() -> None:
    start = time.process_time()
    for text in (
        "S,G2," * 200_000,
        "S" * 10**6,
        "9" * 10**6 + "xS",
        "3" + " " * 10**5 + "y",
        "x" * 10**5,
        "x " * 10**5,
    ):
        message_of(lambda text=text: Genome(text))
    assert time.process_time() - start < 5


class Unchecked(Layout):
    """A layout that takes any genome, so that it is the building that fails."""

    def fit(self, genome: Genome | str) -> Genome:
        return Genome(genome)


def test_what_fits_a_layout_is_built_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing weights takes most of the time, also on the meta device.
    for name_of_init in ("kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(f"torch.nn.init.{name_of_init}", lambda tensor, **_: tensor)
    layouts = [Layout.named("wrn16_1"), Layout.named("resnet18")]
    built = refused = 0
    for text in any_texts(2500, seed=2):
        try:
            genome = Genome(text)
        except GenomeError:
            continue
        layout = next((layout for layout in layouts if layout.depths == genome.depths), None)
        if layout is None:
            for layout in layouts:
                with pytest.raises(GenomeError, match=rf"{layout.name} has stages of"):
                    build(layout, genome, device="meta")
            continue
        try:
            layout.fit(genome)
        except GenomeError:
            refused += 1
            with pytest.raises(GenomeError, match="channels"):
                build(Unchecked(**vars(layout)), genome, device="meta")
        else:
            built += 1
            model = build(Unchecked(**vars(layout)), genome, device="meta")
            assert model.genome == genome
            # Counting runs the network, so that the shapes of its blocks agree.
            assert count(model).macs > 0
        if built == 60:
            break
    assert built == 60
    assert refused > 20
