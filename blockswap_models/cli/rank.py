"""`blockswap rank`: a ranking of given networks, by Fisher potential or another score."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ..machine import default_workers
from ..messages import counted, quote
from .parameters import NETWORK, Given, refuse_given, size_options, subcommand
from .search import SCORE_NAMES, image_options, minibatch_of, read_images, score_option
from .tables import print_json, print_networks

if TYPE_CHECKING:
    from ..searching.probe_images import ImageSpec, Minibatch

__all__ = ["rank_"]


@subcommand("rank", "networks of a file, ranked by scores with random weights")
@click.argument(
    "file",
    type=click.File(encoding="utf-8-sig"),
    metavar="FILE",
    help="names of networks of timm or the zoo, or genomes, one a line; - reads them from standard input",
)
@click.option("--network", type=NETWORK, help="the network that genomes are of, such as wrn40_2")
@size_options
@score_option
@image_options
@click.option("--draws", type=int, default=1, help="draws of the weights for each network")
@click.option("--seed", type=int, default=0, help="seed of weights and images")
@click.option("--workers", type=int, default=default_workers, show_default="one a core", help="processes that score")
@click.option("--device", default="cpu", help="where to score, such as cpu or cuda")
def rank_(as_json: bool, **arguments: Any) -> None:
    """Prints the networks of a file from the highest score to the lowest."""
    options = SimpleNamespace(**arguments, minibatches=1, holdout=None)
    if options.data_dir is not None and options.data is None:
        raise ValueError("a data folder needs the dataset's name; use --data torch/cifar10, or --data folder")
    if options.data is None:
        refuse_given(["split", "val_share", "val_seed"], "is of a dataset; use --data")
    try:
        lines = [line.partition("#")[0].strip() for line in options.file]
    except UnicodeDecodeError:
        raise ValueError(f"{quote(options.file.name)} is no text; use a file with a genome or a name a line") from None
    networks = [line for line in lines if line]
    if not networks:
        raise ValueError(f"{quote(options.file.name)} names no networks; use a file with a genome or a name a line")
    if options.data is not None:
        # Classes, channels and size are those of a folder's images, for the first network.
        given = options.network
        options.network = given or Given(networks[0], _known(networks[0]))
        read_images(options)
        options.network = given

    from ..searching.rank_networks import rank_networks

    made: list[Minibatch] = []

    def images(spec: ImageSpec) -> Minibatch:
        made.append(minibatch_of(options, spec))
        return made[0]

    ranking = rank_networks(
        networks,
        None if options.network is None else options.network.value,
        score=options.score,
        data=images,
        batch_size=options.batch_size,
        draws=options.draws,
        seed=options.seed,
        num_classes=options.num_classes,
        in_chans=options.in_chans,
        image_size=options.image_size,
        workers=min(options.workers, len(networks) * max(1, options.draws)),
        device=options.device,
        progress=True,
    )
    size = list(made[0].images.shape[1:])
    score = options.score or "+".join(ranking[0].parts[0] if ranking[0].parts else SCORE_NAMES[:1])
    if as_json:
        print_json(
            {"score": score, "input_size": size, "networks": [each.as_json() for each in ranking]},
        )
        return
    of = counted(len(ranking), "network" if options.network is None else "genome")
    of += "" if options.network is None else f" of {options.network.text}"
    print(f"{of} by {score}, on images of {'x'.join(map(str, size))}:\n")
    print_networks(ranking)


def _known(name: str) -> Any:
    """The layout of a network, or its name in timm."""
    from ..layout import Layout
    from ..zoo.find import find_model

    try:
        found = find_model(name)
    except ValueError:
        # A genome without its network, for which there is a better message.
        return Layout.named("wrn40_2")
    return found
