"""Costs, and budgets for them.

This module needs the standard library only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from .genome import _quote

__all__ = ["Budget", "BudgetError", "Cost", "parse_amount"]


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates for one image."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.macs - other.macs)

    def __str__(self) -> str:
        return f"{self.params:,} parameters, {self.macs / 1e6:,.1f} M MACs"


class BudgetError(ValueError):
    """A budget that cannot be read or met: says the range that can."""


Amount = int | float | tuple[float | None, float | None]


@dataclass(frozen=True)
class Budget:
    """A window for each cost that it names.

    A number means that amount within ± `tolerance` of it (the paper's networks are within 2.5 %); a pair means from the
    first to the second, where None leaves a side open.
    """

    params: Amount | None = None
    macs: Amount | None = None
    tolerance: float = 0.025

    def __post_init__(self) -> None:
        for name in _COSTS:
            amount = getattr(self, name)
            parts = amount if isinstance(amount, tuple) and len(amount) == 2 else (amount,)
            if not all(part is None or isinstance(part, (int, float)) for part in parts):
                raise BudgetError(f"a budget of {name} is a number or a pair of them, not {_quote(amount)}")
        if not 0 <= self.tolerance < 1:
            raise BudgetError(f"a tolerance is a fraction such as 0.025, not {self.tolerance}")
        if not self.windows:
            raise BudgetError("an empty budget; write Budget(params=400_000), or macs=")
        for name, (low, high) in self.windows.items():
            if not 0 <= low <= high:
                raise BudgetError(
                    f"a budget of {name} runs from a smaller to a larger amount, not from {low:,} to {high:,}"
                )

    @property
    def windows(self) -> dict[str, tuple[float, float]]:
        """The smallest and largest amount that fit, for each cost that the budget names."""
        return {name: window for name in _COSTS if (window := self._window(getattr(self, name))) is not None}

    def _window(self, amount: Amount | None) -> tuple[float, float] | None:
        if amount is None or amount == (None, None):
            return None
        if isinstance(amount, tuple):
            low, high = amount
            return 0 if low is None else low, float("inf") if high is None else high
        # Rounded, since 400,000 · 1.025 in binary fractions is a hair less than 410,000, which fits.
        return round(amount * (1 - self.tolerance), 3), round(amount * (1 + self.tolerance), 3)

    def fits(self, cost: Cost) -> bool:
        """Says whether a cost is within every window."""
        return all(low <= getattr(cost, name) <= high for name, (low, high) in self.windows.items())

    def __str__(self) -> str:
        parts = []
        for name in self.windows:
            amount = getattr(self, name)
            if isinstance(amount, tuple):
                low, high = self.windows[name]
                start = f"{low:,.0f} to" if low else "up to"
                parts.append(f"{name} from {low:,.0f}" if math.isinf(high) else f"{name} {start} {high:,.0f}")
            else:
                parts.append(f"{name} {amount:,.0f} ± {self.tolerance * 100:g}%")
        return ", ".join(parts)


# No cost has more digits than this.
_MAX_LENGTH = 40
_COSTS = tuple(field.name for field in fields(Budget) if field.name != "tolerance")


def parse_amount(text: str) -> Amount:
    """Reads an amount: `400k`, `1.2g`, `60_000_000`, a ceiling `..400k`, a floor `300k..` or a window `300k..400k`."""
    low, dots, high = text.partition("..")
    if dots and (low or high):
        return _parse_one(low, text) if low else None, _parse_one(high, text) if high else None
    return _parse_one(text, text)


def _parse_one(part: str, text: str) -> int:
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)([kmgKMG]?)", part.strip())
    if not match or len(part) > _MAX_LENGTH:
        raise BudgetError(f"{_quote(text)} is no amount; write 400k, 3m, 1.2g, ..400k or 300k..400k")
    scale = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2].lower()]
    # In whole numbers, so that 1.6m is exactly 1,600,000.
    whole, _, fraction = match[1].replace("_", "").partition(".")
    digits = fraction.rstrip("0")
    return int(whole + digits) * scale // 10 ** len(digits)
