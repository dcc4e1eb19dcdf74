"""A case of a cohort, its outcome, the settings shared by all cases, and the layout of the cohort folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OutputError, get_reason
from ..inference.options import SegmentOptions
from ..json_io import DataError, load

OK, SKIPPED, FAILED, PENDING = "ok", "skipped", "failed", "pending"

_MAX_NAME_LENGTH = 40


@dataclass(frozen=True)
class Case:
    """A CT to segment.

    ``key`` identifies the case across runs; ``fingerprint`` changes when its files change. ``name`` is the name of its
    result folder. ``files`` holds the ordered slices of a ``dicom`` series, or one image file.
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
    """An input that did not become a case: ``skipped`` if it is of the wrong kind, ``failed`` if it is unusable."""

    key: str
    source: str
    status: str
    reason: str
    patient: str = ""
    study_date: str = ""
    description: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of processing a case.

    ``again`` makes the next run retry the case, because the cause lay outside it (disk full, worker killed).
    ``volumes_ml`` maps organ keys to ml, ``seconds`` maps phases to seconds. ``concern`` ranks the cases to check (ml
    expected to be wrong; None without a review), and ``concerns`` gives the reasons. ``loads`` counts how often the
    worker process has loaded the model; ``peak_mb`` is the peak memory of that process so far (1e6 bytes). ``cut_off``
    holds the keys of organs that the edge of the scan cuts off.
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
        """Read an outcome that ``dataclasses.asdict`` wrote. Raises ValueError for anything else."""
        try:
            outcome = load(cls, content)
        except DataError as error:
            raise ValueError(f"invalid outcome: {error}") from None
        if outcome.status not in (OK, SKIPPED, FAILED):
            raise ValueError(f"invalid outcome: the status is '{outcome.status[:40]}'")
        return outcome


def compute_digest(parts: Iterable[str]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of ``parts``, which may contain any characters."""
    content = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(content).hexdigest()[:16]


def replace_undecodable_bytes(text: str) -> str:
    """``text`` as valid Unicode: undecodable bytes of file names become replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def make_folder_name(text: str, key: str) -> str:
    """A folder name that is valid and short on every file system: letters, digits and the start of ``key``."""
    plain = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text).strip("._")
    return f"{plain[:_MAX_NAME_LENGTH] or 'case'}-{key[:8]}"


LEDGER = "cohort.sqlite"
LOCK = "lock.sqlite"
REPORT = "report.html"
VOLUMES = "volumes.csv"
CASES = "cases"
RECORD = "case.json"
THUMBNAIL = "thumbnail.jpg"
PICTURE = "picture.jpg"
CASE_MINUTES = 120.0
"""The default time limit of a case, many times that of the largest CT on a slow computer."""


@dataclass(frozen=True)
class Settings:
    """Settings that a worker receives with each case.

    ``weights`` is the SHA-256 of the model's weights, which must be the same on all workers. ``threads`` limits the
    cores of a worker process; 0 leaves the choice to the worker. ``max_parallel`` limits how many cases a worker
    process holds in memory: one in the network, the others being read or written. ``resample`` accepts CTs with tilted
    or unevenly spaced slices. Only the owner can read the folders unless ``shared`` is set. ``pseudonyms`` is the ID
    of the pseudonym key; if it is empty, results name the patients. A case that takes longer than ``case_minutes``
    fails.
    """

    out: str
    bundle: str
    weights: str
    options: SegmentOptions
    device: str = "auto"
    extension: str = ".nrrd"
    threads: int = 0
    max_parallel: int = 2
    backend: str = "auto"
    resample: bool = False
    shared: bool = False
    pseudonyms: str = ""
    case_minutes: float = CASE_MINUTES

    def get_case_folder(self, name: str) -> Path:
        """The result folder of the case ``name``."""
        return Path(self.out) / CASES / name

    def get_identity(self) -> dict[str, Any]:
        """The settings that affect results. They must be the same for all runs of a cohort."""
        identity: dict[str, Any] = {"weights": self.weights, "extension": self.extension, **asdict(self.options)}
        # Omitted if unused, so that cohorts started before these settings existed can be resumed.
        if self.resample:
            identity["resample"] = True
        if self.pseudonyms:
            identity["pseudonyms"] = self.pseudonyms
        return identity


def prepare(out: Path, shared: bool = False) -> None:
    """Create the cohort folder ``out``, or accept an existing cohort folder.

    Folder names may identify patients, so only the owner can list them unless ``shared`` is set. Raises OutputError if
    ``out`` contains anything else or cannot be created.
    """
    mode = 0o777 if shared else 0o700
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / LOCK).is_file():
            raise OutputError(f"The folder {out} is not empty and is not a cohort.", "Choose another one with -o.")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.mkdir(mode=mode, exist_ok=True)
        (out / CASES).mkdir(mode=mode, exist_ok=True)
        if not shared:
            (out / CASES).chmod(0o700)
    except OSError as error:
        why = get_reason(error)
        raise OutputError(f"The folder {out} cannot be created: {why}.", "Choose another one with -o.") from None
