"""``dca report``: a result as one HTML page to read and print."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, get_reason
from ..json_io import load, read_json
from ..organs import VOCABULARIES, Vocabulary
from ..review.schema import REVIEW, Finding, read_review
from .console import print_line
from .options import overwrite_option

NAME = "report"
EXAMPLES = "Example: dca report result/ -o report.html"

_REMEDY = "Specify a folder written by dca segment."
_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")


def run(
    result: Annotated[Path, typer.Argument(help="Folder written by dca segment.", metavar="RESULT")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="HTML file to write.", show_default="RESULT/report.html")
    ] = None,
    ct: Annotated[Path | None, typer.Option(help="The CT, if it was moved after the segmentation.")] = None,
    overwrite: Annotated[bool, overwrite_option("an earlier report")] = False,
) -> None:
    """Write a report on a result as one HTML page, with pictures.

    It shows three planes and the organs from the front, the volumes with the usual ranges in adults and notes on
    organs that the scan cuts off, the findings (after **dca segment --review**), and the model, weights, device and
    time. Not for clinical use.
    """
    from ..imaging.grid import Grid
    from ..imaging.readers import read_labels
    from ..imaging.writers import is_private, make_private
    from ..inference.result_ct import get_ct_path, read_result_ct
    from ..rendering.report import NOT_CHECKED, CaseReport, ReportedFinding, write_report

    record = _record(result)
    request = _request(result, record)
    labels = read_labels(_find_labels_file(result))
    image = read_result_ct(record, result, ct)
    if not Grid.from_image(image).is_same_as(Grid.from_image(labels)):
        raise UserError(
            "The labels do not lie on the grid of the CT.", "Use --ct to specify the CT that was segmented."
        )
    vocabulary = _read_vocabulary(result)

    def convert_finding(finding: Finding) -> ReportedFinding:
        names = [vocabulary.by_key[key].name for key in (finding.organ, *finding.others) if key in vocabulary.by_key]
        texts = tuple(reason.text for reason in finding.reasons)
        return ReportedFinding(finding.name, tuple(names), texts, finding.ml, NOT_CHECKED, finding.position_mm)

    findings = None
    if (result / REVIEW).exists():
        findings = [convert_finding(finding) for finding in read_review(result / REVIEW).findings]
    facts = _read_result_info(result, request)
    facts["Report written"] = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}"
    about = [(name, facts.pop(name, "")) for name in ("CT", "Size", "Segmented", "Model", "Warning")]
    path = out or result / "report.html"
    title = f"Segmentation report: {(ct or get_ct_path(record)).name}"
    organs = request.options.organs
    write_report(
        CaseReport(title, about, image, labels, vocabulary, findings, organs, tuple(facts.items())),
        path,
        overwrite,
    )
    if is_private(result):
        make_private(path)
    print_line(f"The report is in {path}.")


@dataclass(frozen=True)
class _Model:
    name: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class _Options:
    organs: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Request:
    """What a report needs of ``request.json``."""

    bundle: _Model | None = None
    options: _Options = field(default_factory=_Options)


def _record(result: Path) -> dict[str, Any]:
    """The content of ``request.json``."""
    try:
        record = read_json(result / "request.json")
        if isinstance(record, dict):
            return record
        error: Exception = ValueError("it is not an object")
    except (OSError, ValueError) as unreadable:
        error = unreadable
    raise UserError(f"{result} is not a result: its request.json cannot be read ({get_reason(error)}).", _REMEDY)


def _request(result: Path, record: dict[str, Any]) -> _Request:
    try:
        return load(_Request, record, ignore_unknown=True)
    except ValueError as error:
        raise UserError(f"{result} is not a result: its request.json cannot be read ({error}).", _REMEDY) from None


def _find_labels_file(result: Path) -> Path:
    paths = [path for each in _EXTENSIONS if (path := result / f"labels{each}").exists()]
    if not paths:
        raise UserError(f"{result} contains no labels.", _REMEDY)
    return paths[0]


def _read_vocabulary(result: Path) -> Vocabulary:
    """Return the vocabulary with the organs and labels of ``volumes.csv``. Raises UserError if there is none."""
    try:
        with (result / "volumes.csv").open(encoding="utf-8", newline="") as stream:
            organs = {int(row["label"]): row["organ"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"The file volumes.csv in {result} cannot be read.", _REMEDY) from None
    for vocabulary in VOCABULARIES.values():
        if organs and all(
            label in vocabulary.by_label and vocabulary.by_label[label].key == key for label, key in organs.items()
        ):
            return vocabulary
    raise UserError("The organs of this result are unknown to this version.", "Segment the CT again.")


def _read_result_info(result: Path, request: _Request) -> dict[str, str]:
    model = request.bundle or _Model()
    facts = {"Model": model.name, "Weights (SHA-256)": model.sha256}
    try:
        lines = (result / "log.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return facts
    if lines:
        facts["Segmented"] = lines[0]
    # Earlier versions wrote "Runtime".
    starts = {"CT": ("CT: ",), "Size": ("Size: ",), "Device": ("Device: ",), "Backend": ("Backend: ", "Runtime: ")}
    for name, prefixes in (*starts.items(), ("Time", ("total: ",)), ("Warning", ("Warning: ",))):
        facts[name] = "; ".join(line.split(": ", 1)[1] for line in lines[1:] if line.startswith(prefixes))
    return facts
