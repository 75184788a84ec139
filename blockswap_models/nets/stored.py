"""The size of a weights file without writing it: safetensors, parameters in half precision, as `pack` writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

__all__ = ["StoredTensor", "file_size", "most_bytes", "stored_tensors"]

# Of what is stored, in the order of the file: counters of BN, its statistics, and parameters.
_ORDER = {"I64": 0, "F32": 1, "F16": 2}
_BYTES = {"I64": 8, "F32": 4, "F16": 2}
# The length of the header, in front of it, and what the header's own length is a multiple of.
_LENGTH = _MULTIPLE = 8


class StoredTensor(NamedTuple):
    """A tensor in a file: its place among others, its bytes, and those of its entry in the header but for offsets."""

    order: int
    name: str
    data: int
    entry: int


def stored_tensors(module: nn.Module, prefix: str = "") -> list[StoredTensor]:
    """Lists the tensors of a network, or of the part of one whose names begin with `prefix`."""
    parameters = {name for name, _ in module.named_parameters()}
    found = []
    for name, tensor in module.state_dict().items():
        dtype = "F16" if name in parameters else "F32" if tensor.is_floating_point() else "I64"
        shape = list(tensor.shape)
        entry = json.dumps({prefix + name: {"dtype": dtype, "shape": shape, "data_offsets": []}}, separators=(",", ":"))
        # The braces around it go, and a comma within the offsets and one before it come.
        found.append(StoredTensor(_ORDER[dtype], prefix + name, math.prod(shape) * _BYTES[dtype], len(entry)))
    return found


# What the header holds before the first tensor.
_START = len('{"__metadata__":{"format":"pt"}}')


def file_size(tensors: Iterable[StoredTensor]) -> int:
    """Counts the bytes of the file that has these tensors."""
    offset, header = 0, _START
    for each in sorted(tensors):
        header += each.entry + len(str(offset)) + len(str(offset + each.data))
        offset += each.data
    return _LENGTH + -(-header // _MULTIPLE) * _MULTIPLE + offset


def most_bytes(tensors: Iterable[StoredTensor], digits: int) -> int:
    """Counts what tensors add to a file at most, where no offset has more digits: that adds up, and sizes do not."""
    return sum(each.data + each.entry + 2 * digits for each in tensors)
