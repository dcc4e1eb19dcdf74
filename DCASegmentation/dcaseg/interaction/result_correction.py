"""A result folder and strokes in, a corrected result folder out: what ``dca correct`` runs.

    result = correct_result(Path("result"), [OrganStroke("pancreas", Stroke.click(-12, 40, 95))], Path("corrected"))

The labels of the first result stay as they are; the new folder says what was clicked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..errors import UserError
from ..imaging.grid import Grid
from ..imaging.readers import read_ct, read_labels
from ..imaging.writers import new_folder, write_image, write_json, write_text
from ..inference.measurements import OrganMeasurement, measure
from ..inference.pipeline import EXTENSIONS, REQUEST, geometry_of, write_tables
from ..inference.segmenter import Result
from ..organs import VOCABULARIES, Organ, Vocabulary
from ..types import ProgressCallback
from .session import Change, CorrectionSession
from .strokes import Point, Stroke
from .view import Engine

CORRECTIONS = "corrections"
"""The key in ``request.json`` that lists what was corrected, the first correction first."""

# What tells of the network's own run, and stays true of a corrected result.
# Earlier versions called the map of the dominant expert deciding_expert.
_KEPT = ("attention_", "dominant_expert.", "deciding_expert.", "entropy.", "disagreement.", "expert_attention.csv")
_SAME_MM = 1e-3

AlsoWrite = Callable[[Path, sitk.Image, Result], None]


@dataclass(frozen=True)
class OrganStroke:
    """A stroke for the organ of this key; ``corners`` (RAS, mm), where given, bound what may change."""

    organ: str
    stroke: Stroke
    corners: tuple[Point, Point] | None = None


@dataclass(frozen=True)
class ResultFolder:
    """What ``dca segment`` or ``dca correct`` has left behind: paths, the record ``request.json``, the vocabulary."""

    folder: Path
    labels: Path
    extension: str
    record: dict[str, Any]
    vocabulary: Vocabulary


@dataclass(frozen=True)
class CorrectedResult:
    """``labels`` on the CT's grid, the volumes before and after, and what each stroke did."""

    labels: sitk.Image
    before: tuple[OrganMeasurement, ...]
    after: tuple[OrganMeasurement, ...]
    changes: tuple[Change, ...]
    vocabulary: Vocabulary


def read_result(folder: Path) -> ResultFolder:
    """Look at a result folder; the images are not read yet. Raises UserError where it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", "Name the folder that dca segment has made.")
    try:
        record = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        extension, size = str(record["extension"]), record["ct_geometry"]["size"]
        named = str(record.get("vocabulary") or "")
        if extension not in EXTENSIONS or len(size) != 3:
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is no result: it has no {REQUEST} that can be read.", "Name a folder that dca segment has made."
        ) from None
    labels = folder / f"labels{extension}"
    if not labels.is_file():
        raise UserError(f"{folder} has no {labels.name} to correct.", "Segment the CT again.")
    return ResultFolder(folder, labels, extension, record, _vocabulary(folder, named))


def open_session(
    result: ResultFolder,
    ct: Path | None = None,
    locked: Collection[str] = (),
    engine: Engine | None = None,
) -> tuple[CorrectionSession, sitk.Image]:
    """A session on the labels of ``result``, and the CT; ``ct`` is where that lies now, if it was moved.

    Raises UserError where the CT is gone or has changed, or an organ of ``locked`` does not exist.
    """
    kept = [organ_of(result.vocabulary, key).label for key in locked]
    image = _read_ct(result, ct)
    stated = result.record["ct_geometry"]
    found = geometry_of(image)
    same = found["size"] == stated["size"] and all(
        abs(a - b) < _SAME_MM
        for key in ("spacing_mm", "origin_mm", "direction")
        for a, b in zip(found[key], stated[key], strict=True)
    )
    if not same:
        raise UserError(
            "The CT is not the one that was segmented: its voxels lie elsewhere.",
            "Give the CT that the result was made of (--ct), or segment this one.",
        )
    names = {organ.label: organ.key for organ in result.vocabulary}
    checksum = result.record.get("ct_checksum")
    session = CorrectionSession(image, read_labels(result.labels), names, kept, engine=engine, checksum=checksum)
    return session, image


def correct_result(
    folder: Path,
    strokes: Sequence[OrganStroke],
    out: Path,
    ct: Path | None = None,
    locked: Collection[str] = (),
    engine: Engine | None = None,
    progress: ProgressCallback | None = None,
    also_write: AlsoWrite | None = None,
) -> CorrectedResult:
    """Correct the result in ``folder`` by ``strokes``, in order, into the new folder ``out``.

    ``locked`` are keys of organs that stay as they are. ``also_write(folder, ct, result)`` may add files. ``out``
    appears when it is complete, and never replaces anything. Raises UserError for a stroke that cannot be meant so,
    or where all of them together change nothing; then there is no folder.
    """
    if not strokes:
        raise UserError("There is no point to correct with.", "Give --add x,y,z or --remove x,y,z.")
    result = read_result(folder)
    labels = [organ_of(result.vocabulary, each.organ).label for each in strokes]
    _tell(progress, 0.0, "Reading the result and its CT")
    with new_folder(out) as temporary:
        session, image = open_session(result, ct, locked, engine)
        hu = sitk.GetArrayViewFromImage(image)
        grid = Grid.of(image)
        before = measure(_bytes(session), hu, grid.volume_ml_per_voxel, result.vocabulary)
        for index, (label, each) in enumerate(zip(labels, strokes, strict=True)):
            _tell(progress, 0.2 + 0.6 * index / len(strokes), f"Correcting the {session.name_of(label)}")
            session.apply(label, each.stroke, each.corners)
        if not any(change.changed for change in session.changes):
            raise UserError(
                "The points change nothing: they are already on their side.",
                "Click into what is missing (--add) or too much (--remove).",
            )
        _tell(progress, 0.8, "Writing the corrected result")
        after = measure(_bytes(session), hu, grid.volume_ml_per_voxel, result.vocabulary)
        corrected = session.image()
        write_image(corrected, temporary / f"labels{result.extension}")
        for path in sorted(result.folder.iterdir()):
            if path.is_file() and path.name.startswith(_KEPT):
                shutil.copy2(path, temporary / path.name)
        written = Result(corrected, after, device="", warnings=[])
        write_tables(temporary, written)
        if also_write is not None:
            also_write(temporary, image, written)
        write_text(_log(result, session, strokes), temporary / "log.txt")
        write_json(_record(result, session, strokes, locked), temporary / REQUEST)
    _tell(progress, 1.0, "Finished")
    return CorrectedResult(corrected, before, after, session.changes, result.vocabulary)


def organ_of(vocabulary: Vocabulary, key: str) -> Organ:
    """The organ of this key or name. Raises UserError where there is none."""
    wanted = key.strip().lower().replace(" ", "_")
    for organ in vocabulary:
        if wanted in (organ.key, organ.name.lower().replace(" ", "_")):
            return organ
    raise UserError(f"There is no organ '{key}' in this result.", f"It knows: {', '.join(vocabulary.by_key)}.")


def _vocabulary(folder: Path, named: str) -> Vocabulary:
    """The vocabulary of the labels: of the bundle, as the table of volumes lists it."""
    if named in VOCABULARIES:
        return VOCABULARIES[named]
    try:
        lines = (folder / "volumes.csv").read_text(encoding="utf-8").splitlines()[1:]
        listed = {int(line.split(",")[0]): line.split(",")[1] for line in lines if line}
    except (OSError, IndexError, ValueError):
        listed = {}
    for vocabulary in VOCABULARIES.values():
        # Not all of them: dca segment --organs lists those that were asked for.
        if listed and listed.items() <= {organ.label: organ.key for organ in vocabulary}.items():
            return vocabulary
    raise UserError(
        f"It cannot be said which organs the labels of {folder} are: volumes.csv is missing or of another kind.",
        "Segment the CT again.",
    )


def _read_ct(result: ResultFolder, given: Path | None) -> sitk.Image:
    stated = result.record.get("ct")
    if given is not None:
        return read_ct(given)
    if isinstance(stated, list):
        # The slices of a series; their folder is read, and the series chosen as then.
        path = Path(stated[0]).parent if stated else None
    else:
        path = Path(stated) if isinstance(stated, str) else None
    if path is None or not path.exists():
        raise UserError(f"The CT of this result is gone: {path or 'none is named'}.", "Say where it is now (--ct).")
    return read_ct(path, series=result.record.get("series") if path.is_dir() else None)


def _bytes(session: CorrectionSession) -> NDArray[np.uint8]:
    return session.labels.astype(np.uint8, copy=False)


def _record(
    result: ResultFolder, session: CorrectionSession, strokes: Sequence[OrganStroke], locked: Collection[str]
) -> Mapping[str, Any]:
    """The record of the result, with one more correction."""
    ml = session.grid.volume_ml_per_voxel
    made = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": str(result.folder.resolve()),
        "clicks": sum(1 for each in strokes if len(each.stroke.points) == 1),
        "scribbles": sum(1 for each in strokes if len(each.stroke.points) > 1),
        "locked": sorted(locked),
        "strokes": [
            {
                "organ": session_name,
                "adds": change.adds,
                "points_ras_mm": [list(point) for point in change.points],
                "engine": change.engine,
                "added_ml": round(change.added * ml, 4),
                "removed_ml": round(change.removed * ml, 4),
                "given_up_ml": {
                    result.vocabulary.by_label[label].key if label in result.vocabulary.by_label else str(label): round(
                        voxels * ml, 4
                    )
                    for label, voxels in change.given_up.items()
                },
                "seconds": round(change.seconds, 3),
            }
            for session_name, change in (
                (result.vocabulary.by_label[change.label].key, change) for change in session.changes
            )
        ],
    }
    return {
        **result.record,
        "overwrite": False,
        CORRECTIONS: [*result.record.get(CORRECTIONS, []), made],
    }


def _log(result: ResultFolder, session: CorrectionSession, strokes: Sequence[OrganStroke]) -> str:
    lines = [
        f"{datetime.now(timezone.utc).astimezone():%Y-%m-%d %H:%M:%S %z}",
        f"Corrected from: {result.folder.resolve()}",
        *(
            f"{session.name_of(change.label)}: {'+' if change.adds else '-'} "
            f"({', '.join(f'{value:.1f}' for value in change.points[0])}) RAS mm, {change.added} voxels added, "
            f"{change.removed} removed, {change.engine}, {change.seconds:.2f} s"
            for change in session.changes
        ),
    ]
    return "\n".join(lines) + "\n"


def _tell(progress: ProgressCallback | None, fraction: float, message: str) -> None:
    if progress:
        progress(fraction, message)
