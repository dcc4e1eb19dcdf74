"""Writes the report of a ledger, a single HTML file without external links, and the table of volumes, a CSV file."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import statistics
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from unicodedata import category
from urllib.parse import quote

from jinja2 import Environment

from ..imaging.writers import write_text
from ..organs import CUT_OFF, Organ, Vocabulary
from .case import CASES, FAILED, OK, PENDING, PICTURE, SKIPPED, THUMBNAIL, VOLUMES
from .ledger import ENDED_EARLY, Entry, Ledger
from .report_template import PAGE, SORTING, STYLE
from .volume_chart import draw_volume_chart, format_chart_caption

# A missing organ counts like one with a tenth of its smallest usual volume.
_MISSING = math.log(10.0)


@dataclass(frozen=True)
class FlaggedCase:
    """A case to check. Higher scores come first; ``reviewed`` is True if the score comes from the review."""

    entry: Entry
    score: float
    reasons: tuple[str, ...]
    reviewed: bool


def rank_concerns(entries: list[Entry], vocabulary: Vocabulary) -> list[FlaggedCase]:
    """Segmented cases that need checking, the most urgent first.

    Cases with a review come first, sorted by the volume expected to be wrong (ml). The others are sorted by how far
    their organ volumes are outside the usual ranges, as a sum of absolute log ratios.
    """
    found = [_make_concern(entry, vocabulary) for entry in entries if entry.status == OK and entry.outcome is not None]
    with_reasons = (concern for concern in found if concern.reasons)
    return sorted(with_reasons, key=lambda concern: (not concern.reviewed, -concern.score))


def compute_distance_from_range(ml: float, organ: Organ) -> float:
    """Natural log of the ratio of a volume to the nearest end of the usual range: negative below, 0 inside."""
    low, high = organ.volume_ml
    if ml <= 0 or organ.is_stray(ml):
        return -_MISSING
    if ml < low:
        return max(math.log(ml / low), -_MISSING)
    return math.log(ml / high) if ml > high else 0.0


def _make_concern(entry: Entry, vocabulary: Vocabulary) -> FlaggedCase:
    assert entry.outcome is not None
    volumes = entry.outcome.volumes_ml
    off = {
        organ: compute_distance_from_range(volumes[organ.key], organ) for organ in vocabulary if organ.key in volumes
    }
    for organ in off:
        # The volume in the scan is a lower bound, so it cannot be too small.
        if organ.key in entry.outcome.cut_off:
            off[organ] = max(off[organ], 0.0)
    worst = sorted((organ for organ in off if off[organ]), key=lambda organ: -abs(off[organ]))
    reasons = tuple(_describe(organ, volumes[organ.key]) for organ in worst)
    if entry.outcome.concern is not None:
        return FlaggedCase(entry, entry.outcome.concern, entry.outcome.concerns + reasons, True)
    return FlaggedCase(entry, sum(map(abs, off.values())), reasons, False)


def _format_volume(ml: float) -> str:
    """``ml`` with three significant digits and without an exponent."""
    return f"{ml:.3g}" if ml < 1000 else f"{round(ml, 2 - math.floor(math.log10(ml))):.0f}"


def _describe(organ: Organ, ml: float) -> str:
    if ml <= 0 or organ.is_stray(ml):
        return f"{organ.name} not found"
    low, high = organ.volume_ml
    side = "below" if ml < low else "above"
    return f"{organ.name} {_format_volume(ml)} ml, {side} the usual range of {low:g} to {high:g} ml"


_ABOUT = ("case", "patient", "study_date", "description", "source", "status")
# Spreadsheets read text that starts with these as a formula, and series descriptions come from untrusted files.
_FORMULA = ("=", "+", "-", "@")


def write_volumes(path: Path, ledger: Ledger, vocabulary: Vocabulary) -> None:
    """Write a row for each entry of ``ledger``: patient, status, organ volumes (ml), cut-off organs and notes.

    There is a column for each organ that was segmented in any case. The volume of a cut-off organ is a lower bound.
    Raises OutputError if ``path`` cannot be written.
    """
    entries = list(ledger.iter_entries())
    organs = find_measured_organs(entries, vocabulary)
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
                *map(_sanitize_text, about),
                *(f"{volumes[organ.key]:.3f}" if organ.key in volumes else "" for organ in organs),
                " ".join(cut_off),
                _sanitize_text(" ".join(note for note in notes if note)),
            ]
        )
    write_text(text.getvalue().encode("utf-8", "replace").decode("utf-8"), path)


def find_measured_organs(entries: list[Entry], vocabulary: Vocabulary) -> list[Organ]:
    """The organs that were segmented in any case, present or not."""
    known = {key for entry in entries if entry.status == OK and entry.outcome for key in entry.outcome.volumes_ml}
    return [organ for organ in vocabulary if organ.key in known]


def _sanitize_text(text: str) -> str:
    """``text`` without formulas, and without control characters that a terminal would execute."""
    text = "".join(
        char if char.isprintable() or category(char) == "Zs" else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
    return f"'{text}" if text.startswith(_FORMULA) else text


# Columns of the table of all cases after the picture, and their kind.
_HEADINGS = (
    *(("Case", ""), ("Status", ""), ("Slices", "number"), ("Seconds", "number")),
    *(("Check rank", "number"), ("Cut off", ""), ("Notes", "")),
)
_MAX_CARDS = 24
_MAX_REASONS = 4
_MAX_IN_A_GROUP = 10
# More would make the file too large for a browser. The case folders contain all pictures.
_MAX_PICTURES = 500
_NUMBER = re.compile(r"\d[\d.,]*")
_BY_REVIEW = "Sorted by the volume that the review expects to be wrong."
_BY_VOLUME = "Sorted by how far organ volumes are outside the usual range for adults."


@dataclass(frozen=True)
class Row:
    """A row of the table of all cases. ``rank`` is the rank among the cases to check.

    ``link`` is the path of the case folder, ``large`` that of its large picture, both relative to the report.
    """

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
    """The ``count`` cases with one ``reason``: (name, source) of the first ones, and how many ``more`` there are.

    ``alike`` is True if the reasons differ in names or numbers; ``reason`` is then the first one.
    """

    reason: str
    count: int
    first: tuple[tuple[str, str], ...]
    more: int
    alike: bool


@dataclass(frozen=True)
class Card:
    """A case under "Check first"."""

    rank: int
    name: str
    source: str
    picture: str
    reasons: tuple[str, ...]
    more: int
    link: str = ""
    large: str = ""


def write_report(path: Path, ledger: Ledger, vocabulary: Vocabulary, cases: Path) -> None:
    """Write the report of ``ledger`` to ``path``, with pictures from the folders in ``cases``.

    Raises OutputError if it cannot be written.
    """
    entries = list(ledger.iter_entries())
    to_check = rank_concerns(entries, vocabulary)
    done = [entry for entry in entries if entry.status == OK]
    pictured = {entry.key for entry in done[:_MAX_PICTURES]}
    counts = {status: sum(entry.status == status for entry in entries) for status in (OK, SKIPPED, FAILED, PENDING)}
    measured = find_measured_organs(entries, vocabulary)
    volumes = [(_format_name(entry), entry.outcome.volumes_ml) for entry in done if entry.outcome]
    seconds = [entry.outcome.seconds["total"] for entry in done if entry.outcome and "total" in entry.outcome.seconds]
    ranks = {concern.entry.key: str(rank) for rank, concern in enumerate(to_check, start=1)}
    rows = [_make_row(entry, ranks.get(entry.key, ""), cases, entry.key in pictured, vocabulary) for entry in entries]
    # Image files have none.
    has_slices = any(row.slices for row in rows)
    page = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    text = page.render(
        title=f"Cohort of {len(done)} CT{'s' if len(done) != 1 else ''}",
        style=STYLE,
        source=ledger.read_note("source"),
        model=ledger.read_note("model"),
        written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        ignored_files=int(ledger.read_note("strays") or 0),
        tiles=[(status, count) for status, count in counts.items() if count or status != PENDING],
        seconds=f"{statistics.median(seconds):.1f}" if seconds else "",
        to_check=[_make_card(rank, concern, cases) for rank, concern in enumerate(to_check[:_MAX_CARDS], start=1)],
        more_to_check=max(len(to_check) - _MAX_CARDS, 0),
        order=_BY_REVIEW if to_check and to_check[0].reviewed else _BY_VOLUME,
        ended_early=ledger.read_note(ENDED_EARLY),
        failures=_group_by_reason([entry for entry in entries if entry.status == FAILED]),
        skipped=_group_by_reason([entry for entry in entries if entry.status == SKIPPED]),
        chart=draw_volume_chart(volumes, measured) if volumes else "",
        chart_caption=format_chart_caption(len(volumes)),
        rows=rows,
        headings=[(text, kind) for text, kind in _HEADINGS if text != "Slices" or has_slices],
        has_slices=has_slices,
        volumes=VOLUMES,
        script=SORTING,
    )
    write_text(text.encode("utf-8", "replace").decode("utf-8"), path)


def _format_name(entry: Entry) -> str:
    label = " · ".join(filter(None, (entry.patient, _format_date(entry.study_date), entry.description)))
    return label or Path(entry.source).name


def _format_date(dicom: str) -> str:
    return f"{dicom[:4]}-{dicom[4:6]}-{dicom[6:8]}" if len(dicom) == 8 and dicom.isdecimal() else dicom


def _make_row(entry: Entry, rank: str, cases: Path, with_picture: bool, vocabulary: Vocabulary) -> Row:
    outcome = entry.outcome
    total = outcome.seconds.get("total") if outcome else None
    notes = [entry.reason, *entry.notes, *(outcome.notes if outcome else ())]
    return Row(
        name=_format_name(entry),
        source=entry.source,
        status=entry.status,
        slices=str(entry.slices) if entry.slices > 1 else "",
        seconds="" if total is None else f"{total:.1f}",
        rank=rank,
        notes=". ".join(note.rstrip(".") for note in notes if note),
        folder=entry.name if entry.status == OK else "",
        picture=_encode_thumbnail(entry, cases) if with_picture else "",
        link=_format_link(entry),
        large=_get_picture_link(entry, cases),
        cut_off=_format_cut_off(entry, vocabulary),
    )


def _group_by_reason(entries: list[Entry]) -> list[Group]:
    """Group entries whose reasons differ only in names and numbers, the largest group first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(_normalize_reason(entry), []).append(entry)
    groups = [
        Group(
            alike[0].reason,
            len(alike),
            tuple((_format_name(entry), entry.source) for entry in alike[:_MAX_IN_A_GROUP]),
            max(len(alike) - _MAX_IN_A_GROUP, 0),
            len({entry.reason for entry in alike}) > 1,
        )
        for alike in found.values()
    ]
    return sorted(groups, key=lambda group: -group.count)


def _normalize_reason(entry: Entry) -> str:
    """The reason of ``entry`` with its names and numbers replaced by ``#``."""
    text = entry.reason
    for name in filter(None, (Path(entry.source).name, entry.description)):
        text = text.replace(name, "#")
    return _NUMBER.sub("#", text)


def _make_card(rank: int, concern: FlaggedCase, cases: Path) -> Card:
    entry = concern.entry
    shown = concern.reasons[:_MAX_REASONS]
    more = len(concern.reasons) - len(shown)
    picture, link, large = _encode_thumbnail(entry, cases), _format_link(entry), _get_picture_link(entry, cases)
    return Card(rank, _format_name(entry), entry.source, picture, shown, more, link, large)


def _format_link(entry: Entry) -> str:
    """Link to the folder of a segmented case, relative to the report."""
    return f"{CASES}/{quote(entry.name)}/" if entry.status == OK and entry.name else ""


def _get_picture_link(entry: Entry, cases: Path) -> str:
    link = _format_link(entry)
    return f"{link}{PICTURE}" if link and (cases / entry.name / PICTURE).is_file() else ""


def _format_cut_off(entry: Entry, vocabulary: Vocabulary) -> str:
    if entry.outcome is None or not entry.outcome.cut_off:
        return ""
    names = ", ".join(organ.name for organ in vocabulary if organ.key in entry.outcome.cut_off)
    return f"{names[:1]}{names[1:].lower()} ({CUT_OFF})"


def _encode_thumbnail(entry: Entry, cases: Path) -> str:
    try:
        content = (cases / entry.name / THUMBNAIL).read_bytes()
    except OSError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
