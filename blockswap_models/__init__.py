"""BlockSwap: large residual networks turned into the best network that fits a budget, and the zoo found that way.

`import blockswap_models` registers the zoo with timm. Everything that needs torch is loaded when it is first used, so
that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .budget import Budget, BudgetError, Cost
from .errors import BlockSwapError
from .genome import SEARCH_TYPES, BlockType, Genome, GenomeError
from .layout import Layout
from .searching.latency import LatencyError, LatencyTable
from .zoo.registration import register_zoo

if TYPE_CHECKING:
    from .data.errors import DataError
    from .detection import mask_rcnn
    from .export import ExportError, export_model, fold_batchnorm
    from .making import Made, MakeError, make
    from .nets.cost import count, count_blocks
    from .nets.library import BlockLibrary, LibraryError
    from .nets.swap import SplitError, swap
    from .prediction import Prediction, predict
    from .searching.block_choice import search_library
    from .searching.candidates import Candidate
    from .searching.fisher import fisher_potential
    from .searching.front import Front, budgets_along, search_front
    from .searching.profile import profile
    from .searching.rank_networks import RankedNetwork, rank_networks
    from .searching.record import RecordError
    from .searching.result import SearchResult
    from .searching.search import SearchError, search
    from .searching.space import SearchSpace
    from .searching.workers import WorkerError
    from .training.attention_transfer import AttentionTransferTask
    from .training.evaluate import evaluate
    from .training.library import train_library
    from .training.loop import train
    from .training.run_folder import TrainingError
    from .training.shared_teacher import SharedTeacherTask
    from .zoo.blockswap import save_pretrained
    from .zoo.cards import MissingWeightsError, WeightsError
    from .zoo.register import register

__version__ = "0.1.0"

_LAZY = {
    "search_library": "searching.block_choice",
    "BlockLibrary": "nets.library",
    "LibraryError": "nets.library",
    "train_library": "training.library",
    "AttentionTransferTask": "training.attention_transfer",
    "Candidate": "searching.candidates",
    "DataError": "data.errors",
    "ExportError": "export",
    "Front": "searching.front",
    "Made": "making",
    "MakeError": "making",
    "MissingWeightsError": "zoo.cards",
    "Prediction": "prediction",
    "RankedNetwork": "searching.rank_networks",
    "RecordError": "searching.record",
    "SearchError": "searching.search",
    "SearchResult": "searching.result",
    "SearchSpace": "searching.space",
    "SharedTeacherTask": "training.shared_teacher",
    "SplitError": "nets.swap",
    "TrainingError": "training.run_folder",
    "WeightsError": "zoo.cards",
    "WorkerError": "searching.workers",
    "budgets_along": "searching.front",
    "count": "nets.cost",
    "count_blocks": "nets.cost",
    "evaluate": "training.evaluate",
    "export_model": "export",
    "fisher_potential": "searching.fisher",
    "fold_batchnorm": "export",
    "mask_rcnn": "detection",
    "make": "making",
    "predict": "prediction",
    "profile": "searching.profile",
    "rank_networks": "searching.rank_networks",
    "register": "zoo.register",
    "save_pretrained": "zoo.blockswap",
    "search": "searching.search",
    "search_front": "searching.front",
    "swap": "nets.swap",
    "train": "training.loop",
}

__all__ = [
    "SEARCH_TYPES",
    "AttentionTransferTask",
    "BlockLibrary",
    "BlockSwapError",
    "BlockType",
    "Budget",
    "BudgetError",
    "Candidate",
    "Cost",
    "DataError",
    "ExportError",
    "Front",
    "Genome",
    "GenomeError",
    "LatencyError",
    "LatencyTable",
    "Layout",
    "LibraryError",
    "Made",
    "MakeError",
    "MissingWeightsError",
    "Prediction",
    "RankedNetwork",
    "RecordError",
    "SearchError",
    "SearchResult",
    "SearchSpace",
    "SharedTeacherTask",
    "SplitError",
    "TrainingError",
    "WeightsError",
    "WorkerError",
    "budgets_along",
    "count",
    "count_blocks",
    "evaluate",
    "export_model",
    "fisher_potential",
    "fold_batchnorm",
    "make",
    "mask_rcnn",
    "predict",
    "profile",
    "rank_networks",
    "register",
    "save_pretrained",
    "search",
    "search_front",
    "search_library",
    "swap",
    "train",
    "train_library",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'blockswap_models' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_zoo()
