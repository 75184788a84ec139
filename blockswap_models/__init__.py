"""BlockSwap: large residual networks turned into the best network that fits a budget, and the zoo found that way.

`import blockswap_models` registers the zoo with timm. Everything that needs torch is loaded when it is first used, so
that the command line answers at once.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .genome import SEARCH_TYPES, BlockType, Genome, GenomeError
from .layouts import Layout

if TYPE_CHECKING:
    from .cost import Budget, Cost, count, count_blocks
    from .score import fisher_potential
    from .search import SearchResult, search
    from .space import SearchSpace
    from .zoo import save_pretrained

__version__ = "0.1.0"

_LAZY = {
    "Budget": "cost",
    "Cost": "cost",
    "count": "cost",
    "count_blocks": "cost",
    "SearchSpace": "space",
    "fisher_potential": "score",
    "SearchResult": "search",
    "search": "search",
    "save_pretrained": "zoo",
}

__all__ = [
    "SEARCH_TYPES",
    "BlockType",
    "Budget",
    "Cost",
    "Genome",
    "GenomeError",
    "Layout",
    "SearchResult",
    "SearchSpace",
    "count",
    "count_blocks",
    "fisher_potential",
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
    """Registers the zoo as soon as timm has been imported, for a program that imports this package before timm."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                load(module)
                importlib.import_module(".zoo", __name__)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module(".zoo", __name__)
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
