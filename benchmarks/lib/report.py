"""What scripts print in the same way: versions, the processor, and a mean with its deviation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import timm
import torch

import blockswap_models
from blockswap_models.nets.devices import describe_device

__all__ = ["mean_and_deviation", "processor", "versions"]


def versions() -> str:
    """Says which versions give the figures that are printed."""
    return f"blockswap_models {blockswap_models.__version__}, torch {torch.__version__}, timm {timm.__version__}"


def processor() -> str:
    """Names the CPU."""
    return describe_device(torch.device("cpu"))["processor"]


def mean_and_deviation(values: Sequence[float]) -> str:
    """Formats a mean and, of more than one value, the standard deviation: 4.21 ± 0.13."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"
