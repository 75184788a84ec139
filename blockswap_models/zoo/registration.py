"""The registration of the zoo with timm, which waits for timm where that has not been imported yet.

timm finds models by their name only once somebody has registered them, and has no entry points by which a package could
have that done. So `import blockswap_models` must be enough. But importing timm, and torch with it, takes seconds, and
the command line answers without them. Therefore a finder in `sys.meta_path` waits for the import of timm, by whomever,
registers the zoo then, and goes.

This module needs the standard library only.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from typing import Any

__all__ = ["register_zoo"]

_PACKAGE = __name__.partition(".")[0]
_ENTRIES = (f"{_PACKAGE}.zoo.blockswap", f"{_PACKAGE}.zoo.swapped")


def register_zoo() -> None:
    """Registers the zoo with timm: now where timm has been imported, else as soon as it is."""
    if "timm" in sys.modules:
        _import_entries()
    else:
        sys.meta_path.insert(0, _RegisterAfterTimm())


def _import_entries() -> None:
    for each in _ENTRIES:
        importlib.import_module(each)


class _RegisterAfterTimm:
    """Registers the zoo once timm has been imported.

    The zoo needs two modules that import timm themselves; so the registration waits until all three are whole. A finder
    need not be a `MetaPathFinder`, whose import takes longer than that of the rest of the package's start.
    """

    names = ("timm", f"{_PACKAGE}.data.statistics", f"{_PACKAGE}.nets.networks")
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
                    _import_entries()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
