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
