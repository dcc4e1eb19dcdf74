"""From the ledger to the report."""

from __future__ import annotations

import base64
import re
import statistics
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from ...imaging.writing import write_text
from ...organs import CUT_OFF, Vocabulary
from ..case import FAILED, OK, PENDING, SKIPPED
from ..check_first import Concern, concerns
from ..ledger import ENDED_EARLY, Entry, Ledger
from ..settings import CASES, PICTURE, THUMBNAIL, VOLUMES
from .style import STYLE
from .template import PAGE, SORTING
from .volume_chart import explanation, volume_chart
from .volume_table import organs_measured

_MOST_CARDS = 24
_MOST_REASONS = 4
_MOST_IN_A_GROUP = 10
# Beyond, the file would be too large for a browser: the pictures lie in the cases' folders too.
_MOST_PICTURES = 500
_NUMBER = re.compile(r"\d[\d.,]*")
_BY_REVIEW = "In the order of the volume that the review expects to be wrong."
_BY_VOLUME = "In the order of how far organ volumes lie outside of what is usual in adults."


@dataclass(frozen=True)
class Row:
    """A case as a line of a table shows it; ``rank`` among those to check. ``link`` leads to its folder and ``large``
    to its larger picture, from the report's own folder."""

    name: str
    source: str
    status: str
    slices: str
    seconds: str
    rank: str
    notes: str
    folder: str
    picture: str
    link: str = ""
    large: str = ""
    cut_off: str = ""


@dataclass(frozen=True)
class Group:
    """So many cases with one ``reason``: (name, source) of the first, and how many ``more`` there are.

    ``alike`` says that their reasons are not quite the same: this is the first one's.
    """

    reason: str
    count: int
    first: tuple[tuple[str, str], ...]
    more: int
    alike: bool


@dataclass(frozen=True)
class Card:
    """A case to check first."""

    rank: int
    name: str
    source: str
    picture: str
    reasons: tuple[str, ...]
    more: int
    link: str = ""
    large: str = ""


def write_report(path: Path, ledger: Ledger, vocabulary: Vocabulary, cases: Path) -> None:
    """Writes the report of all that ``ledger`` holds to ``path``; pictures are read from the folders in ``cases``.

    Raises OutputError where it cannot be written.
    """
    entries = list(ledger.entries())
    first = concerns(entries, vocabulary)
    done = [entry for entry in entries if entry.status == OK]
    pictured = {entry.key for entry in done[:_MOST_PICTURES]}
    counts = {status: sum(entry.status == status for entry in entries) for status in (OK, SKIPPED, FAILED, PENDING)}
    measured = organs_measured(entries, vocabulary)
    volumes = [(_name(entry), entry.outcome.volumes_ml) for entry in done if entry.outcome]
    seconds = [entry.outcome.seconds["total"] for entry in done if entry.outcome and "total" in entry.outcome.seconds]
    ranks = {one.entry.key: str(rank) for rank, one in enumerate(first, start=1)}
    rows = [_row(entry, ranks.get(entry.key, ""), cases, entry.key in pictured, vocabulary) for entry in entries]
    page = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    text = page.render(
        title=f"Cohort of {len(done)} CT{'s' if len(done) != 1 else ''}",
        style=STYLE,
        source=ledger.about("source"),
        model=ledger.about("model"),
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        strays=int(ledger.about("strays") or 0),
        tiles=[(status, count) for status, count in counts.items() if count or status != PENDING],
        seconds=f"{statistics.median(seconds):.1f}" if seconds else "",
        first=[_card(rank, one, cases) for rank, one in enumerate(first[:_MOST_CARDS], start=1)],
        first_left=max(len(first) - _MOST_CARDS, 0),
        order=_BY_REVIEW if first and first[0].reviewed else _BY_VOLUME,
        ended_early=ledger.about(ENDED_EARLY),
        failures=_by_reason([entry for entry in entries if entry.status == FAILED]),
        skipped=_by_reason([entry for entry in entries if entry.status == SKIPPED]),
        chart=volume_chart(volumes, measured) if volumes else "",
        chart_says=explanation(len(volumes)),
        rows=rows,
        volumes=VOLUMES,
        script=SORTING,
    )
    write_text(text.encode("utf-8", "replace").decode("utf-8"), path)


def _name(entry: Entry) -> str:
    told = " · ".join(filter(None, (entry.patient, _date(entry.study_date), entry.description)))
    return told or Path(entry.source).name


def _date(dicom: str) -> str:
    return f"{dicom[:4]}-{dicom[4:6]}-{dicom[6:8]}" if len(dicom) == 8 and dicom.isdecimal() else dicom


def _row(entry: Entry, rank: str, cases: Path, with_picture: bool, vocabulary: Vocabulary) -> Row:
    outcome = entry.outcome
    total = outcome.seconds.get("total") if outcome else None
    notes = [entry.reason, *entry.notes, *(outcome.notes if outcome else ())]
    return Row(
        name=_name(entry),
        source=entry.source,
        status=entry.status,
        slices=str(entry.slices) if entry.slices > 1 else "",
        seconds="" if total is None else f"{total:.1f}",
        rank=rank,
        notes=". ".join(note.rstrip(".") for note in notes if note),
        folder=entry.name if entry.status == OK else "",
        picture=_picture(entry, cases) if with_picture else "",
        link=_link(entry),
        large=_large(entry, cases),
        cut_off=_cut_off(entry, vocabulary),
    )


def _by_reason(entries: list[Entry]) -> list[Group]:
    """Entries whose reasons differ in names and numbers only together, the largest groups first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(_wording(entry), []).append(entry)
    groups = [
        Group(
            alike[0].reason,
            len(alike),
            tuple((_name(entry), entry.source) for entry in alike[:_MOST_IN_A_GROUP]),
            max(len(alike) - _MOST_IN_A_GROUP, 0),
            len({entry.reason for entry in alike}) > 1,
        )
        for alike in found.values()
    ]
    return sorted(groups, key=lambda group: -group.count)


def _wording(entry: Entry) -> str:
    """The reason without the entry's own names, and without numbers."""
    text = entry.reason
    for name in filter(None, (Path(entry.source).name, entry.description)):
        text = text.replace(name, "#")
    return _NUMBER.sub("#", text)


def _card(rank: int, concern: Concern, cases: Path) -> Card:
    entry = concern.entry
    shown = concern.reasons[:_MOST_REASONS]
    more = len(concern.reasons) - len(shown)
    picture, link, large = _picture(entry, cases), _link(entry), _large(entry, cases)
    return Card(rank, _name(entry), entry.source, picture, shown, more, link, large)


def _link(entry: Entry) -> str:
    """The folder of a case with results, as a link in the report."""
    return f"{CASES}/{quote(entry.name)}/" if entry.status == OK and entry.name else ""


def _large(entry: Entry, cases: Path) -> str:
    link = _link(entry)
    return f"{link}{PICTURE}" if link and (cases / entry.name / PICTURE).is_file() else ""


def _cut_off(entry: Entry, vocabulary: Vocabulary) -> str:
    if entry.outcome is None or not entry.outcome.cut_off:
        return ""
    names = ", ".join(organ.name for organ in vocabulary if organ.key in entry.outcome.cut_off)
    return f"{names}: {CUT_OFF}"


def _picture(entry: Entry, cases: Path) -> str:
    try:
        content = (cases / entry.name / THUMBNAIL).read_bytes()
    except OSError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
