"""The tensors in a safetensors file, read without executing anything and before any weight is read.

The format (https://huggingface.co/docs/safetensors): the length of a header, the header as JSON with name, type, shape
and position of each tensor, then the numbers. Files of ``torch.save`` are not read, since they contain a pickle. This
file does not import torch.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import BundleError
from ..json_io import parse_json
from .weight_files import GET_AGAIN

BYTES_OF_TYPE = {"float16": 2, "float32": 4, "int64": 8}
# Types that other programs may store in a table of tensors, but that our bundles do not contain.
OTHER_TYPES = {"float64": 8, "bfloat16": 2, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_MAX_HEADER_BYTES = 4 << 20
_MAX_DIMENSIONS = 8

_TYPES = {
    **{"F16": "float16", "F32": "float32", "I64": "int64", "F64": "float64", "BF16": "bfloat16", "I32": "int32"},
    **{"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a weight file: its type (torch's name), its shape, and its byte offset in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """The number of bytes it takes in the file."""
        return math.prod(self.shape) * (BYTES_OF_TYPE | OTHER_TYPES)[self.dtype]


def list_stored_tensors(file: BinaryIO, size: int, name: str) -> dict[str, StoredTensor]:
    """The tensors in the safetensors file ``name`` of ``size`` bytes, by their names. All of them lie within the file.

    Raises BundleError if it is not such a file.
    """
    try:
        table = _read_table(file, size)
        if any(tensor.offset < 0 or tensor.offset + tensor.bytes > size for tensor in table.values()):
            raise ValueError("a tensor outside of the file")
    except (ValueError, KeyError, TypeError, OSError, struct.error):
        raise BundleError(f"{name} cannot be read as safetensors.", GET_AGAIN) from None
    return table


def make_safetensors_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The header of a safetensors file with these tensors (type, shape); their numbers follow in the same order."""
    names = {dtype: short for short, dtype in _TYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * BYTES_OF_TYPE[dtype]
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode("ascii")
    # The numbers start at a multiple of eight bytes.
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def _read_table(file: BinaryIO, size: int) -> dict[str, StoredTensor]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError("a header larger than the file, or than that of any network")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is not an object")
    table: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if type(begin) is not int or type(end) is not int or begin < 0:
            raise ValueError("an offset that is not a number")
        table[name] = StoredTensor(_TYPES[entry["dtype"]], _parse_shape(entry["shape"]), 8 + length + begin)
        if table[name].bytes != end - begin:
            raise ValueError("a tensor whose size does not match its shape")
    return table


def _parse_shape(values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > _MAX_DIMENSIONS:
        raise ValueError("not a shape")
    if not all(type(side) is int and 0 <= side < 2**40 for side in values):
        raise ValueError("not a shape")
    return tuple(values)
