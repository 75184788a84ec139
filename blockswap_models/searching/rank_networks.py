"""A ranking of given networks by a score: genomes of one network, or whole networks of any kind."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..budget import Cost
from ..data.errors import DataError
from ..data.facts import facts_of_folder
from ..data.statistics import model_data_config
from ..genome import BlockType, Genome, GenomeError
from ..layout import Layout
from ..machine import find_device
from ..messages import quote
from ..nets.copies import plain_copy
from ..nets.cost import count
from ..nets.swap import own_input_size, wake
from ..progress import is_watched
from ..zoo.find import find_model
from .candidates import Scored, rank
from .fisher import Score
from .one_pass import compute_scores
from .plain_defaults import plain_defaults
from .probe_images import CHANNELS_FIRST, ImageSpec, Minibatch, affordable_batches, noise_minibatch, user_minibatch
from .probes import find_probes
from .rankings import RankSum, has_relus, images_of, parts_of, score_named
from .score_bar import ScoreBar
from .scorer import own_random_numbers, seeded, weights_seed
from .scoring import check_numbers
from .search import require_scores, search
from .space import SearchSpace
from .workers import Shared, local_workers, map_in_order

__all__ = ["RankedNetwork", "rank_networks"]


@dataclass(frozen=True)
class RankedNetwork(Scored):
    """A network with its score.

    Attributes:
        name: The genome or the name that was given; of a network, the name of its class, with a number where several
            have it: `ResNet 2` is the second of them that was given.
        cost: What it costs.
        scores: The score of each draw.
        parts: For a sum of ranks, the scores that are ranked, by name, for each draw.
        geometric: Whether the score is the geometric mean of the draws.
    """

    name: str
    cost: Cost
    scores: tuple[float, ...]
    parts: tuple[Mapping[str, float], ...] | None = None
    geometric: bool = True

    def as_json(self) -> dict[str, Any]:
        """The network for JSON, which has no NaN."""
        return {
            "name": str(self.name),
            "params": self.cost.params,
            "macs": self.cost.macs,
            "score": self.score if math.isfinite(self.score) else None,
            "draws": len(self.scores),
            "spread": None if math.isnan(self.standard_error_factor) else self.standard_error_factor,
        }


def rank_networks(
    networks: Iterable[Genome | str | nn.Module],
    network: SearchSpace | Layout | nn.Module | str | None = None,
    *,
    score: Score | str | None = None,
    data: Callable[[ImageSpec], Minibatch] | Minibatch | tuple[Any, Any] | Iterable[Any] | str | Path | None = None,
    batch_size: int | None = None,
    draws: int = 1,
    seed: int = 0,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
    workers: int = 1,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> tuple[RankedNetwork, ...]:
    """Ranks networks by a score: genomes of one network as `search` does, or whole networks of any layouts.

    All are scored on the same images. Each draw has new random weights, unless the network itself is given, and the
    next minibatch. Whole networks are scored in float32; no branch of those with random weights starts at zero.

    Args:
        networks: Names, such as `resnet18` of timm or `wrn40_2_404k` of the zoo, or networks with their weights; or
            genomes. One that is given twice is ranked once.
        network: The network that genomes are of, such as `wrn40_2`.
        score: A name, the sum of several ranks, or a function, as for `search`.
        data: Images and labels, as `search` takes them; or a function that makes a `Minibatch` for an `ImageSpec`. By
            default images of 1/f noise with random labels.
        batch_size: Images in a minibatch: by default 8, and 32 for scores that need more.
        draws: Draws of the weights for each network.
        seed: Seed of weights and images.
        num_classes: Classes; by default those of a folder of images, else those of the first network.
        in_chans: Channels of the images; those of tensors, or of the first network, by default, or 1 where the images
            of a folder are grey.
        image_size: Height and width of the images; those of tensors, or of the first network, by default, or less where
            the images of a folder are smaller.
        workers: Processes on this machine, of one thread each.
        device: Where to score.
        progress: Whether to show a progress bar: by default in a notebook and on a terminal.

    Returns:
        The networks, from the highest score to the lowest; those whose score is not finite come last.

    Raises:
        GenomeError: Genomes are given without their network, or one does not fit it.
        ValueError: There is no such network, or one of them cannot be scored, or takes no images of this size.
        DataError: The data do not fit the networks.
        SearchError: No score is finite, or all are 0.

    Example:
        ```python
        best, *others = rank_networks(["resnet18", "resnet26", "wrn40_2"], score="naswot", image_size=64)
        rank_networks(["6xS/6xG4/6xB2", "6xG4/6xS/6xB2"], "wrn40_2", draws=4)
        ```
    """
    given = [networks] if isinstance(networks, (str, nn.Module)) else list(dict.fromkeys(networks))
    if not given:
        raise ValueError("no networks to rank; give at least one")
    sizes = {"num_classes": num_classes, "in_chans": in_chans, "image_size": image_size}
    counts = {name: value for name, value in sizes.items() if value is not None}
    score = None if score is None else score_named(score)
    batch_size = images_of(score_named(score)) if batch_size is None else batch_size
    check_numbers(seed=seed, refine=0, draws=draws, workers=workers, batch_size=batch_size, **counts)
    channels, side = _sizes_of(data)
    asked: dict[str, Any] = {name: each for name, each in {"in_chans": channels, "image_size": side}.items() if each}
    asked |= counts
    facts = facts_of_folder(data)
    if network is not None:
        if any(isinstance(each, nn.Module) for each in given):
            raise ValueError("network= is what genomes are of; leave it out to rank networks")
        if isinstance(network, SearchSpace):
            _check_sizes(network, counts)
        else:
            for each in given:
                if isinstance(each, str) and not _is_genome(each) and _is_network(each):
                    raise GenomeError(f"{quote(each)} is a network, not a genome; leave out network=")
            if facts is not None:
                asked = facts.sizes(SearchSpace(network).input_size) | asked
            network = SearchSpace(network, _types_of(given), **asked)
        result = search(
            network,
            None,
            seed=seed,
            genomes=given,  # type: ignore[arg-type]  # search says which is none
            data=data(network) if callable(data) else data,
            batch_size=batch_size,
            score=score,
            draws=draws,
            refine=0,
            workers=workers,
            device=device,
            progress=progress,
            on_interrupt="raise",
        )
        # By their own draws, as other networks.
        return tuple(
            rank(
                RankedNetwork(each.genome, each.cost, each.scores, each.parts, each.geometric)
                for each in result.candidates
            )
        )

    for each in given:
        if isinstance(each, str) and _is_genome(each):
            raise GenomeError(f"{quote(str(each))} is a genome; say of which network, such as network='wrn40_2'")
    found = [find_model(each) if isinstance(each, str) else each for each in given]
    if facts is not None:
        # Networks with weights take what they take.
        given_as_such = any(isinstance(each, nn.Module) for each in found)
        classes = {"num_classes": len(facts.classes)}
        asked = (classes if given_as_such else facts.sizes(_Sources(found).input_size)) | asked
    sources = _Sources(found, **asked)
    costs, relus = zip(*(sources.facts(index) for index in range(len(found))), strict=True)
    score = score_named(score, all(relus))
    if callable(data):
        minibatch = data(sources)
    elif data is None:
        minibatch = noise_minibatch(sources, batch_size, seed, affordable_batches(sources, batch_size))
    else:
        minibatch = user_minibatch(sources, data, batch_size, seed)
    job = _NetworkScorer(sources, minibatch, score, seed, find_device(device))
    scored = _scores(job, [(index, draw) for index in range(len(found)) for draw in range(draws)], workers, progress)
    ranking, names = [], _names_of(given)
    for index, cost in enumerate(costs):
        own = scored[index * draws : (index + 1) * draws]
        parts = tuple(draw.parts for draw in own if draw.parts is not None) or None
        ranking.append(RankedNetwork(names[index], cost, tuple(draw.score for draw in own), parts))
    ranking = rank(ranking)
    require_scores(ranking, score)
    return tuple(ranking)


def _names_of(given: Sequence[Any]) -> list[str]:
    """Names networks by their classes, numbered where several are of one; names stay as they are."""
    names = [each if isinstance(each, str) else type(each).__name__ for each in given]
    several = {name for name, number in Counter(names).items() if number > 1}
    return [f"{name} {names[: at + 1].count(name)}" if name in several else name for at, name in enumerate(names)]


def _sizes_of(data: object) -> tuple[int | None, tuple[int, int] | None]:
    """The channels, and height and width, of images that are there already; None for other data."""
    images = data.images if isinstance(data, Minibatch) else data[0] if isinstance(data, (tuple, list)) else None
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        raise DataError(f"images are (N, C, H, W), not {shape}; {CHANNELS_FIRST}")
    return (shape[1], (shape[2], shape[3])) if len(shape) == 4 else (None, None)


def _check_sizes(space: SearchSpace, asked: dict[str, int]) -> None:
    """Raises ValueError where the networks of a space are made for other sizes than are asked for."""
    channels, height, width = space.input_size
    own: dict[str, object] = {"num_classes": space.num_classes, "in_chans": channels}
    own["image_size"] = height if height == width else (height, width)
    for name, value in asked.items():
        if own[name] != value:
            raise ValueError(f"the search space has {name}={own[name]}, not {value}; leave {name} out, or make another")


def _types_of(genomes: Iterable[Any]) -> list[BlockType] | None:
    """The block types of genomes, in any space of which they are; None where no genome can be read."""
    types: dict[BlockType, None] = {}
    for each in genomes:
        # A search says which it was that cannot be read.
        with suppress(GenomeError):
            types.update(dict.fromkeys(Genome(each).blocks))
    return [*types] or None


def _is_genome(text: str) -> bool:
    try:
        Genome(text)
    except GenomeError:
        return False
    return not timm.is_model(text)


def _is_network(text: str) -> bool:
    try:
        find_model(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Draw:
    """The score of one draw of a network; of a sum of ranks, the scores that are ranked."""

    score: float
    parts: Mapping[str, float] | None = None


class _Sources:
    """Names of timm and networks, and the images that all of them are given: an `ImageSpec`."""

    def __init__(
        self,
        networks: Sequence[str | nn.Module],
        num_classes: int | None = None,
        in_chans: int | None = None,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        self.networks = networks
        asked = {"num_classes": num_classes, "in_chans": in_chans}
        self._arguments: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
        # Networks that are given stay what they are, and the others become like them.
        first = next((each for each in networks if isinstance(each, nn.Module)), networks[0])
        with torch.random.fork_rng(devices=[]):
            model = first if isinstance(first, nn.Module) else self._create(first)
        self.num_classes: int = getattr(model, "num_classes", 0) if num_classes is None else num_classes
        if self.num_classes < 1:
            raise ValueError(f"{type(model).__name__} does not say how many classes it has; use num_classes=")
        if image_size is None:
            try:
                channels, *own = own_input_size(model)
            except ValueError:
                raise ValueError(
                    f"{type(model).__name__} does not say which images it takes; use image_size=224"
                ) from None
            height, width = own
        else:
            channels = getattr(model, "in_chans", 3)
            height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.input_size = (channels if in_chans is None else in_chans, height, width)
        self._arguments = {"num_classes": self.num_classes, "in_chans": self.input_size[0]}

    @functools.cached_property
    def data_config(self) -> dict[str, Any]:
        """The normalisation and crop of the first network."""
        return model_data_config(self.model(0))

    def name(self, index: int) -> str:
        """What a network is called in messages."""
        return _names_of(self.networks)[index]

    def model(self, index: int) -> nn.Module:
        """Makes a network of a name, with random weights of which no branch starts at zero; a given one is itself."""
        each = self.networks[index]
        if isinstance(each, nn.Module):
            return each
        # The random numbers of the user's program are left as they were.
        with torch.random.fork_rng(devices=[]):
            model = self._create(each)
            try:
                probes = find_probes(model, self.input_size)
            except TypeError:
                # It does not split into blocks: only some scores know it, and they see whether they can score it.
                return model
            wake(probe.block for probe in probes)
        return model

    def facts(self, index: int) -> tuple[Cost, bool]:
        """Counts a network, and says whether it has ReLUs.

        Raises ValueError for one that takes other images or has fewer classes.
        """
        model = self.model(index)
        classes = getattr(model, "num_classes", self.num_classes)
        if classes < self.num_classes:
            raise ValueError(
                f"{self.name(index)} has {classes} classes, fewer than the {self.num_classes} of the images; use "
                f"num_classes={classes}"
            )
        try:
            return count(model, self.input_size), has_relus(model)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
            size = "x".join(map(str, self.input_size))
            raise ValueError(f"{self.name(index)} takes no images of {size}: {_first_line(error)}") from error

    def _create(self, name: str) -> nn.Module:
        try:
            # A layout that is not in the zoo is registered in this process.
            return timm.create_model(find_model(name), pretrained=False, **self._arguments)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"timm cannot make {quote(name)}: {_first_line(error)}") from None


@dataclass(frozen=True)
class _NetworkScorer:
    """Scores a network by its place, with weights of its own draw."""

    sources: _Sources
    data: Minibatch
    score: Score
    seed: int
    device: torch.device

    def __call__(self, task: tuple[int, int]) -> _Draw:
        """Scores a network with one draw of its weights."""
        with plain_defaults(self.device):
            return self._scored(*task)

    def _scored(self, index: int, draw: int) -> _Draw:
        name = self.sources.name(index)
        with seeded(weights_seed(self.seed, name, draw)):
            model = self.sources.model(index)
        if isinstance(self.sources.networks[index], str):
            model = model.to(self.device)
        elif any(each.device != self.device or each.dtype != torch.float32 for each in model.parameters()):
            # The user's own stays where and as it is.
            model = plain_copy(model).to(self.device, torch.float32)
        images, labels = self.data.batch(draw % self.data.num_batches)
        images = images.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device)
        try:
            own = functools.partial(own_random_numbers, seed=self.seed, name=name, draw=draw)
            parts, _ = compute_scores(parts_of(self.score), model, images, labels, own)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
            raise ValueError(f"{name} cannot be scored: {_first_line(error)}") from error
        return _Draw(math.nan, parts) if isinstance(self.score, RankSum) else _Draw(parts[""])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _scores(job: _NetworkScorer, tasks: list[tuple[int, int]], workers: int, progress: bool | None) -> list[_Draw]:
    """Scores all draws, here or in processes, with a bar."""
    with ExitStack() as stack:
        local = workers > 1 and job.device.type == "cpu"
        executor = stack.enter_context(local_workers(workers)) if local else None
        results: Iterable[_Draw] = map_in_order(Shared(job), tasks, executor, cancel=not local)
        if progress or (progress is None and is_watched()):
            results = stack.enter_context(ScoreBar())(results, len(tasks), 0, "scoring")
        return list(results)
