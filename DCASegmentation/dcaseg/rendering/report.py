"""The report of one case: one HTML file, pictures included, to read or print."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import OutputError
from ..imaging.scan_edges import ScanEdges
from ..imaging.writers import temporary_folder, write_text
from ..organs import Organ, Vocabulary
from .case_picture import add_organs, draw_ct, draw_depth_view
from .planes import choose_planes

NOT_CLINICAL = "For research only. Not for clinical use; this is not a medical device."
_PICTURE_HEIGHT = 420  # pixels
_FILL, _OUTLINE = 0.2, 2
NOT_CHECKED = "not checked"
_MAX_UNCHECKED = 20
_MOSTLY_AXIAL = 0.7  # of the direction of the slices
_NONE, _AT_LEAST = "\N{EN DASH}", "\N{GREATER-THAN OR EQUAL TO} "
_SIDES = {
    "axial": {"left": "R", "right": "L", "top": "A", "bottom": "P"},
    "coronal": {"left": "R", "right": "L", "top": "S", "bottom": "I"},
    "sagittal": {"left": "A", "right": "P", "top": "S", "bottom": "I"},
}
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 62em; margin: 1.5em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; margin: 0; } h2 { font-size: 1.15em; margin: 1.4em 0 .4em; }
.warning { border: 2px solid #b00020; color: #b00020; padding: .4em .7em; font-weight: 600; margin: .8em 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; margin: .6em 0; } dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: .8em; } figure { margin: 0; }
figcaption { color: #555; } .picture { position: relative; background: #000; height: 21em; }
.picture.white { background: #fff; border: 1px solid #ddd; }
img { width: 100%; height: 100%; object-fit: contain; display: block; }
.side { position: absolute; color: #fff; font-weight: 600; text-shadow: 0 0 3px #000; top: 45%; }
.white .side { color: #1c1c1c; text-shadow: none; } .left { left: .4em; } .right { right: .4em; }
.top { top: .2em; left: 50%; } .bottom { top: auto; bottom: .2em; left: 50%; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25em .6em; vertical-align: top; }
th { border-bottom: 2px solid #999; } tr + tr td { border-top: 1px solid #ddd; }
.small { color: #555; font-size: .9em; } td.name { min-width: 9em; } td.outcome { min-width: 7em; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border: 1px solid #888; }
@media print { body { margin: 0; max-width: none; } tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
  .picture { height: 16em; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


@dataclass(frozen=True)
class ReportedFinding:
    """A finding of the review.

    ``organs`` are the names of all organs involved, ``outcome`` is the user's decision (``NOT_CHECKED`` for none), and
    ``position_mm`` (LPS, in the space of the CT) the point to look at.
    """

    title: str
    organs: tuple[str, ...]
    reasons: tuple[str, ...]
    ml: float
    outcome: str
    position_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class CaseReport:
    """The content of the report. ``ct`` (HU) and ``labels`` lie on one grid.

    ``asked`` are the keys of the requested organs, None for all of ``vocabulary``; ``about`` are further facts, such as
    the model, and ``technical`` those that few readers need, which come last. ``findings`` is None if the result has no
    review.
    """

    title: str
    about: Sequence[tuple[str, str]]
    ct: sitk.Image
    labels: sitk.Image
    vocabulary: Vocabulary
    findings: Sequence[ReportedFinding] | None = None
    asked: tuple[str, ...] | None = None
    technical: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class OrganRow:
    """Volume (ml), mean HU (None without voxels), and notes of an organ; ``is_cut`` if the scan cuts it off."""

    organ: Organ
    ml: float
    mean_hu: float | None
    notes: tuple[str, ...]
    is_cut: bool = False


def write_report(report: CaseReport, path: Path, overwrite: bool = False) -> None:
    """Write the report as UTF-8 to ``path``, completely or not at all. Raises OutputError."""
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} already exists.", "Choose another name, or allow it to be overwritten (--overwrite)."
        )
    write_text(render_html(report), path)


def render_html(report: CaseReport) -> str:
    """The report as HTML."""
    pictures = "".join(
        f'<figure><div class="picture{" white" if picture.is_white else ""}">'
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{_encode_png(picture.pixels)}">'
        + "".join(f'<span class="side {place}">{letter}</span>' for place, letter in picture.sides.items())
        + f"</div><figcaption>{escape(picture.title)}</figcaption></figure>"
        for picture in draw_pictures(report.ct, report.labels, report.vocabulary)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{escape(report.title)}</h1>\n<p class="warning">{escape(NOT_CLINICAL)}</p>\n'
        f"{_format_facts(report.about)}\n"
        f'<h2>Pictures</h2>\n<div class="pictures">{pictures}</div>\n'
        f"<h2>Volumes</h2>\n{_format_volumes(make_organ_rows(report))}\n"
        "<h2>Findings: where the segmentation may be wrong</h2>\n"
        f"{_format_findings(report.findings, report.labels)}\n"
        f"<h2>Technical details</h2>\n{_format_facts(report.technical)}\n"
        f'<p class="warning">{escape(NOT_CLINICAL)}</p>\n'
        "</body></html>\n"
    )


def _format_facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    return f"<dl>{rows}</dl>"


def make_organ_rows(report: CaseReport) -> list[OrganRow]:
    """One row for each requested organ."""
    labels, ct = (sitk.GetArrayViewFromImage(image) for image in (report.labels, report.ct))
    ml_per_voxel = float(np.prod(report.labels.GetSpacing())) / 1000.0
    inside = labels > 0
    numbers = labels[inside]
    counts = np.bincount(numbers, minlength=len(report.vocabulary) + 1)
    sums = np.bincount(numbers, weights=ct[inside], minlength=len(counts))
    ends = _describe_ends(report.labels)
    cut_off = ScanEdges(ct, report.ct.GetSpacing()).find_truncated_labels(labels)
    organs = [organ for organ in report.vocabulary if report.asked is None or organ.key in report.asked]
    rows = []
    for organ in organs:
        count = int(counts[organ.label])
        ml = count * ml_per_voxel
        is_cut = organ.label in cut_off and not organ.is_stray(ml)
        where = [name for end, name in zip((0, -1), ends, strict=True) if (labels[end] == organ.label).any()]
        mean_hu = sums[organ.label] / count if count else None
        rows.append(OrganRow(organ, ml, mean_hu, _format_notes(organ, count, ml, is_cut, where), is_cut))
    return rows


def _describe_ends(image: sitk.Image) -> tuple[str, str]:
    """What the first and the last slice of an image are in the patient."""
    up = np.reshape(image.GetDirection(), (3, 3))[2, 2]
    if abs(up) < _MOSTLY_AXIAL:
        return "first slice", "last slice"
    return ("lower end", "upper end") if up > 0 else ("upper end", "lower end")


def _format_notes(organ: Organ, voxels: int, ml: float, is_cut: bool, where: Sequence[str]) -> tuple[str, ...]:
    if not is_cut:
        # The usual range has a column of its own.
        note = organ.note(voxels, ml)
        return (note.partition(" usual")[0] + " usual range" if " usual" in note else note,) if note else ()
    place = f"at the {' and the '.join(where)} of the scan" if where else "by the field of view"
    return (f"cut off {place}",)


@dataclass(frozen=True)
class ReportPicture:
    """A picture: RGB pixels (rows, columns, 3), a title, and the sides of the patient by their place on the page."""

    title: str
    pixels: np.ndarray
    sides: Mapping[str, str]
    is_white: bool = False


def draw_pictures(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary) -> list[ReportPicture]:
    """Three planes with outlined organs, and the organs from the front."""
    planes = choose_planes(ct, labels)
    pictures = []
    for name, plane in planes.items():
        view = draw_ct(ct, plane, (round(_PICTURE_HEIGHT * plane.aspect), _PICTURE_HEIGHT))
        pixels = add_organs(view, labels, vocabulary, plane, _FILL, thickness=_OUTLINE)
        title = name.capitalize()
        if name == "axial" and (number := slice_number(ct, _to_lps(plane.center))) is not None:
            title = f"Axial, slice {number} of {ct.GetSize()[2]}"
        pictures.append(ReportPicture(f"{title} (window 400 HU, level 40 HU)", pixels, _SIDES[name]))
    plane = planes["coronal"]
    # The surfaces of the voxels need no more pixels than this; the page enlarges the picture smoothly.
    coarse = (round(_PICTURE_HEIGHT / 2 * plane.aspect), _PICTURE_HEIGHT // 2)
    depth = draw_depth_view(labels, vocabulary, plane, coarse)
    pictures.append(ReportPicture("Organs from the front", depth, _SIDES["coronal"], is_white=True))
    return pictures


def _to_lps(point: Sequence[float]) -> tuple[float, float, float]:
    return -point[0], -point[1], point[2]


def slice_number(image: sitk.Image, position_mm: Sequence[float]) -> int | None:
    """The number, from 1, of the slice (along the third axis) at a position (LPS); None outside the image."""
    number = round(image.TransformPhysicalPointToContinuousIndex(tuple(position_mm))[2]) + 1
    return number if 1 <= number <= image.GetSize()[2] else None


def _encode_png(pixels: np.ndarray) -> str:
    """RGB pixels as a PNG file in base 64."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels.astype(np.uint8)), isVector=True)
    with temporary_folder("dca-report") as folder:
        path = Path(folder, "picture.png")
        sitk.WriteImage(image, str(path), True)
        return base64.b64encode(path.read_bytes()).decode("ascii")


def _format_volumes(rows: Sequence[OrganRow]) -> str:
    lines = []
    for row in rows:
        low, high = row.organ.volume_ml
        swatch = f'<span class="swatch" style="background: rgb{row.organ.color}"></span>'
        hu = _NONE if row.mean_hu is None else f"{row.mean_hu:.0f}"
        ml = _NONE if row.ml == 0 else f"{_AT_LEAST if row.is_cut else ''}{row.ml:.1f}"
        lines.append(
            f"<tr><td class=name>{swatch}{escape(row.organ.name)}</td><td class=number>{ml}</td>"
            f"<td class=number>{low:g}\N{EN DASH}{high:g}</td><td class=number>{hu}</td>"
            f"<td>{escape('; '.join(row.notes))}</td></tr>"
        )
    return (
        "<table><tr><th>Organ<th class=number>Volume (ml)<th class=number>Usual in adults (ml)"
        f"<th class=number>Mean HU<th>Note</tr>{''.join(lines)}</table>"
    )


def _format_findings(findings: Sequence[ReportedFinding] | None, image: sitk.Image) -> str:
    if findings is None:
        return "<p>This result was made without a review.</p>"
    if not findings:
        return (
            "<p>The review found no region where the segmentation is likely to be wrong. This says nothing about "
            "disease.</p>"
        )
    ranked = list(enumerate(findings, start=1))
    # Every decision is reported; of the others, those that matter most.
    unchecked = [rank for rank, row in ranked if row.outcome == NOT_CHECKED]
    left_out = set(unchecked[_MAX_UNCHECKED:])
    lines = [_format_finding(rank, row, image) for rank, row in ranked if rank not in left_out]
    outcomes = Counter(row.outcome for row in findings)
    counts = ", ".join(f"{count} {escape(outcome)}" for outcome, count in outcomes.items())
    summary = f"{len(findings)} findings" if len(findings) > 1 else "1 finding"
    summary = f"{summary}, the most urgent first: {counts}."
    if left_out:
        summary += f" The {len(left_out)} least urgent of those that were not checked are left out."
    return (
        f"<p>{summary}</p><table><tr><th class=number>#<th>Finding<th class=number>Slice<th class=number>ml<th>Why"
        f"<th>Outcome</tr>{''.join(lines)}</table>"
    )


def _format_finding(rank: int, row: ReportedFinding, image: sitk.Image) -> str:
    number = None if row.position_mm is None else slice_number(image, row.position_mm)
    others = [name for name in row.organs if name != row.title]
    also = f"<br><span class=small>or {escape(', '.join(others))}</span>" if others else ""
    # Each reason names its organ, which is the title.
    reasons = [text.removeprefix(f"{row.title}: ") for text in row.reasons]
    why = " ".join(text[:1].upper() + text[1:] for text in reasons)
    return (
        f"<tr><td class=number>{rank}</td><td class=name>{escape(row.title)}{also}</td>"
        f"<td class=number>{_NONE if number is None else number}</td><td class=number>{row.ml:.1f}</td>"
        f"<td>{escape(why)}</td><td class=outcome>{escape(row.outcome)}</td></tr>"
    )
