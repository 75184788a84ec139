"""The error of everything that reads data."""

from __future__ import annotations

from ..errors import BlockSwapError

__all__ = ["DataError"]


class DataError(BlockSwapError):
    """Data that cannot be read or does not fit the network: says what is wrong and what to use."""
