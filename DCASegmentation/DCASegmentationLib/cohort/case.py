"""One CT of a cohort, what became of it, and what in the input is none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

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
