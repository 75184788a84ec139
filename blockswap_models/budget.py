"""Costs, and budgets for them.

This module needs the standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, TypeAlias

from .errors import BlockSwapError
from .messages import quote

__all__ = [
    "Budget",
    "BudgetError",
    "BudgetLike",
    "Cost",
    "Share",
    "amount_text",
    "parse_amount",
    "parse_latency",
    "parse_several",
    "parse_size",
]

# Latencies are whole nanoseconds, so that sums of them do not depend on the order and can be compared.
_NANOSECONDS = 9


@dataclass(frozen=True)
class Cost:
    """What a network costs; costs can be added and subtracted.

    Args:
        params: Weights and biases of convolutions, BN and linear layers.
        macs: Multiply-accumulates of convolutions and linear layers for one image.
        latency: Seconds for one minibatch, where they were measured.
        size: Bytes of the weights file, where a budget asks for them: safetensors, with parameters in half precision
            and the buffers of BN as they are, which is what `blockswap pack` writes.
    """

    params: int
    macs: int
    latency: float | None = None
    size: int | None = None

    def __add__(self, other: Cost) -> Cost:
        return self._with(other, 1)

    def __sub__(self, other: Cost) -> Cost:
        return self._with(other, -1)

    def _with(self, other: Cost, sign: int) -> Cost:
        latency = None
        if self.latency is not None and other.latency is not None:
            latency = round(self.latency + sign * other.latency, _NANOSECONDS)
        size = None
        if self.size is not None and other.size is not None:
            size = self.size + sign * other.size
        return Cost(self.params + sign * other.params, self.macs + sign * other.macs, latency, size)

    def __repr__(self) -> str:
        measured = "" if self.latency is None else f", latency={self.latency}"
        measured += "" if self.size is None else f", size={self.size}"
        return f"Cost(params={self.params}, macs={self.macs}{measured})"

    def __str__(self) -> str:
        measured = "" if self.latency is None else f", {self.latency * 1000:,.2f} ms"
        measured += "" if self.size is None else f", {amount_text('size', self.size)}"
        return f"{self.params:,} parameters, {self.macs / 1e6:,.1f} M MACs{measured}"


UNMEASURED = (
    "a budget of latency needs a table of measured latencies; measure one with blockswap_models.profile, and use "
    "SearchSpace(…, latency=table)"
)


class BudgetError(BlockSwapError):
    """A budget that cannot be read or met; the message gives the range that can."""


class Share(float):
    """A share of what the original network costs, which has every block as it was."""


Amount = int | float | tuple[float | None, float | None]
# All forms of a budget: itself, an amount of parameters, or amounts by the name of the cost.
BudgetLike: TypeAlias = "Budget | Amount | str | Mapping[str, Amount | str]"


@dataclass(frozen=True)
class Budget:
    """A window for each cost that it names.

    A number means that amount ± `tolerance` (the paper's networks are within 2.5 %). A pair means from the first to the
    second, where None leaves a side open. Text means what it does on the command line: `"400k"`, `"..400k"`,
    `"300k..400k"`, `"20%"` of the original network, `"4ms"` for a latency, and `"500kB"` for a size.

    Args:
        params: Parameters.
        macs: Multiply-accumulates for one image.
        latency: Seconds for one minibatch, or text with a unit.
        size: Bytes of the weights file in half precision, as `blockswap pack` writes it.
        tolerance: Width of the window around a number, as a fraction of it.

    Raises:
        BudgetError: No cost is named, or an amount is not a number, a pair of them, or text that can be read.

    Example:
        ```python
        Budget(params=400_000)  # 390,000 to 410,000
        Budget(params="..400k", macs="60m")
        ```
    """

    params: Amount | str | None = None
    macs: Amount | str | None = None
    latency: Amount | str | None = None
    size: Amount | str | None = None
    tolerance: float = 0.025

    def __post_init__(self) -> None:
        for name in _COSTS:
            object.__setattr__(self, name, _amount(name, getattr(self, name)))
        if not 0 <= self.tolerance < 1:
            raise BudgetError(f"a tolerance is a fraction such as 0.025, not {self.tolerance}")
        windows = self._windows()
        if not windows:
            raise BudgetError("an empty budget; use Budget(params=400_000), or macs=, or latency=, or size=")
        for name, (low, high) in windows.items():
            mixed = {isinstance(part, Share) for part in _parts(getattr(self, name)) if part is not None}
            if len(mixed) > 1:
                raise BudgetError(f"a budget of {name} is in percent on both sides or on none")
            if not 0 <= low <= high:
                start, end = (
                    amount_text(name, each) if name == "latency" or True in mixed else f"{each:,}"
                    for each in ((Share(low), Share(high)) if True in mixed else (low, high))
                )
                raise BudgetError(
                    f"a budget of {name} runs from a smaller to a larger amount, not from {start} to {end}"
                )

    @classmethod
    def of(cls, budget: BudgetLike) -> Budget:
        """Makes a budget from any of the forms that `search` takes.

        Args:
            budget: A budget, which is returned; a number, a pair or text, for parameters; or a mapping from
                `params`, `macs`, `latency` and `size` to such amounts.

        Returns:
            The budget.

        Raises:
            BudgetError: It is none of these, or cannot be read.

        Example:
            ```python
            Budget.of("400k") == Budget(params=400_000)
            Budget.of({"params": "..400k", "latency": "4ms"})
            ```
        """
        if isinstance(budget, Budget):
            return budget
        if not isinstance(budget, Mapping):
            if isinstance(budget, str) and _LATENCY.search(budget):
                raise BudgetError(f"{quote(budget)} is a latency; use {{'latency': {budget!r}}}")
            return cls(params=budget)
        unknown = [name for name in budget if name not in (*_COSTS, "tolerance")]
        if unknown:
            raise BudgetError(f"a budget names params, macs, latency or size, not {quote(unknown[0])}")
        amounts: dict[str, Any] = dict(budget)
        return cls(**amounts)

    @property
    def windows(self) -> dict[str, tuple[float, float]]:
        """The smallest and largest amount that fit, for each cost that the budget names.

        Raises:
            BudgetError: An amount is in percent; `of_original` makes it a number.
        """
        if self.is_share:
            raise BudgetError(f"{self} is a share of an original network; use SearchSpace(…).resolve(budget)")
        return self._windows()

    @property
    def is_share(self) -> bool:
        """Whether an amount is in percent of the original network."""
        return any(isinstance(part, Share) for name in _COSTS for part in _parts(getattr(self, name)))

    def of_original(self, original: Cost) -> Budget:
        """Makes numbers of what is in percent.

        Args:
            original: The cost of the original network.

        Returns:
            The budget in numbers.

        Raises:
            BudgetError: A latency is in percent, and that of the original is not known.
        """
        amounts: dict[str, Any] = {}
        for name in _COSTS:
            given, whole = getattr(self, name), getattr(original, name)
            parts = _parts(given)
            if any(isinstance(part, Share) for part in parts):
                if whole is None:
                    raise BudgetError(UNMEASURED)
                digits = _NANOSECONDS if name == "latency" else None
                parts = [None if part is None else round(part * whole, digits) for part in parts]
            amounts[name] = tuple(parts) if isinstance(given, tuple) else parts[0]
        return Budget(**amounts, tolerance=self.tolerance)

    def _windows(self) -> dict[str, tuple[float, float]]:
        return {name: window for name in _COSTS if (window := self._window(name)) is not None}

    def _window(self, name: str) -> tuple[float, float] | None:
        amount = getattr(self, name)
        if amount is None or amount == (None, None):
            return None
        if isinstance(amount, tuple):
            low, high = amount
            return 0 if low is None else low, float("inf") if high is None else high
        # Rounded, since 400,000 · 1.025 in binary fractions is a hair less than 410,000, which fits.
        digits = _NANOSECONDS if name == "latency" or isinstance(amount, Share) else 3
        return round(amount * (1 - self.tolerance), digits), round(amount * (1 + self.tolerance), digits)

    def as_json(self) -> dict[str, Any]:
        """What JSON holds of it: the amounts as they were given, and the tolerance where it matters."""
        given: dict[str, Any] = {}
        for name in self.windows:
            amount = getattr(self, name)
            if isinstance(amount, tuple):
                given[name] = [each if each is None or math.isfinite(each) else None for each in amount]
            else:
                given |= {name: amount, "tolerance": self.tolerance}
        return given

    def fits(self, cost: Cost) -> bool:
        """Checks whether a cost is within every window.

        Args:
            cost: The cost of a network.

        Returns:
            Whether it fits.

        Raises:
            BudgetError: The budget names a latency or a size, and the cost has none; or it is in percent.
        """
        windows = self.windows
        if "latency" in windows and cost.latency is None:
            raise BudgetError(UNMEASURED)
        if "size" in windows and cost.size is None:
            raise BudgetError("a budget of size needs costs that have one; use SearchSpace(…).sized.cost(genome)")
        return all(low <= getattr(cost, name) <= high for name, (low, high) in windows.items())

    def __str__(self) -> str:
        parts = []
        for name in self._windows():
            amount = getattr(self, name)
            if isinstance(amount, tuple):
                low, high = amount
                start, end = amount_text(name, low or 0), "" if high is None else amount_text(name, high)
                both = f"{start} to {end}" if low else f"up to {end}"
                parts.append(f"{name} from {start}" if high is None or math.isinf(high) else f"{name} {both}")
            else:
                parts.append(f"{name} {amount_text(name, amount)} ± {self.tolerance * 100:g}%")
        return ", ".join(parts)


# No cost has more digits than this.
_MAX_LENGTH = 40
_COSTS = tuple(field.name for field in fields(Budget) if field.name != "tolerance")


def _amount(name: str, given: Any) -> Amount | None:
    """Reads an amount of a cost from a number, a pair of numbers or text; raises BudgetError."""
    if isinstance(given, str):
        return {"latency": parse_latency, "size": parse_size}.get(name, parse_amount)(given)
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    parts = [_number(part) if isinstance(part, Real) else part for part in (given if pair else (given,))]
    if not all(part is None or isinstance(part, (int, float)) for part in parts):
        raise BudgetError(f"a budget of {name} is a number, a pair of them or text, not {quote(given)}")
    return (parts[0], parts[1]) if pair else parts[0]


def _parts(amount: Any) -> list[Any]:
    """The numbers of an amount: one, or both ends."""
    return list(amount) if isinstance(amount, tuple) else [amount]


def _number(given: Real) -> int | float:
    """Converts a number, one of numpy's too, to an int or float."""
    if isinstance(given, Share):
        return given
    return int(given) if isinstance(given, Integral) else float(given)


def amount_text(name: str, amount: float) -> str:
    """Formats an amount of a cost; latencies in milliseconds, shares in percent."""
    if isinstance(amount, Share):
        return f"{amount * 100:g}%"
    if name != "latency":
        return f"{amount:,.0f}{' bytes' if name == 'size' else ''}"
    digits = f"{amount * 1000:,.6f}"
    return f"{digits.rstrip('0').rstrip('.')} ms"


def parse_amount(text: str) -> Amount:
    """Reads an amount: `400k`, `1.2g`, `400,000`, a ceiling `..400k`, a floor `300k..` or a window `300k..400k`."""
    return _parse(text, _parse_count)


def parse_latency(text: str) -> Amount:
    """Reads a latency into seconds: `4ms`, `800us`, `1.5s`, a ceiling `..4ms`, a floor `3ms..`, a window `3ms..4ms`."""
    return _parse(text, _parse_seconds)


def parse_size(text: str) -> Amount:
    """Reads a size: `500kB`, `1.2MB`, `300KiB`, `500,000 bytes`, a ceiling `..500kB`, a floor or a window of these."""
    return _parse(text, _parse_bytes)


def parse_several(text: str, parse: Callable[[str], Amount]) -> list[Amount]:
    """Reads one amount, or several between commas, as `parse` reads each; `400,000` is one."""
    try:
        return [parse(text)]
    except BudgetError:
        parts = text.split(",")
        if len(parts) == 1:
            raise
        return [parse(part) for part in parts]


def _parse(text: str, parse_one: Callable[[str, str], float]) -> Amount:
    def parse_part(part: str) -> float:
        share = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)\s?%", part.strip())
        # As text, so that 28.5% is the float nearest to 0.285.
        return Share(f"{share[1]}e-2") if share else parse_one(part, text)

    low, dots, high = text.partition("..")
    if dots and (low or high):
        return parse_part(low) if low else None, parse_part(high) if high else None
    return parse_part(text)


# Digits with or without separators: 400000, 400,000 and 400_000.
_NUMBER = r"([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9][0-9_]*(?:\.[0-9]+)?)"


_LATENCY = re.compile(r"[0-9]\s?(?:s|ms|us|µs)\b")


def _parse_seconds(part: str, text: str) -> float:
    match = re.fullmatch(rf"{_NUMBER}\s?(s|ms|us|µs)", part.strip())
    if not match or len(part) > _MAX_LENGTH:
        raise BudgetError(f"{quote(text)} is no latency; use 4ms, 800us, 20%, ..4ms or 3ms..4ms")
    # As text, so that 4.1ms is the float nearest to 0.0041.
    return float(f"{match[1].replace(',', '')}e{ {'s': 0, 'ms': -3, 'us': -6, 'µs': -6}[match[2]] }")


def _parse_count(part: str, text: str) -> int:
    match = re.fullmatch(rf"{_NUMBER}\s?([kmgKMG]?)", part.strip())
    if not match or len(part) > _MAX_LENGTH:
        raise BudgetError(f"{quote(text)} is no amount; use 400k, 3m, 1.2g, 20%, ..400k or 300k..400k")
    return _scaled(match[1], {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2].lower()])


def _parse_bytes(part: str, text: str) -> int:
    # A number alone is that of a table, whose column is headed bytes.
    match = re.fullmatch(rf"{_NUMBER}(?:\s?(?:([kKmMgG]?)(i?)B|bytes?))?", part.strip())
    if not match or len(part) > _MAX_LENGTH:
        raise BudgetError(f"{quote(text)} is no size; use 500kB, 1.2MB, 300KiB, 20%, ..500kB or 300kB..500kB")
    base = 1024 if match[3] else 1000
    return _scaled(match[1], base ** ["", "k", "m", "g"].index((match[2] or "").lower()))


def _scaled(number: str, scale: int) -> int:
    # In whole numbers, so that 1.6m is exactly 1,600,000.
    whole, _, fraction = re.sub("[_,]", "", number).partition(".")
    digits = fraction.rstrip("0")
    return int(whole + digits) * scale // 10 ** len(digits)
