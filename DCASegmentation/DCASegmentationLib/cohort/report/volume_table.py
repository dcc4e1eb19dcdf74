"""The volumes of all cases of a cohort as one table (CSV), a line for each case."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ...imaging.writing import write_text
from ...organs import Organ, Vocabulary
from ..case import OK
from ..ledger import Entry, Ledger

_ABOUT = ("case", "patient", "study_date", "description", "source", "status")
# What a spreadsheet takes for a formula; descriptions of series come from strangers.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_volumes(path: Path, ledger: Ledger, vocabulary: Vocabulary) -> None:
    """Writes what ``ledger`` knows of each case: who, status, ml of each organ that was looked for, organs in which the
    scan ends (their volumes are lower bounds), and what is to be said of it. Raises OutputError."""
    entries = list(ledger.entries())
    organs = organs_measured(entries, vocabulary)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_ABOUT, *(f"{organ.key}_ml" for organ in organs), "cut_off", "notes"])
    for entry in entries:
        volumes = entry.outcome.volumes_ml if entry.outcome and entry.status == OK else {}
        cut_off = entry.outcome.cut_off if entry.outcome else ()
        notes = [entry.reason, *entry.notes, *(entry.outcome.notes if entry.outcome else ())]
        about = (entry.name, entry.patient, entry.study_date, entry.description, entry.source, entry.status)
        writer.writerow(
            [
                *map(_plain, about),
                *(f"{volumes[organ.key]:.3f}" if organ.key in volumes else "" for organ in organs),
                " ".join(cut_off),
                _plain(" ".join(note for note in notes if note)),
            ]
        )
    write_text(text.getvalue().encode("utf-8", "replace").decode("utf-8"), path)


def organs_measured(entries: list[Entry], vocabulary: Vocabulary) -> list[Organ]:
    """The organs that were looked for in any case."""
    known = {key for entry in entries if entry.status == OK and entry.outcome for key in entry.outcome.volumes_ml}
    return [organ for organ in vocabulary if organ.key in known]


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
