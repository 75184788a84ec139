"""The hardware and versions that are stated beside a measurement."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import timm
import torch

from .. import __version__

__all__ = ["describe_device", "describe_machine"]


def describe_device(device: torch.device) -> dict[str, str]:
    """Names a device and the versions of torch, timm and this package, by name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"processor": name, "torch": torch.__version__, "timm": timm.__version__, "blockswap_models": __version__}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Lists the `versions` and the `hardware` of a training run."""
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
