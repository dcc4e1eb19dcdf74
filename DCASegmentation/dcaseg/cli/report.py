"""``dca report``: a result as one HTML page to read and print."""

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
from .console import print_line

NAME = "report"
EXAMPLES = "Example: dca report result/ -o report.html"

_REMEDY = "Give a folder written by dca segment."
_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")


def run(
    result: Annotated[Path, typer.Argument(help="Folder written by dca segment.", metavar="RESULT")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="HTML file to write.", show_default="RESULT/report.html")
    ] = None,
    ct: Annotated[Path | None, typer.Option(help="The CT, if it was moved after the segmentation.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
) -> None:
    """Write a report on a result as one HTML page, with pictures.

    It shows three planes and the organs from the front, the volumes with the usual ranges in adults and notes on
    organs that the scan cuts off, the findings (after **dca segment --review**), and the model, weights, device and
    time. Not for clinical use.
    """
    from ..imaging.readers import read_ct, read_labels
    from ..rendering.report import NOT_CHECKED, CaseReport, ReportedFinding, write_report

    request = _request(result)
    labels = read_labels(_labels_file(result))
    image = read_ct(ct or _ct_of(request), series=request.get("series"))
    if image.GetSize() != labels.GetSize():
        raise UserError(
            "The size of the CT differs from that of the result.", "Give the CT that was segmented with --ct."
        )
    vocabulary = _vocabulary(result)

    def reported(finding: Finding) -> ReportedFinding:
        names = [vocabulary.by_key[key].name for key in (finding.organ, *finding.others) if key in vocabulary.by_key]
        texts = tuple(reason.text for reason in finding.reasons)
        return ReportedFinding(finding.name, tuple(names), texts, finding.ml, NOT_CHECKED, finding.position_mm)

    findings = None
    if (result / REVIEW).exists():
        findings = [reported(finding) for finding in read_review(result / REVIEW).findings]
    organs = request.get("options", {}).get("organs")
    facts = _about(result, request)
    facts["Report written"] = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}"
    about = [(name, facts.pop(name, "")) for name in ("CT", "Size", "Segmented", "Model", "Warning")]
    path = out or result / "report.html"
    title = f"Segmentation report: {(ct or _ct_of(request)).name}"
    write_report(
        CaseReport(
            title,
            about,
            image,
            labels,
            vocabulary,
            findings,
            None if organs is None else tuple(organs),
            tuple(facts.items()),
        ),
        path,
        overwrite,
    )
    print_line(f"The report is in {path}.")


def _request(result: Path) -> dict[str, Any]:
    try:
        content = json.loads((result / "request.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{result} is not a result: its request.json cannot be read.", _REMEDY) from None
    if not isinstance(content, dict) or not isinstance(content.get("options", {}), dict):
        raise UserError(f"{result} is not a result: its request.json has an unknown format.", _REMEDY)
    return content


def _ct_of(request: dict[str, Any]) -> Path:
    source = request.get("ct")
    if isinstance(source, str) and Path(source).exists():
        return Path(source)
    if isinstance(source, list) and source and all(isinstance(each, str) for each in source):
        folder = Path(source[0]).parent
        if folder.is_dir():
            return folder
    raise UserError("The CT was moved after the segmentation.", "Give its new path with --ct.")


def _labels_file(result: Path) -> Path:
    paths = [path for each in _EXTENSIONS if (path := result / f"labels{each}").exists()]
    if not paths:
        raise UserError(f"{result} contains no labels.", _REMEDY)
    return paths[0]


def _vocabulary(result: Path) -> Vocabulary:
    """Return the vocabulary with the organs and labels of ``volumes.csv``. Raises UserError if there is none."""
    try:
        with (result / "volumes.csv").open(encoding="utf-8", newline="") as stream:
            organs = {int(row["label"]): row["organ"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"The file volumes.csv in {result} cannot be read.", _REMEDY) from None
    for vocabulary in VOCABULARIES.values():
        if organs and all(
            label in vocabulary.by_label and vocabulary.by_label[label].key == key for label, key in organs.items()
        ):
            return vocabulary
    raise UserError("The organs of this result are unknown to this version.", "Segment the CT again.")


def _about(result: Path, request: dict[str, Any]) -> dict[str, str]:
    bundle = request.get("bundle")
    bundle = bundle if isinstance(bundle, dict) else {}
    facts = {"Model": str(bundle.get("name", "")), "Weights (SHA-256)": str(bundle.get("sha256", ""))}
    try:
        lines = (result / "log.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return facts
    if lines:
        facts["Segmented"] = lines[0]
    for name in ("CT", "Size", "Device", "Runtime", "total", "Warning"):
        values = [line.split(": ", 1)[1] for line in lines[1:] if line.startswith(f"{name}: ")]
        facts[{"total": "Time"}.get(name, name)] = "; ".join(values)
    return facts
