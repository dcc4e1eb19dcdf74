"""What the panel and the worker say to each other: one JSON object a line, version 1.

The worker is ``python -m dcaseg.worker``. Requests go to its standard input, events come from its standard
output, each as one line of ASCII (other characters as JSON escapes) that ends with a newline. Nothing else is ever
written to the standard output; what libraries print goes to the standard error.

Requests, each with ``version``, the number of this protocol:

    {"type": "segment", "version": 1, "id": "1", "ct": "/data/ct.nrrd", "out": "/data/result",
     "bundle": "/models/first", "device": "auto", "options": {"attention_levels": [4], "entropy": true}}
    {"type": "cancel", "version": 1, "id": "1"}
    {"type": "devices", "version": 1, "id": "2"}
    {"type": "quit", "version": 1}

``id`` is the caller's own word for the run. ``ct`` is an image file or a folder of DICOM files; ``out`` is the folder
to make, which must not exist. ``bundle`` is the folder or name of a model, null for the default one; ``options`` are
fields of ``inference.options.SegmentOptions``, ``runtime`` is one of ``inference.backends.selection.CHOICES``.
``bundle``, ``device``, ``options`` and ``runtime`` may be left out. ``devices`` asks what there is to compute on; it
is answered once PyTorch is loaded and no run goes on, by found_devices or error.

Events:

    {"type": "hello", "version": 1, "pid": 4242, "library": "0.1.0"}             the first line of all
    {"type": "progress", "id": "1", "fraction": 0.4, "message": "Segmenting window 4 of 10"}
    {"type": "log", "message": "Loading the model first."}
    {"type": "done", "id": "1", "folder": "/data/result", "device": "CPU, 2 threads",
     "seconds": {"reading": 0.2, "network": 9.1}, "warnings": []}
    {"type": "error", "id": "1", "problem": "...", "remedy": "...", "details": ""}
    {"type": "cancelled", "id": "1"}
    {"type": "found_devices", "id": "2", "found": {"cpu": "8 threads"}, "missing": {"cuda": "...", "mps": "..."}}

Each ``segment`` is answered by exactly one of done, error and cancelled; only done leaves a folder. One run goes at a
time: a second ``segment`` meanwhile is an error, and the first goes on. A line that is no request is answered by an
error whose ``id`` is that of the line, null where it has none. After ``cancelled`` the worker ends, so that its memory
goes back to the system; it also ends after ``quit``, at the end of its standard input and when its parent ends, and
removes what a run has half written. After any other answer it waits for the next request with the model loaded.

A cancel is answered in a few tenths of a second, but for the seconds after the start in which PyTorch loads: then no
other thread of the worker gets its turn. Who cannot wait ends the process group that the worker leads (on Windows, its
process tree) and removes the remains by ``partials.remove_traces``.

Version 1 is changed only by what an older side can do without: new optional fields, which readers pass over, and new
requests, which an older worker answers by an error. Anything else needs a new number.
This file is loaded by Slicer and by the worker, and knows Python's standard library alone.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

VERSION = 1

_Message = TypeVar("_Message")


class ProtocolError(ValueError):
    """A line that is no message of this protocol. ``id`` is the run it speaks of, None where it tells none."""

    def __init__(self, problem: str, run_id: str | None = None) -> None:
        self.id = run_id
        super().__init__(problem)


@dataclass(frozen=True)
class Segment:
    """Segment ``ct`` into the new folder ``out``."""

    type: ClassVar[str] = "segment"
    id: str
    ct: str
    out: str
    bundle: str | None = None
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "auto"


@dataclass(frozen=True)
class Cancel:
    """Stop the run ``id``, leave nothing of it, and end."""

    type: ClassVar[str] = "cancel"
    id: str


@dataclass(frozen=True)
class Devices:
    """Tell what there is to compute on."""

    type: ClassVar[str] = "devices"
    id: str


@dataclass(frozen=True)
class Quit:
    """End, whatever runs."""

    type: ClassVar[str] = "quit"


@dataclass(frozen=True)
class Hello:
    """The worker is there: version of its protocol, its process, version of the library."""

    type: ClassVar[str] = "hello"
    version: int
    pid: int
    library: str


@dataclass(frozen=True)
class Progress:
    """``fraction`` (0 to 1) of the run is done; ``message`` says what is being done."""

    type: ClassVar[str] = "progress"
    id: str
    fraction: float
    message: str


@dataclass(frozen=True)
class Log:
    """A line for the log."""

    type: ClassVar[str] = "log"
    message: str


@dataclass(frozen=True)
class Done:
    """The results are in ``folder``. ``device`` in words, ``seconds`` of each phase, ``warnings`` for the user."""

    type: ClassVar[str] = "done"
    id: str
    folder: str
    device: str
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """The run gave no result: what is wrong, what to do (each one line), and ``details`` (a traceback, last lines)."""

    type: ClassVar[str] = "error"
    id: str | None
    problem: str
    remedy: str = ""
    details: str = ""


@dataclass(frozen=True)
class WasCancelled:
    """The run was stopped as asked, and nothing of it is left."""

    type: ClassVar[str] = "cancelled"
    id: str


@dataclass(frozen=True)
class FoundDevices:
    """``found``: what is there, by the names that ``Segment.device`` takes; ``missing``: why the others are not."""

    type: ClassVar[str] = "found_devices"
    id: str
    found: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)


Request = Segment | Cancel | Devices | Quit
Event = Hello | Progress | Log | Done | Failure | WasCancelled | FoundDevices

REQUESTS: Mapping[str, type[Request]] = {kind.type: kind for kind in (Segment, Cancel, Devices, Quit)}
EVENTS: Mapping[str, type[Event]] = {
    kind.type: kind for kind in (Hello, Progress, Log, Done, Failure, WasCancelled, FoundDevices)
}


def encode(message: Request | Event) -> bytes:
    """``message`` as one line. Raises ValueError for numbers that JSON lacks (NaN, infinity)."""
    content: dict[str, Any] = {"type": message.type}
    if isinstance(message, Request):
        content["version"] = VERSION
    return json.dumps({**content, **asdict(message)}, allow_nan=False).encode("ascii") + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in ``line``. Raises ProtocolError for anything else, another version included."""
    content = _object(line)
    version = content.pop("version", None)
    if version != VERSION:
        said = "names no version" if version is None else f"is of version {_short(version)}"
        raise ProtocolError(f"The worker speaks version {VERSION} of its protocol; the request {said}.", _id(content))
    return _message(content, REQUESTS)


def decode_event(line: bytes) -> Event:
    """The event in ``line``. Raises ProtocolError for anything else."""
    return _message(_object(line), EVENTS)


def _object(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    # RecursionError: brackets nested a thousand deep.
    except (ValueError, RecursionError):
        raise ProtocolError(f"This is no line of JSON: {_short(line.decode('utf-8', 'replace'))}") from None
    if not isinstance(content, dict):
        raise ProtocolError(f"This is no JSON object: {_short(content)}")
    return content


def _message(content: dict[str, Any], kinds: Mapping[str, type[_Message]]) -> _Message:
    name = content.get("type")
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"There is no '{_short(name)}'; there are {', '.join(kinds)}.", _id(content))
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name not in content:
            if each.default is MISSING and each.default_factory is MISSING:
                raise ProtocolError(f"The '{name}' lacks its {each.name}.", _id(content))
            continue
        value = content[each.name]
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hints[each.name]):
            raise ProtocolError(f"The {each.name} of '{name}' cannot be {_short(value)}.", _id(content))
        values[each.name] = value
    return kind(**values)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value read from JSON is of the type of a field."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, typing.get_args(hint)[0]) for each in value)
    if origin is not None:
        # Mapping[str, X]: JSON's keys are always strings.
        return isinstance(value, dict) and all(_fits(each, typing.get_args(hint)[1]) for each in value.values())
    if isinstance(value, bool):
        return hint is Any
    return hint is Any or isinstance(value, (int, float) if hint is float else hint)


def _id(content: Mapping[str, Any]) -> str | None:
    found = content.get("id")
    return found if isinstance(found, str) else None


def _short(value: object, length: int = 80) -> str:
    text = str(value).strip()
    return text if len(text) <= length else text[: length - 3] + "..."
