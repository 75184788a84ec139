"""BlockSwap: large residual networks turned into the best network that fits a budget, and the zoo found that way.

`import blockswap_models` registers the zoo with timm. Everything that needs torch is loaded when it is first used, so
that the command line answers at once.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from .budget import Budget, BudgetError, Cost
from .genome import SEARCH_TYPES, BlockType, Genome, GenomeError
from .layout import Layout
from .searching.latency import LatencyError, LatencyTable

if TYPE_CHECKING:
    from .export import export_model, fold_batchnorm
    from .nets.cost import count, count_blocks
    from .searching.fisher import fisher_potential
    from .searching.profile import profile
    from .searching.search import SearchResult, search
    from .searching.space import SearchSpace
    from .training.attention_transfer import AttentionTransferTask
    from .training.shared_teacher import SharedTeacherTask
    from .zoo.blockswap import save_pretrained
    from .zoo.register import register

__version__ = "0.1.0"

_LAZY = {
    "AttentionTransferTask": "training.attention_transfer",
    "count": "nets.cost",
    "count_blocks": "nets.cost",
    "SearchSpace": "searching.space",
    "SharedTeacherTask": "training.shared_teacher",
    "export_model": "export",
    "fold_batchnorm": "export",
    "register": "zoo.register",
    "profile": "searching.profile",
    "fisher_potential": "searching.fisher",
    "SearchResult": "searching.search",
    "search": "searching.search",
    "save_pretrained": "zoo.blockswap",
}

__all__ = [
    "SEARCH_TYPES",
    "AttentionTransferTask",
    "BlockType",
    "Budget",
    "BudgetError",
    "Cost",
    "Genome",
    "GenomeError",
    "LatencyError",
    "LatencyTable",
    "Layout",
    "SearchResult",
    "SearchSpace",
    "SharedTeacherTask",
    "count",
    "count_blocks",
    "export_model",
    "fisher_potential",
    "fold_batchnorm",
    "profile",
    "register",
    "save_pretrained",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'blockswap_models' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _RegisterAfterTimm(MetaPathFinder):
    """Registers the zoo once timm has been imported, by whomever, for a program that imports this package before timm.

    The zoo needs two modules that import timm themselves; so the registration waits until all three are whole.
    """

    names = ("timm", f"{__name__}.data.statistics", f"{__name__}.nets.networks")
    loading = 0

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                self.loading += 1
                try:
                    load(module)
                finally:
                    self.loading -= 1
                if not self.loading and self in sys.meta_path:
                    sys.meta_path.remove(self)
                    importlib.import_module(".zoo.blockswap", __name__)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module(".zoo.blockswap", __name__)
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
