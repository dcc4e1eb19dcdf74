"""The tensors in a weight file, read without executing anything and before any weight is read.

New bundles store their weights as safetensors (https://huggingface.co/docs/safetensors): the length of a header, the
header as JSON with name, type, shape and position of each tensor, then the numbers. Older bundles contain a file of
``torch.save``: a zip file with a pickle and the numbers. Neither is passed to a library that could do more than read
numbers. Of the pickle, only the few operations that a table of tensors needs are executed; everything else is refused.
``torch.load``, with its known vulnerabilities (CVE-2025-32434, CVE-2026-24747), is not used. This file does not import
torch.
"""

from __future__ import annotations

import json
import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import BundleError
from ..json_io import parse_json
from .weight_files import GET_AGAIN

SAFETENSORS = ".safetensors"
BYTES_OF_TYPE = {"float16": 2, "float32": 4, "int64": 8}
# Types that other programs may store in a table of tensors, but that our bundles do not contain.
OTHER_TYPES = {"float64": 8, "bfloat16": 2, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_MOST_HEADER_BYTES = 4 << 20
_MOST_DIMENSIONS = 8

_SAFETENSORS_TYPES = {
    **{"F16": "float16", "F32": "float32", "I64": "int64", "F64": "float64", "BF16": "bfloat16", "I32": "int32"},
    **{"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}
_TORCH_TYPES = {
    **{"torch HalfStorage": "float16", "torch FloatStorage": "float32", "torch LongStorage": "int64"},
    **{"torch DoubleStorage": "float64", "torch BFloat16Storage": "bfloat16", "torch IntStorage": "int32"},
    **{"torch ShortStorage": "int16", "torch CharStorage": "int8", "torch ByteStorage": "uint8"},
    "torch BoolStorage": "bool",
}
_REBUILD, _TABLE = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"


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


def stored_tensors(file: BinaryIO, size: int, name: str) -> dict[str, StoredTensor]:
    """The tensors in a weight file of ``size`` bytes, by name; the file's ``name`` determines its format.

    All of them lie within the file. Raises BundleError if it is not a table of tensors.
    """
    try:
        table = _safetensors_table(file, size) if name.endswith(SAFETENSORS) else _torch_table(file)
        if any(tensor.offset < 0 or tensor.offset + tensor.bytes > size for tensor in table.values()):
            raise ValueError("a tensor outside of the file")
    except _CodeError:
        raise BundleError(
            f"{name} contains more than weights and could run code on this computer. It was not opened.",
            "Do not use this model unless you trust who made it, or ask for a file that contains only weights.",
        ) from None
    except _NoTableError:
        raise BundleError(f"{name} is not a table of named weights.", GET_AGAIN) from None
    # Whatever error other content causes, such as an OSError for an offset before the start of the file.
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        EOFError,
        OSError,
        struct.error,
        zipfile.BadZipFile,
        RuntimeError,
    ):
        file_format = "safetensors" if name.endswith(SAFETENSORS) else "PyTorch weights"
        raise BundleError(f"{name} cannot be read as {file_format}.", GET_AGAIN) from None
    return table


class _CodeError(ValueError):
    """A pickle refers to Python objects other than tensors."""


class _NoTableError(ValueError):
    """A pickle contains something else than a table of tensors."""


def safetensors_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The header of a safetensors file with these tensors (type, shape); their numbers follow in the same order."""
    names = {dtype: short for short, dtype in _SAFETENSORS_TYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * BYTES_OF_TYPE[dtype]
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode("ascii")
    # The numbers start at a multiple of eight bytes.
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def _safetensors_table(file: BinaryIO, size: int) -> dict[str, StoredTensor]:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MOST_HEADER_BYTES):
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
        table[name] = StoredTensor(_SAFETENSORS_TYPES[entry["dtype"]], _shape(entry["shape"]), 8 + length + begin)
        if table[name].bytes != end - begin:
            raise ValueError("a tensor whose size does not match its shape")
    return table


def _shape(values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > _MOST_DIMENSIONS:
        raise ValueError("not a shape")
    if not all(type(side) is int and 0 <= side < 2**40 for side in values):
        raise ValueError("not a shape")
    return tuple(values)


class Bounded:
    """A file that refuses to read more bytes at once than the directory and headers of a bundle's zip file need.

    ``zipfile`` reads the directory of a zip file as a whole, however large the file claims it is.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int = -1) -> bytes:
        """Read ``count`` bytes. Raises BadZipFile if they exceed the limit."""
        if count > _MOST_HEADER_BYTES:
            raise zipfile.BadZipFile("too large a part")
        content = self._file.read(_MOST_HEADER_BYTES + 1 if count < 0 else count)
        if len(content) > _MOST_HEADER_BYTES:
            raise zipfile.BadZipFile("too large a part")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position in the file, as ``io.IOBase.seek``."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()

    def seekable(self) -> bool:
        """True."""
        return True


def _torch_table(file: BinaryIO) -> dict[str, StoredTensor]:
    start = file.read(_MOST_HEADER_BYTES)
    if not start.startswith(b"PK\x03\x04"):
        # Not a current file of torch.save. Old ones have their pickle at the start, which is checked for code.
        _refuse_code(start)
        raise ValueError("not a zip file")
    with zipfile.ZipFile(Bounded(file)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        (pickled,) = [entry for name, entry in entries.items() if name.endswith("/data.pkl")]
        if pickled.compress_type != zipfile.ZIP_STORED or pickled.file_size > _MOST_HEADER_BYTES:
            raise ValueError("a pickle that torch.save does not write")
        state = _Pickle().run(archive.read(pickled))
    folder = pickled.filename.removesuffix("data.pkl")
    if entries.get(f"{folder}byteorder") is not None and b"big" in _content(file, entries[f"{folder}byteorder"], 8):
        raise ValueError("numbers with another byte order")
    table: dict[str, StoredTensor] = {}
    for name, tensor in state.items():
        entry = entries[f"{folder}data/{tensor.storage.key}"]
        size = BYTES_OF_TYPE | OTHER_TYPES
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("compressed numbers")
        if entry.file_size < (tensor.first + math.prod(tensor.shape)) * size[tensor.storage.dtype]:
            raise ValueError("a tensor larger than its storage")
        offset = _data_offset(file, entry) + tensor.first * size[tensor.storage.dtype]
        table[name] = StoredTensor(tensor.storage.dtype, tensor.shape, offset)
    return table


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """The offset of an entry's data, after its own header, whose length is not in the directory."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError("not an entry")
    name, extra = struct.unpack("<HH", header[26:30])
    return int(entry.header_offset) + 30 + int(name) + int(extra)


def _content(file: BinaryIO, entry: zipfile.ZipInfo, most: int) -> bytes:
    file.seek(_data_offset(file, entry))
    return file.read(min(entry.file_size, most))


@dataclass(frozen=True)
class _Name:
    """A Python object that a pickle refers to by name. It is not imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    """A tensor in a storage; ``first`` is the index of its first value."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]


class _Pickle:
    """Executes the pickle operations that a table of tensors needs, with the classes above for Python objects."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> dict[str, _Tensor]:
        """The table of tensors in ``content``. Raises ValueError or a subclass for any other pickle."""
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name == "STOP":
                break
            if name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                self._name(name, argument)
            elif name in _PUSHED:
                self._stack.append(argument)
            else:
                step = _STEPS.get(name)
                if step is None:
                    raise _NoTableError
                step(self, argument)
        (state,) = self._stack
        if not isinstance(state, dict) or not all(
            isinstance(key, str) and isinstance(value, _Tensor) for key, value in state.items()
        ):
            raise _NoTableError
        return state

    def _name(self, opcode: str, argument: Any) -> None:
        if opcode == "STACK_GLOBAL":
            argument = " ".join(map(str, self._pop(2)))
        if opcode == "INST" or argument not in (_REBUILD, _TABLE, *_TORCH_TYPES):
            raise _CodeError
        self._stack.append(_Name(argument))

    def _pop(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
            raise ValueError("an empty stack")
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return values

    def _pop_to_mark(self) -> tuple[Any, ...]:
        start = self._marks.pop()
        values = tuple(self._stack[start:])
        del self._stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _put(self, number: Any) -> None:
        self._memo[len(self._memo) if number is None else number] = self._stack[-1]

    def _get(self, number: Any) -> None:
        self._stack.append(self._memo[number])

    def _storage(self, _: Any) -> None:
        (persistent_id,) = self._pop(1)
        marker, dtype, key, _device, _count = persistent_id
        if marker != "storage" or not isinstance(dtype, _Name) or not isinstance(key, str):
            raise ValueError("not a storage")
        self._stack.append(_Storage(_TORCH_TYPES[dtype.name], key))

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        if function == _Name(_TABLE) and arguments == ():
            self._stack.append({})
            return
        if function != _Name(_REBUILD):
            raise _NoTableError
        storage, first, shape, strides, *_rest = arguments
        shape = _shape(shape)
        if not isinstance(storage, _Storage) or type(first) is not int or not 0 <= first < 2**40:
            raise ValueError("not a tensor")
        # Other strides repeat values of a small storage, or skip some.
        if math.prod(shape) > 1 and any(
            side > 1 and stride != math.prod(shape[axis + 1 :])
            for axis, (side, stride) in enumerate(zip(shape, strides, strict=True))
        ):
            raise ValueError("a tensor whose values are not contiguous")
        self._stack.append(_Tensor(storage, first, shape))

    def _set_items(self, values: tuple[Any, ...]) -> None:
        table = self._stack[-1]
        if not isinstance(table, dict) or len(values) % 2 or not all(isinstance(key, str) for key in values[::2]):
            raise _NoTableError
        table.update(zip(values[::2], values[1::2], strict=True))

    def _build(self, _: Any) -> None:
        # The versions that torch records for the modules of a network.
        self._pop(1)
        if not isinstance(self._stack[-1], dict):
            raise _NoTableError


_PUSHED = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1"),
}
_STEPS = {
    "PROTO": lambda pickle, _: None,
    "FRAME": lambda pickle, _: None,
    "NONE": lambda pickle, _: pickle._stack.append(None),
    "NEWTRUE": lambda pickle, _: pickle._stack.append(True),
    "NEWFALSE": lambda pickle, _: pickle._stack.append(False),
    "EMPTY_DICT": lambda pickle, _: pickle._stack.append({}),
    "EMPTY_TUPLE": lambda pickle, _: pickle._stack.append(()),
    "MARK": _Pickle._mark,
    "TUPLE": _Pickle._tuple,
    "TUPLE1": lambda pickle, _: pickle._stack.append(pickle._pop(1)),
    "TUPLE2": lambda pickle, _: pickle._stack.append(pickle._pop(2)),
    "TUPLE3": lambda pickle, _: pickle._stack.append(pickle._pop(3)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), _Pickle._put),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), _Pickle._get),
    "BINPERSID": _Pickle._storage,
    "REDUCE": _Pickle._reduce,
    "SETITEM": lambda pickle, _: pickle._set_items(pickle._pop(2)),
    "SETITEMS": lambda pickle, _: pickle._set_items(pickle._pop_to_mark()),
    "BUILD": _Pickle._build,
}


def _refuse_code(content: bytes) -> None:
    """Raise _CodeError if ``content`` starts with a pickle that refers to Python objects."""
    try:
        for opcode, _, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                raise _CodeError
    except _CodeError:
        raise
    except (ValueError, IndexError, UnicodeDecodeError):
        return
