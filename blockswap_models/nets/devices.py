"""Devices: the one that is asked for or found, and what is said of it beside a measurement."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import timm
import torch

from .. import __version__
from ..messages import quote

__all__ = ["describe_device", "describe_machine", "find_device"]


def find_device(name: str | None = None) -> torch.device:
    """Finds a device by its name; without one it is the GPU where there is one, else the CPU.

    Args:
        name: Such as `cpu`, `cuda` or `cuda:1`.

    Raises:
        ValueError: There is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"unknown device {quote(str(name))}; use cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; use device=cpu")
    return device


def describe_device(device: torch.device) -> dict[str, str]:
    """Names a device and the versions of torch, timm and this package, by name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"processor": name, "torch": torch.__version__, "timm": timm.__version__, "blockswap_models": __version__}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Says what a training ran on and with: `versions` and `hardware`."""
    about = describe_device(device)
    hardware = {"processor": about.pop("processor"), "threads": torch.get_num_threads()}
    return {"versions": {"python": platform.python_version(), **about}, "hardware": hardware}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
