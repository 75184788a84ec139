"""The base class of the errors of this package."""

from __future__ import annotations

__all__ = ["BlockSwapError"]


class BlockSwapError(ValueError):
    """What this package cannot do with what it was given: says what is wrong, where, and what to use instead."""
