"""Reading of JSON files that may be damaged or hostile: size and depth are bounded, and all numbers are finite."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 64 << 20
"""The largest JSON file that is read, in bytes."""
_MOST_DIGITS = 40


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Raises OSError if the file cannot be read, and ValueError if it is not a regular file, is larger than
    ``most_bytes``, or is not JSON with finite numbers.
    """
    # Opening a named pipe would block until it has a writer, and a device may never end.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most_bytes:
            raise ValueError(f"larger than {most_bytes / 1e6:.0f} MB")
        return parse_json(file.read(most_bytes + 1))


def parse_json(content: bytes | str) -> Any:
    """The value in ``content`` (text, or UTF-8 bytes). Raises ValueError if it is not JSON with finite numbers."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float, parse_int=_bounded_int)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is too large")
    return value


def _bounded_int(digits: str) -> int:
    # Converting larger numbers to other types fails with errors that callers do not expect.
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"{digits[:_MOST_DIGITS]}... is too large")
    return int(digits)
