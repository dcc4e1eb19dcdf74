"""The report of one case: one HTML file, pictures included, to read or print."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import OutputError
from ..imaging.writers import temporary_folder, write_text
from ..organs import Organ, Vocabulary
from .case_picture import add_organs, draw_ct, draw_depth_view
from .planes import choose_planes

NOT_CLINICAL = "For research only. Not for clinical use; this is not a medical device."
_PICTURE_HEIGHT = 420  # pixels
_FILL, _OUTLINE = 0.2, 2
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 62em; margin: 1.5em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; margin: 0; } h2 { font-size: 1.15em; margin: 1.4em 0 .4em; }
.warning { border: 2px solid #b00020; color: #b00020; padding: .4em .7em; font-weight: 600; margin: .8em 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1em; margin: .6em 0; } dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: .6em; } figure { margin: 0; } figcaption { color: #555; }
img { height: 15em; width: auto; display: block; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25em .6em; vertical-align: top; }
th { border-bottom: 2px solid #999; } tr + tr td { border-top: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border: 1px solid #888; }
@media print { body { margin: 0; max-width: none; } tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
  img { height: 11em; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


@dataclass(frozen=True)
class ReportedFinding:
    """A finding of the review. ``organs`` are the names of all organs involved, ``outcome`` is the user's decision."""

    title: str
    organs: tuple[str, ...]
    reasons: tuple[str, ...]
    ml: float
    outcome: str


@dataclass(frozen=True)
class CaseReport:
    """The content of the report. ``ct`` (HU) and ``labels`` lie on one grid.

    ``asked`` are the keys of the requested organs, None for all of ``vocabulary``; ``about`` are further facts, such as
    model and time. ``findings`` is None if the result has no review.
    """

    title: str
    about: Sequence[tuple[str, str]]
    ct: sitk.Image
    labels: sitk.Image
    vocabulary: Vocabulary
    findings: Sequence[ReportedFinding] | None = None
    asked: tuple[str, ...] | None = None


@dataclass(frozen=True)
class OrganRow:
    """The volume (ml), the mean HU (None without voxels) and the notes of an organ."""

    organ: Organ
    ml: float
    mean_hu: float | None
    notes: tuple[str, ...]


def write_report(report: CaseReport, path: Path, overwrite: bool = False) -> None:
    """Write the report as UTF-8 to ``path``, completely or not at all. Raises OutputError."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already.", "Choose another name, or allow it to be overwritten.")
    write_text(page(report), path)


def page(report: CaseReport) -> str:
    """The report as HTML."""
    about = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.about if value)
    pictures = "".join(
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{_png(pixels)}">'
        f"<figcaption>{escape(title)}</figcaption></figure>"
        for title, pixels in pictures_of(report.ct, report.labels, report.vocabulary)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{escape(report.title)}</h1>\n<p class="warning">{escape(NOT_CLINICAL)}</p>\n<dl>{about}</dl>\n'
        f'<h2>Pictures</h2>\n<div class="pictures">{pictures}</div>\n'
        f"<h2>Volumes</h2>\n{_volumes(organ_rows(report))}\n<h2>Findings</h2>\n{_findings(report.findings)}\n"
        f'<p class="warning">{escape(NOT_CLINICAL)}</p>\n</body></html>\n'
    )


def organ_rows(report: CaseReport) -> list[OrganRow]:
    """One row for each requested organ."""
    labels, ct = (sitk.GetArrayViewFromImage(image) for image in (report.labels, report.ct))
    ml_per_voxel = float(np.prod(report.labels.GetSpacing())) / 1000.0
    inside = labels > 0
    numbers = labels[inside]
    counts = np.bincount(numbers, minlength=len(report.vocabulary) + 1)
    sums = np.bincount(numbers, weights=ct[inside], minlength=len(counts))
    organs = [organ for organ in report.vocabulary if report.asked is None or organ.key in report.asked]
    rows = []
    for organ in organs:
        count = int(counts[organ.label])
        ml = count * ml_per_voxel
        rows.append(OrganRow(organ, ml, sums[organ.label] / count if count else None, _notes(organ, ml, labels)))
    return rows


def _notes(organ: Organ, ml: float, labels: np.ndarray) -> tuple[str, ...]:
    if ml == 0:
        return ("not found",)
    low, high = organ.volume_ml
    ends = [(labels[0], "first"), (labels[-1], "last")]
    cut = [name for plane, name in ends if (plane == organ.label).any()]
    notes = []
    if cut:
        notes.append(f"cut off at the {' and '.join(cut)} slice: the volume is only a part of the organ")
    elif not low <= ml <= high:
        notes.append(f"{'below' if ml < low else 'above'} the usual range")
    return tuple(notes)


def pictures_of(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary) -> list[tuple[str, np.ndarray]]:
    """Three planes with outlined organs, and the organs from the front: titles and RGB pixels (rows, columns, 3)."""
    planes = choose_planes(ct, labels)
    pictures = []
    for name, plane in planes.items():
        view = draw_ct(ct, plane, (round(_PICTURE_HEIGHT * plane.aspect), _PICTURE_HEIGHT))
        pictures.append((name.capitalize(), add_organs(view, labels, vocabulary, plane, _FILL, thickness=_OUTLINE)))
    plane = planes["coronal"]
    coarse = (round(_PICTURE_HEIGHT / 2 * plane.aspect), _PICTURE_HEIGHT // 2)
    depth = draw_depth_view(labels, vocabulary, plane, coarse)
    pictures.append(("Organs from the front", depth.repeat(2, axis=0).repeat(2, axis=1)))
    return pictures


def _png(pixels: np.ndarray) -> str:
    """RGB pixels as a PNG file in base 64."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels.astype(np.uint8)), isVector=True)
    with temporary_folder("dca-report") as folder:
        path = Path(folder, "picture.png")
        sitk.WriteImage(image, str(path), True)
        return base64.b64encode(path.read_bytes()).decode("ascii")


def _volumes(rows: Sequence[OrganRow]) -> str:
    lines = []
    for row in rows:
        low, high = row.organ.volume_ml
        swatch = f'<span class="swatch" style="background: rgb{row.organ.color}"></span>'
        hu = "\N{EN DASH}" if row.mean_hu is None else f"{row.mean_hu:.0f}"
        lines.append(
            f"<tr><td>{swatch}{escape(row.organ.name)}</td><td class=number>{row.ml:.1f}</td>"
            f"<td class=number>{low:g}\N{EN DASH}{high:g}</td><td class=number>{hu}</td>"
            f"<td>{escape('; '.join(row.notes))}</td></tr>"
        )
    return (
        "<table><tr><th>Organ<th class=number>Volume (ml)<th class=number>Usual in adults (ml)"
        f"<th class=number>Mean HU<th>Note</tr>{''.join(lines)}</table>"
    )


def _findings(findings: Sequence[ReportedFinding] | None) -> str:
    if findings is None:
        return "<p>This result was made without a review.</p>"
    if not findings:
        return "<p>Nothing suspicious was found.</p>"
    lines = [
        f"<tr><td class=number>{rank}</td><td>{escape(row.title)}</td><td>{escape(', '.join(row.organs))}</td>"
        f"<td>{escape(' '.join(row.reasons))}</td><td class=number>{row.ml:.1f}</td>"
        f"<td>{escape(row.outcome)}</td></tr>"
        for rank, row in enumerate(findings, start=1)
    ]
    return (
        "<table><tr><th class=number>#<th>Finding<th>Organs involved<th>Why<th class=number>ml<th>Outcome</tr>"
        f"{''.join(lines)}</table>"
    )
