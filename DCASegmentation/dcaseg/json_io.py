"""Reading of JSON that may be damaged or hostile, and conversion to and from dataclasses.

Size and depth of files are bounded, and all numbers are finite. ``load`` checks types, limits and keys against the
fields of a dataclass (see ``option_fields``) and names the key of the first value that is wrong.
"""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin

from .option_fields import Option, get_option, resolve_type_hints

MAX_BYTES = 64 << 20
"""The largest JSON file that is read, in bytes."""
_MAX_DIGITS = 40
# No length, volume or time is larger; converting larger numbers to other types fails with unexpected errors.
_MAX_FLOAT = 1e15
_MAX_VALUE_LENGTH = 60  # characters of a wrong value in an error

_T = TypeVar("_T")


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file.

    Raises OSError if the file cannot be read, and ValueError if it is not a regular file, is larger than
    ``max_bytes``, or is not JSON with finite numbers.
    """
    # Opening a named pipe would block until it has a writer, and a device may never end.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > max_bytes:
            raise ValueError(f"larger than {max_bytes / 1e6:.0f} MB")
        return parse_json(file.read(max_bytes + 1))


def parse_json(content: bytes | str) -> Any:
    """The value in ``content`` (text, or UTF-8 bytes). Raises ValueError if it is not JSON with finite numbers."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_parse_finite_float, parse_int=_parse_bounded_int
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _parse_finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is too large")
    return value


def _parse_bounded_int(digits: str) -> int:
    # Converting larger numbers to other types fails with errors that callers do not expect.
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"{digits[:_MAX_DIGITS]}... is too large")
    return int(digits)


class DataError(ValueError):
    """JSON data is not what was expected.

    ``key`` is the place of the value, such as ``findings[2].rank``, empty for the whole content; ``problem`` continues
    a sentence that begins with it. ``is_missing``: the key does not exist.
    """

    def __init__(self, key: str, problem: str, is_missing: bool = False) -> None:
        self.key = key
        self.problem = problem
        self.is_missing = is_missing
        super().__init__(f"{key or 'the content'} {problem}")


def load(kind: type[_T], content: object, where: str = "", ignore_unknown: bool = False) -> _T:
    """Convert ``content`` from JSON to the dataclass ``kind``.

    Fields may be dataclasses (those with a ``from_json`` use it), numbers, texts, booleans, tuples, sets, mappings,
    ``Literal`` and optional types. A whole number is also a float. ``where`` is the place of ``content`` in its file.
    ``ignore_unknown`` accepts keys that are not fields, in all parts.

    Raises DataError for a missing or unknown key, a value of another type, or a number outside its limits.
    """
    return cast(_T, _load_dataclass(kind, content, where, ignore_unknown))


def dump(values: Any) -> dict[str, Any]:
    """Convert a dataclass to plain data for JSON, with the keys that ``load`` reads.

    Tuples stay tuples; sets become sorted lists.
    """
    return {get_option(item).key or item.name: _to_plain(getattr(values, item.name)) for item in fields(values)}


def _to_plain(value: Any) -> Any:
    if is_dataclass(value):
        return dump(value)
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return type(value)(map(_to_plain, value)) if isinstance(value, list | tuple) else value


def check(values: Any) -> None:
    """Raise DataError if a field of the dataclass ``values`` has another type than it states or is outside its limits.

    Fields that are dataclasses themselves are not supported.
    """
    kind: type = type(values)
    hints = resolve_type_hints(kind)
    for item in fields(values):
        _convert(hints[item.name], getattr(values, item.name), item.name, get_option(item), False)


def _load_dataclass(kind: Any, content: object, where: str, ignore_unknown: bool) -> Any:
    if not isinstance(content, Mapping):
        raise DataError(where, f"is {_format_value(content)}, not an object")
    hints = resolve_type_hints(kind)
    values: dict[str, Any] = {}
    known: set[str] = set()
    for item in fields(kind):
        described = get_option(item)
        keys = (described.key or item.name, *described.earlier)
        known.update(keys)
        found = next((key for key in keys if key in content), None)
        if found is not None:
            place = f"{where}.{found}" if where else found
            values[item.name] = _convert(hints[item.name], content[found], place, described, ignore_unknown)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise DataError(f"{where}.{keys[0]}" if where else keys[0], "is missing", is_missing=True)
    unknown = [str(key)[:_MAX_VALUE_LENGTH] for key in content if key not in known]
    if unknown and not ignore_unknown:
        raise DataError(f"{where}.{unknown[0]}" if where else unknown[0], "is unknown")
    try:
        return kind(**values)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(where, f"cannot be used: {error}") from None


def _convert(hint: Any, value: object, where: str, limits: Option, ignore_unknown: bool) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        if not hasattr(hint, "from_json"):
            return _load_dataclass(hint, value, where, ignore_unknown)
        try:
            return hint.from_json(value)  # type: ignore[union-attr]
        except DataError as error:
            raise DataError(f"{where}.{error.key}" if error.key else where, error.problem, error.is_missing) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(where, f"is {error}") from None
    if origin in (types.UnionType, Union):
        if value is None and type(None) in inner:
            return None
        (other,) = (each for each in inner if each is not type(None))
        return _convert(other, value, where, limits, ignore_unknown)
    if origin is Literal:
        # Not "in": True equals 1.
        if not any(value == choice and type(value) is type(choice) for choice in inner):
            raise DataError(where, f"is {_format_value(value)}, not one of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        return _convert_tuple(inner, value, where, limits, ignore_unknown)
    if origin in (set, frozenset):
        return origin(_convert_tuple((*inner, ...), value, where, limits, ignore_unknown))
    if origin is not None:
        if not isinstance(value, Mapping):
            raise DataError(where, f"is {_format_value(value)}, not an object")
        key_kind, item_kind = inner
        return {
            _convert_key(key_kind, key, where): _convert(item_kind, item, f"{where}.{key}", limits, ignore_unknown)
            for key, item in value.items()
        }
    return _convert_scalar(hint, value, where, limits)


def _convert_tuple(
    inner: tuple[Any, ...], value: object, where: str, limits: Option, ignore_unknown: bool
) -> tuple[Any, ...]:
    is_open = inner[-1] is Ellipsis
    if isinstance(value, set | frozenset):  # from Python; JSON has none
        value = tuple(value)
    if not isinstance(value, list | tuple) or (not is_open and len(value) != len(inner)):
        kinds = {float: "numbers", int: "whole numbers"}
        expected = "a list" if is_open else f"{len(inner)} {kinds.get(inner[0], 'values')}"
        raise DataError(where, f"is {_format_value(value)}, not {expected}")
    item_kinds = inner[:1] * len(value) if is_open else inner
    return tuple(
        _convert(kind, item, f"{where}[{index}]", limits, ignore_unknown)
        for index, (kind, item) in enumerate(zip(item_kinds, value, strict=True))
    )


def _convert_key(kind: Any, key: str, where: str) -> Any:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise DataError(where, f"has the key {_format_value(key)}, which is not a whole number") from None


_KINDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def _convert_scalar(kind: Any, value: object, where: str, limits: Option) -> Any:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is float and is_number:
        # A field with an infinite limit may be infinite; JSON has no infinity, but checkpoints have.
        if not abs(float(cast(float, value))) <= max(_MAX_FLOAT, limits.maximum or 0.0):
            raise DataError(where, f"is {_format_value(value)}, not a finite number of possible size")
    elif not isinstance(value, Integral if kind is int else kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(where, f"is {_format_value(value)}, not {_KINDS[kind]}")
    if is_number and not limits.allows(cast(float, value)):
        raise DataError(where, f"is {_format_value(value)}, not a number {limits.limits}")
    return float(cast(float, value)) if kind is float else value


def _format_value(value: object) -> str:
    """A wrong value in an error: short, and in one line. A list or object may be too large to show."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    text = repr(value) if isinstance(value, str | bool) or value is None else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 3]}..."
