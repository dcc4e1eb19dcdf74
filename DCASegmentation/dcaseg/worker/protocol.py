"""The protocol between the panel and the worker: one JSON object per line, version 1.

The worker is ``python -m dcaseg.worker``. It reads requests from standard input and writes events to standard output,
each as one line of ASCII (other characters as JSON escapes) that ends with a newline. Nothing else is ever written to
standard output; output of libraries goes to standard error.

Requests, each with ``version``, the number of this protocol:

    {"type": "segment", "version": 1, "id": "1", "ct": "/data/ct.nrrd", "out": "/data/result",
     "bundle": "/models/first", "device": "auto", "options": {"attention_levels": [4], "entropy": true}}
    {"type": "devices", "version": 1, "id": "2"}
    {"type": "download", "version": 1, "id": "3", "address": "https://.../model.zip#sha256=...", "models": "/models"}
    {"type": "add_corrected_case", "version": 1, "id": "4", "folder": "/data/training", "name": "ct-1a2b3c4d",
     "ct": "/tmp/ct.nrrd", "labels": "/tmp/labels.nrrd", "vocabulary": "AMOS", "reviewed": ["liver"],
     "model": "dca-abdomen", "model_sha256": "...", "findings": [{"rank": 1, "organ": "liver", "status": "corrected"}]}
    {"type": "add_unlabeled_ct", "version": 1, "id": "5", "folder": "/data/training", "ct": "/tmp/ct.nrrd"}
    {"type": "correct", "version": 1, "id": "6", "action": {"type": "undo", "session": 1, "patch": "/tmp/patch.nrrd"}}
    {"type": "cancel", "version": 1, "id": "1"}
    {"type": "quit", "version": 1}

``id`` is chosen by the caller and identifies the request in the events about it.

- ``segment``: ``ct`` is an image file or a folder of DICOM files; ``out`` is the folder to create, which must not
  exist. ``bundle`` is the folder or name of a model, null for the default one; ``options`` are fields of
  ``inference.options.SegmentOptions``, ``backend`` is one of ``inference.backends.selection.CHOICES``. ``bundle``,
  ``device``, ``options`` and ``backend`` are optional. So are two fields for CTs that the caller has not read itself:
  ``files`` lists the DICOM files of the CT if they are not all files of a folder (``ct`` is then the first of them),
  and ``ct_copy`` names a file (.nrrd) to add to the results, with the CT as it was read, on the grid of the labels.
- ``devices`` asks which devices are available.
- ``download`` downloads a model and adds it to the folder ``models``. After an interruption, the same request resumes.
- ``add_corrected_case`` and ``add_unlabeled_ct`` add a case to a training set (see ``training.corrections``).
  ``labels`` are on the grid of ``ct``.
- ``correct`` corrects labels with clicks; ``action`` is a request of ``interaction.session_requests.handle``.

Events:

    {"type": "hello", "version": 1, "pid": 4242, "library": "0.1.0"}             the first line of all
    {"type": "progress", "id": "1", "fraction": 0.4, "message": "Segmenting window 4 of 10"}
    {"type": "log", "message": "Loading the model first.", "level": "info"}
    {"type": "done", "id": "1", "folder": "/data/result", "device": "CPU, 2 threads",
     "seconds": {"reading": 0.2, "network": 9.1}, "warnings": []}
    {"type": "found_devices", "id": "2", "found": {"cpu": "8 threads"}, "missing": {"cuda": "...", "mps": "..."}}
    {"type": "downloaded", "id": "3", "folder": "/models/first"}
    {"type": "case_added", "id": "4", "name": "ct-1a2b3c4d", "cases": 12}
    {"type": "error", "id": "1", "problem": "...", "remedy": "...", "details": ""}
    {"type": "cancelled", "id": "1"}
    {"type": "corrected", "id": "6", "answer": {"patch": "/tmp/patch.nrrd", "first": [4, 5, 6], "strokes": 0}}

Each request with an ``id``, except ``cancel``, is answered by exactly one event: the one that belongs to its type
(done, found_devices, downloaded, case_added, corrected), error, or cancelled. A ``segment`` that is not answered by
done leaves no folder. A worker does one thing at a time: ``devices`` and ``correct`` wait for the current request, and
any other request during one is answered by an error while the first continues. To do two things at once, start two
workers: a worker loads PyTorch only for a request that needs it. A line that is not a request is answered by an error
with the ``id`` of the line, or null if it has none.

After ``cancelled`` the worker exits, so that its memory returns to the system; it also exits after ``quit``, at the end
of standard input and when its parent process ends, and removes unfinished results. After any other answer it waits for
the next request with the model loaded.

A cancel is answered within a few tenths of a second, except in the seconds while PyTorch loads, when no other thread of
the worker can run. A caller that cannot wait ends the worker's process group (on Windows, its process tree) and removes
unfinished results with ``remove_traces``.

Version 1 may only get changes that an older side can ignore: optional fields, which readers skip, and new requests,
which an older worker answers by an error. Any other change needs a new version number.
This file is imported by Slicer and by the worker, and uses only Python's standard library. To add a request, define it
and its answer here, list them in ``Request`` and ``Answer``, and add its handler to ``server.HANDLERS``.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .. import temp_paths
from ..json_io import DataError, load
from ..option_fields import option

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
    backend: str = option("auto", earlier=("runtime",))
    files: tuple[str, ...] = ()
    ct_copy: str | None = None


@dataclass(frozen=True)
class Devices:
    """Report the devices that are available."""

    type: ClassVar[str] = "devices"
    id: str


@dataclass(frozen=True)
class Download:
    """Download the model at ``address`` (see ``models.download.Source``) and add it to the folder ``models``."""

    type: ClassVar[str] = "download"
    id: str
    address: str
    models: str


@dataclass(frozen=True)
class AddCorrectedCase:
    """Add ``ct`` with ``labels`` (image files on one grid) to the training set ``folder``, under ``name``.

    ``reviewed`` are the keys of the organs of ``vocabulary`` that were reviewed. ``model`` and ``model_sha256`` name
    the model that was corrected. Each of ``findings`` has the rank, the organ's key and the status of a review finding.
    Each of ``clicks`` has an organ's key and the number of clicks that ``added`` to it and ``removed`` from it.
    """

    type: ClassVar[str] = "add_corrected_case"
    id: str
    folder: str
    name: str
    ct: str
    labels: str
    vocabulary: str
    reviewed: tuple[str, ...]
    model: str
    model_sha256: str
    findings: tuple[Mapping[str, Any], ...] = ()
    clicks: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class AddUnlabeledCT:
    """Add ``ct`` (an image file) to the training set ``folder``, without labels."""

    type: ClassVar[str] = "add_unlabeled_ct"
    id: str
    folder: str
    ct: str


@dataclass(frozen=True)
class Correct:
    """Correct labels with clicks: ``action`` is a request of ``interaction.session_requests.handle``."""

    type: ClassVar[str] = "correct"
    id: str
    action: Mapping[str, Any]


@dataclass(frozen=True)
class Cancel:
    """Stop the request ``id``, remove its results, and exit."""

    type: ClassVar[str] = "cancel"
    id: str


@dataclass(frozen=True)
class Quit:
    """Exit, even while a request is being carried out."""

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
    """``fraction`` (0 to 1) of the request is done; ``message`` names the current step."""

    type: ClassVar[str] = "progress"
    id: str
    fraction: float
    message: str


@dataclass(frozen=True)
class Log:
    """A line for the user's log. ``level`` is the lower-case name of a level of Python's ``logging``."""

    type: ClassVar[str] = "log"
    message: str
    level: str = "info"


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
    """The request failed: what is wrong, what to do (one line each), and ``details`` (such as a traceback)."""

    type: ClassVar[str] = "error"
    id: str | None
    problem: str
    remedy: str = ""
    details: str = ""


@dataclass(frozen=True)
class WasCancelled:
    """The request was stopped as asked for, and its results were removed."""

    type: ClassVar[str] = "cancelled"
    id: str


@dataclass(frozen=True)
class FoundDevices:
    """``found`` are the available devices, by the names for ``Segment.device``; ``missing`` says why others are not."""

    type: ClassVar[str] = "found_devices"
    id: str
    found: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Corrected:
    """``answer`` is what ``interaction.session_requests.handle`` returned for the action ``id``."""

    type: ClassVar[str] = "corrected"
    id: str
    answer: Mapping[str, Any]


@dataclass(frozen=True)
class Downloaded:
    """The model was added; it is in ``folder``."""

    type: ClassVar[str] = "downloaded"
    id: str
    folder: str


@dataclass(frozen=True)
class CaseAdded:
    """The case was added under ``name``; the training set now has this number of ``cases`` of its kind."""

    type: ClassVar[str] = "case_added"
    id: str
    name: str
    cases: int


Work = Segment | Devices | Download | AddCorrectedCase | AddUnlabeledCT | Correct
"""The requests that are carried out and answered; the others control the worker."""
Request = Work | Cancel | Quit
Answer = Done | FoundDevices | Downloaded | CaseAdded | Corrected | Failure | WasCancelled
"""The events that end a request."""
Event = Hello | Progress | Log | Answer

REQUESTS: Mapping[str, type[Request]] = {message.type: message for message in typing.get_args(Request)}
EVENTS: Mapping[str, type[Event]] = {message.type: message for message in typing.get_args(Event)}


def encode(message: Request | Event) -> bytes:
    """``message`` as one line. Raises ValueError for numbers that JSON does not support (NaN, infinity)."""
    content: dict[str, Any] = {"type": message.type}
    if isinstance(message, Request):
        content["version"] = VERSION
    return json.dumps({**content, **asdict(message)}, allow_nan=False).encode("ascii") + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in ``line``. Raises ProtocolError for anything else, including another version."""
    content = _parse_json_object(line)
    version = content.pop("version", None)
    if version != VERSION:
        problem = "states no version" if version is None else f"has version {_shorten(version)}"
        raise ProtocolError(
            f"The worker uses version {VERSION} of its protocol, but the request {problem}.", _get_id(content)
        )
    return _parse_message(content, REQUESTS)


def decode_event(line: bytes) -> Event:
    """The event in ``line``. Raises ProtocolError for anything else."""
    return _parse_message(_parse_json_object(line), EVENTS)


def remove_traces(request: Work, pid: int | None) -> None:
    """Remove what the process ``pid`` wrote for ``request`` before it could answer, but no files of other programs.

    ``pid`` is None if the process never reported its ID, and so has written nothing. The part of a download that has
    arrived stays: the next download resumes it. A training case that was complete stays.
    """
    if isinstance(request, Segment):
        temp_paths.remove_traces(Path(request.out), pid)
    elif isinstance(request, Download):
        temp_paths.remove_unfinished(Path(request.models), pid)
    elif isinstance(request, AddCorrectedCase | AddUnlabeledCT):
        # Imported here because it loads SimpleITK, which the worker does only for requests that need it.
        from ..training.corrections import CASES, UNLABELED

        folder = Path(request.folder)
        for each in (folder, folder / CASES, folder / UNLABELED):
            temp_paths.remove_unfinished(each, pid)


def _parse_json_object(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    # RecursionError: brackets nested a thousand levels deep.
    except (ValueError, RecursionError):
        raise ProtocolError(f"This is not a line of JSON: {_shorten(line.decode('utf-8', 'replace'))}") from None
    if not isinstance(content, dict):
        raise ProtocolError(f"This is not a JSON object: {_shorten(content)}")
    return content


def _parse_message(content: dict[str, Any], known: Mapping[str, type[_Message]]) -> _Message:
    name = content.get("type")
    message_type = known.get(name) if isinstance(name, str) else None
    if message_type is None:
        raise ProtocolError(
            f"There is no '{_shorten(name)}'; the known types are {', '.join(known)}.", _get_id(content)
        )
    try:
        return load(message_type, content, ignore_unknown=True)
    except DataError as error:
        raise ProtocolError(f"The '{name}' cannot be read: {error}.", _get_id(content)) from None


def _get_id(content: Mapping[str, Any]) -> str | None:
    run_id = content.get("id")
    return run_id if isinstance(run_id, str) else None


def _shorten(value: object, length: int = 80) -> str:
    text = str(value).strip()
    return text if len(text) <= length else text[: length - 3] + "..."
