"""One CT of a cohort, its outcome, and the settings all are segmented with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..inference.options import SegmentOptions

OK, SKIPPED, FAILED, PENDING = "ok", "skipped", "failed", "pending"

_LONGEST_NAME = 40


@dataclass(frozen=True)
class Case:
    """A CT to segment.

    ``key`` knows it again in a later run, ``fingerprint`` tells whether its files are still the same; ``name`` is that
    of its folder of results. ``files`` are the slices of a ``dicom`` series in their order, or one image file.
    """

    key: str
    name: str
    source: str
    files: tuple[str, ...]
    dicom: bool
    fingerprint: str
    patient: str = ""
    study_date: str = ""
    description: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """Something in the input that is no case: ``skipped`` as it is not meant, ``failed`` as it cannot be used."""

    key: str
    source: str
    status: str
    reason: str
    patient: str = ""
    study_date: str = ""
    description: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    ``again`` says that the next run shall try it anew, as the fault was not the case's (disk full, worker killed).
    ``volumes_ml`` maps organ keys to ml; ``seconds`` phases to seconds. ``concern`` orders cases to check first, with
    its ``concerns`` in words; None without a review. ``loads`` counts how often its worker process had loaded the
    model, ``peak_mb`` is that process's highest memory so far. ``cut_off`` are the keys of the organs in which the scan
    ends.
    """

    key: str
    status: str
    reason: str = ""
    again: bool = False
    notes: tuple[str, ...] = ()
    volumes_ml: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    concern: float | None = None
    concerns: tuple[str, ...] = ()
    worker: str = ""
    loads: int = 0
    peak_mb: float = 0.0
    cut_off: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, content: Any) -> Outcome:
        """The outcome that ``dataclasses.asdict`` has made plain. Raises ValueError for anything else."""
        try:
            lists = {name: tuple(content[name]) for name in ("notes", "concerns")}
            # Cohorts of earlier versions did not note it.
            outcome = cls(**{**content, **lists, "cut_off": tuple(content.get("cut_off", ()))})
            numbers = [outcome.peak_mb, *outcome.volumes_ml.values(), *outcome.seconds.values(), outcome.concern or 0.0]
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no outcome: {error}") from None
        names = (outcome.key, outcome.status, outcome.reason, outcome.worker)
        texts = [*names, *outcome.notes, *outcome.concerns, *outcome.cut_off]
        if not all(isinstance(text, str) for text in texts) or outcome.status not in (OK, SKIPPED, FAILED):
            raise ValueError("no outcome: no text where text should be")
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("no outcome: no number where a number should be")
        return outcome


def digest(parts: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that stand for ``parts``, whatever their characters."""
    content = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(content).hexdigest()[:16]


def readable(text: str) -> str:
    """``text`` as ledger and report can hold it, even where it names files whose names are no text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def folder_name(text: str, key: str) -> str:
    """A name for a folder, short on every file system: letters and digits of any script, and the start of ``key``."""
    plain = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text).strip("._")
    return f"{plain[:_LONGEST_NAME] or 'case'}-{key[:8]}"


LEDGER = "cohort.sqlite"
LOCK = "lock.sqlite"
REPORT = "report.html"
VOLUMES = "volumes.csv"
CASES = "cases"
RECORD = "case.json"
THUMBNAIL = "thumbnail.jpg"
PICTURE = "picture.jpg"


@dataclass(frozen=True)
class Settings:
    """Sent to the workers with each case.

    ``weights`` is the SHA-256 of the model's weights: all workers of a cohort use the same. ``threads`` bounds the
    cores of a worker process, 0 leaves that to the worker. ``at_once`` bounds the cases of a worker process that are
    in memory: one in the network, others being read or written. ``resample`` allows CTs with tilted or unevenly spaced
    slices. Folders can be read by their owner alone, unless they are ``shared``. ``pseudonyms`` names the key of the
    pseudonyms that stand for patients; empty, patients are named.
    """

    out: str
    bundle: str
    weights: str
    options: SegmentOptions
    device: str = "auto"
    extension: str = ".nrrd"
    threads: int = 0
    at_once: int = 2
    runtime: str = "auto"
    resample: bool = False
    shared: bool = False
    pseudonyms: str = ""

    def folder_of(self, name: str) -> Path:
        """The folder of results of the case called ``name``."""
        return Path(self.out) / CASES / name

    def identity(self) -> dict[str, Any]:
        """What decides the results: all of a cohort must agree in it."""
        identity: dict[str, Any] = {"weights": self.weights, "extension": self.extension, **asdict(self.options)}
        # Left out where they are not used: cohorts that were begun before they existed can go on.
        if self.resample:
            identity["resample"] = True
        if self.pseudonyms:
            identity["pseudonyms"] = self.pseudonyms
        return identity


def prepare(out: Path, shared: bool = False) -> None:
    """Make the folder ``out`` of a new cohort, or accept that of an earlier one. Raises OutputError for any other.

    Names of folders may tell who patients are: unless ``shared``, none but the owner can list them.
    """
    mode = 0o777 if shared else 0o700
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / LOCK).is_file():
            raise OutputError(f"The folder {out} holds something else than a cohort.", "Choose another one with -o.")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.mkdir(mode=mode, exist_ok=True)
        (out / CASES).mkdir(mode=mode, exist_ok=True)
        if not shared:
            (out / CASES).chmod(0o700)
    except OSError as error:
        why = error.strerror or error
        raise OutputError(f"{out} cannot be made: {why}.", "Choose another folder with -o.") from None
