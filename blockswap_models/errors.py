"""The base class of the errors of this package."""

from __future__ import annotations

__all__ = ["BlockSwapError"]


class BlockSwapError(ValueError):
    """The base of all errors of this package; the message says what is wrong, where, and what to use instead."""
