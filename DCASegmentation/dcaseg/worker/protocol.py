"""The protocol between the panel and the worker: one JSON object per line, version 1.

The worker is ``python -m dcaseg.worker``. It reads requests from standard input and writes events to standard output,
each as one line of ASCII (other characters as JSON escapes) that ends with a newline. Nothing else is ever written to
standard output; output of libraries goes to standard error.

Requests, each with ``version``, the number of this protocol:

    {"type": "segment", "version": 1, "id": "1", "ct": "/data/ct.nrrd", "out": "/data/result",
     "bundle": "/models/first", "device": "auto", "options": {"attention_levels": [4], "entropy": true}}
    {"type": "cancel", "version": 1, "id": "1"}
    {"type": "devices", "version": 1, "id": "2"}
    {"type": "quit", "version": 1}

``id`` is chosen by the caller to identify the run. ``ct`` is an image file or a folder of DICOM files; ``out`` is the
folder to create, which must not exist. ``bundle`` is the folder or name of a model, null for the default one;
``options`` are fields of ``inference.options.SegmentOptions``, ``runtime`` is one of
``inference.backends.selection.CHOICES``. ``bundle``, ``device``, ``options`` and ``runtime`` are optional, and so are
two fields for CTs that the caller has not read itself: ``files`` lists the DICOM files of the CT if they are not all
files of a folder (``ct`` is then the first of them), and ``ct_copy`` names a file (.nrrd) to add to the results, with
the CT as it was read, on the grid of the labels. ``devices`` asks which devices are available; it is answered by
found_devices or error as soon as PyTorch is loaded and no run is in progress.

Events:

    {"type": "hello", "version": 1, "pid": 4242, "library": "0.1.0"}             the first line of all
    {"type": "progress", "id": "1", "fraction": 0.4, "message": "Segmenting window 4 of 10"}
    {"type": "log", "message": "Loading the model first."}
    {"type": "done", "id": "1", "folder": "/data/result", "device": "CPU, 2 threads",
     "seconds": {"reading": 0.2, "network": 9.1}, "warnings": []}
    {"type": "error", "id": "1", "problem": "...", "remedy": "...", "details": ""}
    {"type": "cancelled", "id": "1"}
    {"type": "found_devices", "id": "2", "found": {"cpu": "8 threads"}, "missing": {"cuda": "...", "mps": "..."}}

Each ``segment`` is answered by exactly one of done, error and cancelled; only done leaves a folder. Only one run is
possible at a time: a second ``segment`` is answered by an error, and the first continues. A line that is not a request
is answered by an error with the ``id`` of the line, or null if it has none. After ``cancelled`` the worker exits, so
that its memory returns to the system; it also exits after ``quit``, at the end of standard input and when its parent
process ends, and removes unfinished results. After any other answer it waits for the next request with the model
loaded.

A cancel is answered within a few tenths of a second, except in the seconds after the start while PyTorch loads, when no
other thread of the worker can run. A caller that cannot wait ends the worker's process group (on Windows, its process
tree) and removes unfinished results with ``temp_paths.remove_traces``.

Version 1 may only get changes that an older side can ignore: optional fields, which readers skip, and new requests,
which an older worker answers by an error. Any other change needs a new version number.
This file is imported by Slicer and by the worker, and uses only Python's standard library.
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
    """A line is not a message of this protocol. ``id`` is the run it refers to, None if it states none."""

    def __init__(self, problem: str, run_id: str | None = None) -> None:
        self.id = run_id
        super().__init__(problem)


@dataclass(frozen=True)
class Segment:
    """Segment ``ct`` and write the results into the new folder ``out``.

    ``files``, if given, are the DICOM files of the CT; ``ct_copy`` is the name of a file in ``out`` for the CT as read.
    """

    type: ClassVar[str] = "segment"
    id: str
    ct: str
    out: str
    bundle: str | None = None
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "auto"
    files: tuple[str, ...] = ()
    ct_copy: str | None = None


@dataclass(frozen=True)
class Cancel:
    """Stop the run ``id``, remove its results, and exit."""

    type: ClassVar[str] = "cancel"
    id: str


@dataclass(frozen=True)
class Devices:
    """Report the devices that are available."""

    type: ClassVar[str] = "devices"
    id: str


@dataclass(frozen=True)
class Quit:
    """Exit, even during a run."""

    type: ClassVar[str] = "quit"


@dataclass(frozen=True)
class Hello:
    """The worker has started: the version of its protocol, its process ID, and the version of the library."""

    type: ClassVar[str] = "hello"
    version: int
    pid: int
    library: str


@dataclass(frozen=True)
class Progress:
    """``fraction`` (0 to 1) of the run is done; ``message`` names the current step."""

    type: ClassVar[str] = "progress"
    id: str
    fraction: float
    message: str


@dataclass(frozen=True)
class Log:
    """A line for the user's log."""

    type: ClassVar[str] = "log"
    message: str


@dataclass(frozen=True)
class Done:
    """The results are in ``folder``. ``device`` is in words, ``seconds`` by phase; ``warnings`` are for the user."""

    type: ClassVar[str] = "done"
    id: str
    folder: str
    device: str
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """The run failed: what is wrong, what to do (one line each), and ``details`` (such as a traceback)."""

    type: ClassVar[str] = "error"
    id: str | None
    problem: str
    remedy: str = ""
    details: str = ""


@dataclass(frozen=True)
class WasCancelled:
    """The run was stopped as requested, and its results were removed."""

    type: ClassVar[str] = "cancelled"
    id: str


@dataclass(frozen=True)
class FoundDevices:
    """``found`` are the available devices, by the names for ``Segment.device``; ``missing`` says why others are not."""

    type: ClassVar[str] = "found_devices"
    id: str
    found: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)


Request = Segment | Cancel | Devices | Quit
Event = Hello | Progress | Log | Done | Failure | WasCancelled | FoundDevices

REQUESTS: Mapping[str, type[Request]] = {message.type: message for message in (Segment, Cancel, Devices, Quit)}
EVENTS: Mapping[str, type[Event]] = {
    message.type: message for message in (Hello, Progress, Log, Done, Failure, WasCancelled, FoundDevices)
}


def encode(message: Request | Event) -> bytes:
    """``message`` as one line. Raises ValueError for numbers that JSON does not support (NaN, infinity)."""
    content: dict[str, Any] = {"type": message.type}
    if isinstance(message, Request):
        content["version"] = VERSION
    return json.dumps({**content, **asdict(message)}, allow_nan=False).encode("ascii") + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in ``line``. Raises ProtocolError for anything else, including another version."""
    content = _object(line)
    version = content.pop("version", None)
    if version != VERSION:
        problem = "states no version" if version is None else f"has version {_short(version)}"
        raise ProtocolError(
            f"The worker uses version {VERSION} of its protocol, but the request {problem}.", _id(content)
        )
    return _message(content, REQUESTS)


def decode_event(line: bytes) -> Event:
    """The event in ``line``. Raises ProtocolError for anything else."""
    return _message(_object(line), EVENTS)


def _object(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    # RecursionError: brackets nested a thousand levels deep.
    except (ValueError, RecursionError):
        raise ProtocolError(f"This is not a line of JSON: {_short(line.decode('utf-8', 'replace'))}") from None
    if not isinstance(content, dict):
        raise ProtocolError(f"This is not a JSON object: {_short(content)}")
    return content


def _message(content: dict[str, Any], known: Mapping[str, type[_Message]]) -> _Message:
    name = content.get("type")
    message_type = known.get(name) if isinstance(name, str) else None
    if message_type is None:
        raise ProtocolError(f"There is no '{_short(name)}'; the known types are {', '.join(known)}.", _id(content))
    hints = typing.get_type_hints(message_type)
    values: dict[str, Any] = {}
    for entry in fields(message_type):  # type: ignore[arg-type]
        if entry.name not in content:
            if entry.default is MISSING and entry.default_factory is MISSING:
                raise ProtocolError(f"The '{name}' lacks its {entry.name}.", _id(content))
            continue
        value = content[entry.name]
        if isinstance(value, list):
            value = tuple(value)
        if not _fits(value, hints[entry.name]):
            raise ProtocolError(f"The {entry.name} of '{name}' cannot be {_short(value)}.", _id(content))
        values[entry.name] = value
    return message_type(**values)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from JSON has the type ``hint`` of a field."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if origin is not None:
        # Mapping[str, X]: JSON keys are always strings.
        return isinstance(value, dict) and all(_fits(item, typing.get_args(hint)[1]) for item in value.values())
    if isinstance(value, bool):
        return hint is Any
    return hint is Any or isinstance(value, (int, float) if hint is float else hint)


def _id(content: Mapping[str, Any]) -> str | None:
    run_id = content.get("id")
    return run_id if isinstance(run_id, str) else None


def _short(value: object, length: int = 80) -> str:
    text = str(value).strip()
    return text if len(text) <= length else text[: length - 3] + "..."
