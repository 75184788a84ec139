"""The check of numbers of something: samples, workers, images, classes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import SupportsIndex

__all__ = ["require_counts"]


def require_counts(
    least: int = 1, error: Callable[[str], Exception] = ValueError, /, **counts: SupportsIndex | None
) -> None:
    """Sees that the numbers that are given are whole ones, and not too small.

    Args:
        least: The smallest that will do.
        error: Makes the exception from its message if a number is too small.
        **counts: Such as `num_classes`, `in_chans` or `batch_size`, by name.

    Raises:
        TypeError: One is no whole number.
        ValueError: One is below `least`; or what `error` makes.

    Example:
        ```python
        require_counts(samples=1000, batch_size=None)
        require_counts(0, seed=0)
        ```
    """
    for name, value in counts.items():
        if value is None:
            continue
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} is a whole number, not {value!r}") from None
        if number < least:
            raise error(f"{name} is at least {least}, not {number}")
