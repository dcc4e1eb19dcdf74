"""``dca report``: a result as one page to read and to print."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..organs import VOCABULARIES, Vocabulary
from ..review.schema import REVIEW, Finding, read_review
from .console import say

NAME = "report"
EXAMPLES = "Example: dca report result/ -o report.html"

_AGAIN = "Give the folder that dca segment has written."
_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")


def run(
    result: Annotated[Path, typer.Argument(help="The folder that dca segment has written.", metavar="RESULT")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="HTML file to write.", show_default="report.html in RESULT")
    ] = None,
    ct: Annotated[
        Path | None, typer.Option(help="The CT, where it is no longer where it was when it was segmented.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
) -> None:
    """Write the report of a result: one HTML file with its pictures inside, to read and to print.

    Three planes and the organs from the front, volumes with the ranges usual in adults and what the scan cuts off,
    the findings (after **dca segment --review**), model, weights, device and time. Not for clinical use.
    """
    from ..imaging.readers import read_ct, read_labels
    from ..rendering.report import CaseReport, ReportedFinding, write_report

    request = _request(result)
    labels = read_labels(_labels_file(result))
    image = read_ct(ct or _ct_of(request), series=request.get("series"))
    if image.GetSize() != labels.GetSize():
        raise UserError("The CT is not the one that was segmented: its size differs.", "Name the right one with --ct.")
    vocabulary = _vocabulary(result)

    def reported(place: Finding) -> ReportedFinding:
        names = [vocabulary.by_key[key].name for key in (place.organ, *place.others) if key in vocabulary.by_key]
        texts = tuple(reason.text for reason in place.reasons)
        return ReportedFinding(place.name, tuple(names), texts, place.ml, "not checked")

    findings = None
    if (result / REVIEW).exists():
        findings = [reported(place) for place in read_review(result / REVIEW).findings]
    organs = request.get("options", {}).get("organs")
    about = [*_about(result, request), ("Report written", f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}")]
    path = out or result / "report.html"
    title = f"Segmentation report: {(ct or _ct_of(request)).name}"
    write_report(
        CaseReport(title, about, image, labels, vocabulary, findings, None if organs is None else tuple(organs)),
        path,
        overwrite,
    )
    say(f"The report is in {path}.")


def _request(result: Path) -> dict[str, Any]:
    try:
        content = json.loads((result / "request.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{result} is no result: its request.json cannot be read.", _AGAIN) from None
    if not isinstance(content, dict) or not isinstance(content.get("options", {}), dict):
        raise UserError(f"{result} is no result: its request.json holds something else.", _AGAIN)
    return content


def _ct_of(request: dict[str, Any]) -> Path:
    named = request.get("ct")
    if isinstance(named, str) and Path(named).exists():
        return Path(named)
    if isinstance(named, list) and named and all(isinstance(each, str) for each in named):
        folder = Path(named[0]).parent
        if folder.is_dir():
            return folder
    raise UserError("The CT is no longer where it was when it was segmented.", "Say where it is with --ct.")


def _labels_file(result: Path) -> Path:
    found = [path for each in _EXTENSIONS if (path := result / f"labels{each}").exists()]
    if not found:
        raise UserError(f"{result} holds no labels.", _AGAIN)
    return found[0]


def _vocabulary(result: Path) -> Vocabulary:
    """The vocabulary that has the organs of ``volumes.csv`` under their labels."""
    try:
        with (result / "volumes.csv").open(encoding="utf-8", newline="") as stream:
            organs = {int(row["label"]): row["organ"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"The volumes.csv of {result} cannot be read.", _AGAIN) from None
    for vocabulary in VOCABULARIES.values():
        if organs and all(
            label in vocabulary.by_label and vocabulary.by_label[label].key == key for label, key in organs.items()
        ):
            return vocabulary
    raise UserError("This version does not know the organs of this result.", "Segment the CT again.")


def _about(result: Path, request: dict[str, Any]) -> list[tuple[str, str]]:
    bundle = request.get("bundle")
    bundle = bundle if isinstance(bundle, dict) else {}
    found = [("Model", str(bundle.get("name", ""))), ("Weights (SHA-256)", str(bundle.get("sha256", "")))]
    try:
        lines = (result / "log.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return found
    if lines:
        found.insert(0, ("Segmented", lines[0]))
    for name in ("CT", "Size", "Device", "Runtime", "total", "Warning"):
        values = [line.split(": ", 1)[1] for line in lines[1:] if line.startswith(f"{name}: ")]
        found.append(({"total": "Time"}.get(name, name), "; ".join(values)))
    return found
