"""The error of everything that reads data."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """Data that cannot be read or does not fit the network: says what is wrong and what to use."""
