"""What every case of a cohort is segmented with, and where the results go."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..inference.options import SegmentOptions

LEDGER = "cohort.sqlite"
LOCK = "lock.sqlite"
REPORT = "report.html"
CASES = "cases"
RECORD = "case.json"
THUMBNAIL = "thumbnail.jpg"


@dataclass(frozen=True)
class Settings:
    """Sent to the workers with each case.

    ``weights`` is the SHA-256 of the model's weights: all workers of a cohort use the same. ``threads`` bounds the
    cores of a worker process, 0 leaves that to the worker. ``at_once`` bounds the cases of a worker process that are
    in memory: one in the network, others being read or written. ``resample`` allows CTs with tilted or unevenly spaced
    slices.
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

    def folder_of(self, name: str) -> Path:
        """The folder of results of the case called ``name``."""
        return Path(self.out) / CASES / name

    def identity(self) -> dict[str, Any]:
        """What decides the results: all of a cohort must agree in it."""
        # Left out where it is not used: cohorts that were begun before it existed can go on.
        resampled = {"resample": True} if self.resample else {}
        return {"weights": self.weights, "extension": self.extension, **asdict(self.options), **resampled}


def prepare(out: Path) -> None:
    """Make the folder ``out`` of a new cohort, or accept that of an earlier one. Raises OutputError for any other."""
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / LOCK).is_file():
            raise OutputError(f"The folder {out} holds something else than a cohort.", "Choose another one with -o.")
        (out / CASES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise OutputError(f"{out} cannot be made: {why}.", "Choose another folder with -o.") from None
