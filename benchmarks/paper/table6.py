"""Table 6 of the paper: BlockSwap's students beside random genomes and the teacher pruned by magnitude.

    python -m benchmarks.paper.table6
    python -m benchmarks.paper.table6 --train --data-dir path/to/cifar10 --rows random l1-10

Counts every network of the table and prints the paper's figures beside. With --train it trains them, each seed with a
teacher of its own, as the paper does; without a GPU a few of them, shortly. The same command resumes where it stopped.
With table2.py it shares what both train, in the same --out.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from benchmarks.lib.comparison import Network, Paper, main, student
from benchmarks.lib.pruning import l1_prune, nonzero_parameters
from benchmarks.lib.trained import TEACHER, Trainer, facts_of
from benchmarks.paper.table2 import SIZES
from blockswap_models import Budget, SearchSpace, count

WRN40_2 = f"blockswap_{TEACHER}"
RANDOM = {
    "811k": Paper("795.7", "81.6", "4.26 ± 0.04"),
    "556k": Paper("551.1", "76.7", "4.54 ± 0.18"),
    "404k": Paper("397.4", "59.5", "4.91 ± 0.12"),
    "289k": Paper("285.1", "56.7", "4.80 ± 0.12"),
    "217k": Paper("217.6", "46.9", "5.13 ± 0.24"),
    "162k": Paper("168.3", "33.6", "5.75 ± 0.09"),
}
# By the percentage of the weights of convolutions that stay. The paper does not print it, but its counts are these.
L1 = {
    40: Paper("894.7", "-", "4.12 ± 0.03"),
    34: Paper("760.5", "-", "4.32 ± 0.06"),
    30: Paper("671.1", "-", "4.51 ± 0.13"),
    24: Paper("536.8", "-", "4.98 ± 0.21"),
    20: Paper("447.4", "-", "5.60 ± 0.23"),
    14: Paper("313.2", "-", "7.70 ± 0.18"),
    10: Paper("223.7", "-", "11.93 ± 0.77"),
}
# Of the recipe's learning rate: Han et al. (2015, arXiv:1506.02626) retrain LeNet so; this paper does not say.
FINE_TUNING = 0.1
REMARKS = """\
Random genomes are drawn here, uniformly within 2.5 % of the students' parameters, and so are others than the paper's.
L1 pruning keeps 40, 34, 30, 24, 20, 14 and 10 % of the weights of convolutions, those of the largest magnitude in the
whole network, and is fine-tuned for all epochs from a tenth of the learning rate. Its parameters are, as in the paper,
the weights of convolutions that are not pruned; beside these all others of the network stay. MACs: those of
convolutions and linear layers. All networks learn from the teacher by attention transfer."""


def random_row(space: SearchSpace, size: str, paper: Paper) -> Network:
    """A random genome with as many parameters as a student of BlockSwap."""
    budget = Budget(params=count(timm.create_model(f"{WRN40_2}_{size}", device="meta")).params)
    (genome,) = space.sample(1, budget)
    return student(f"random-{size}", "random", paper, WRN40_2, str(genome))


def l1_row(percent: int, paper: Paper) -> Network:
    """The trained teacher without its smallest weights, trained on."""
    name = f"l1-{percent}"

    def counted() -> dict[str, Any]:
        # How many are left does not depend on the weights.
        model = timm.create_model(WRN40_2)
        facts = facts_of(model)
        l1_prune(model, percent / 100)
        return {**facts, "nonzero": nonzero_parameters(model, nn.Conv2d)}

    def pruned(trainer: Trainer, seed: int) -> nn.Module:
        model = trainer.teacher(seed)
        l1_prune(model, percent / 100)
        return model

    def fit(trainer: Trainer, seed: int, facts: dict[str, Any]) -> dict[str, Any]:
        return trainer.fit_student(name, seed, facts, lambda: pruned(trainer, seed), FINE_TUNING)

    return Network(name, "L1 pruning", paper, counted, fit)


def networks() -> list[Network]:
    """Lists the rows of the table, in the paper's order."""
    space = SearchSpace(TEACHER)
    return [
        *(student(f"blockswap-{size}", "BlockSwap", paper, f"{WRN40_2}_{size}") for size, (*_, paper) in SIZES.items()),
        *(random_row(space, size, paper) for size, paper in RANDOM.items()),
        *(l1_row(percent, paper) for percent, paper in L1.items()),
    ]


if __name__ == "__main__":
    main(__doc__.splitlines()[0], networks(), ("random-162k", "l1-10"), REMARKS)
