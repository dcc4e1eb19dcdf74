"""JSON from files that may be damaged or hostile: bounded in size and depth, finite in its numbers."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 64 << 20
_MOST_DIGITS = 40


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Raises OSError where it cannot be read, and ValueError where it is no regular file, is larger than ``most_bytes``,
    or is no JSON with finite numbers.
    """
    # A named pipe would wait for a writer, a device may never end.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("no regular file")
        if about.st_size > most_bytes:
            raise ValueError(f"larger than {most_bytes / 1e6:.0f} MB")
        return parse_json(file.read(most_bytes + 1))


def parse_json(content: bytes | str) -> Any:
    """The value that ``content`` (UTF-8) states. Raises ValueError where it is no JSON with finite numbers."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is too large")
    return value


def _whole(digits: str) -> int:
    # Beyond it, turning a number into another type fails in ways that no reader expects.
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"{digits[:_MOST_DIGITS]}... is too large")
    return int(digits)
