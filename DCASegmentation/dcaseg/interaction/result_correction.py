"""Correction of a result folder with strokes into a new result folder, as ``dca correct`` does.

    result = correct_result(Path("result"), [OrganStroke("pancreas", Stroke.click(-12, 40, 95))], Path("corrected"))

The original folder does not change; the ``request.json`` of the new folder lists the strokes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..errors import UserError, get_reason
from ..imaging.grid import Grid
from ..imaging.readers import read_labels
from ..imaging.writers import is_private, new_folder, write_image, write_json, write_text
from ..inference.measurements import OrganMeasurement, measure
from ..inference.pipeline import EXTENSIONS, REQUEST, write_tables
from ..inference.result_ct import read_result_ct
from ..inference.segmenter import Result, report_progress
from ..json_io import DataError, load, read_json
from ..organs import VOCABULARIES, Organ, Vocabulary
from ..types import ProgressCallback
from .engines import create_default_engine
from .session import Change, CorrectionSession
from .strokes import Point, Stroke
from .view import Engine

CORRECTIONS = "corrections"
"""The key in ``request.json`` with the list of corrections, oldest first."""

# Files about the network's own run, which remain valid for a corrected result; ``deciding_expert`` is an earlier name.
_DOMINANT = ("dominant_expert.", "deciding_expert.")
_KEPT = ("attention_", *_DOMINANT, "entropy.", "disagreement.", "expert_attention.csv")

AlsoWrite = Callable[[Path, sitk.Image, Result], None]


@dataclass(frozen=True)
class OrganStroke:
    """A stroke for the organ with the key ``organ``; ``corners`` (RAS, mm), if given, limit what may change."""

    organ: str
    stroke: Stroke
    corners: tuple[Point, Point] | None = None


@dataclass(frozen=True)
class ResultFolder:
    """A folder written by ``dca segment`` or ``dca correct``.

    ``labels`` is the path of the label map, ``extension`` that of the images, ``record`` the content of
    ``request.json``.
    """

    folder: Path
    labels: Path
    extension: str
    record: dict[str, Any]
    vocabulary: Vocabulary


@dataclass(frozen=True)
class CorrectedResult:
    """Corrected ``labels`` on the CT's grid, the measurements before and after, and the change of each stroke."""

    labels: sitk.Image
    before: tuple[OrganMeasurement, ...]
    after: tuple[OrganMeasurement, ...]
    changes: tuple[Change, ...]
    vocabulary: Vocabulary


@dataclass(frozen=True)
class _StoredGeometry:
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, float, float, float, float, float, float, float, float]


@dataclass(frozen=True)
class _StoredRequest:
    """What a correction needs of ``request.json``."""

    extension: str
    ct_geometry: _StoredGeometry
    vocabulary: str | None = None


def read_result(folder: Path) -> ResultFolder:
    """Open a result folder without reading its images. Raises UserError if it is not a result folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist.", "Specify a result folder of dca segment.")
    try:
        record = read_json(folder / REQUEST)
        stored = load(_StoredRequest, record, ignore_unknown=True)
        if stored.extension not in EXTENSIONS:
            raise DataError("extension", f"is '{stored.extension[:20]}', not one of {', '.join(EXTENSIONS)}")
        if not isinstance(record.get(CORRECTIONS, []), list):
            raise DataError(CORRECTIONS, "is not a list")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a result folder: it has no valid {REQUEST} ({get_reason(error)}).",
            "Specify a result folder of dca segment.",
        ) from None
    labels = folder / f"labels{stored.extension}"
    if not labels.is_file():
        raise UserError(f"{folder} contains no {labels.name} to correct.", "Segment the CT again.")
    return ResultFolder(folder, labels, stored.extension, record, _find_vocabulary(folder, stored.vocabulary or ""))


def open_session(
    result: ResultFolder,
    ct: Path | None = None,
    locked: Collection[str] = (),
    engine: Engine | None = None,
) -> tuple[CorrectionSession, sitk.Image]:
    """Open a correction session on the labels of ``result``; returns it and the CT.

    ``ct`` is the path of the CT, if it was moved. ``locked`` are keys of organs that must not change. Raises UserError
    if the CT is missing or has changed, or an organ of ``locked`` does not exist.
    """
    locked_labels = [find_organ(result.vocabulary, key).label for key in locked]
    image = read_result_ct(result.record, result.folder, ct)
    names = {organ.label: organ.key for organ in result.vocabulary}
    checksum = result.record.get("ct_checksum")
    labels = read_labels(result.labels)
    return CorrectionSession(image, labels, names, locked_labels, engine=engine, checksum=checksum), image


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
    """Correct the result in ``folder`` with ``strokes``, in order, and write it to the new folder ``out``.

    ``ct`` is the path of the CT, if it was moved. ``locked`` are keys of organs that must not change. ``engine`` None
    means ``engines.create_default_engine``. ``also_write(folder, ct, result)`` may add files. ``out`` appears once it
    is complete, and never replaces anything. Only its owner can read it if that is so for ``folder``. Raises UserError
    for an invalid stroke, or if the strokes change nothing; then there is no folder.
    """
    if not strokes:
        raise UserError("No points were given to correct the result.", "Specify --add x,y,z or --remove x,y,z.")
    result = read_result(folder)
    labels = [find_organ(result.vocabulary, each.organ).label for each in strokes]
    report_progress(progress, 0.0, "Reading the result and its CT")
    with new_folder(out, private=is_private(result.folder), keep_finished=True) as temporary:
        session, image = open_session(result, ct, locked, engine or create_default_engine())
        hu = sitk.GetArrayViewFromImage(image)
        grid = Grid.from_image(image)
        kept = _get_segmented_labels(result, labels)

        def measured() -> tuple[OrganMeasurement, ...]:
            return measure(
                _get_uint8_labels(session), hu, grid.volume_ml_per_voxel, result.vocabulary, kept, spacing=grid.spacing
            )

        before = measured()
        for index, (label, each) in enumerate(zip(labels, strokes, strict=True)):
            report_progress(progress, 0.2 + 0.6 * index / len(strokes), f"Correcting the {session.name_of(label)}")
            session.apply(label, each.stroke, each.corners)
        if not any(change.changed for change in session.changes):
            raise UserError(
                "The points change nothing: the labels already agree with them.",
                "Choose a point in a part that is missing (--add) or wrong (--remove).",
            )
        report_progress(progress, 0.8, "Writing the corrected result")
        after = measured()
        corrected = session.image()
        write_image(corrected, temporary / f"labels{result.extension}")
        for path in sorted(result.folder.iterdir()):
            if path.is_file() and path.name.startswith(_KEPT):
                shutil.copy2(path, temporary / path.name)
                if path.name.startswith(_DOMINANT):
                    _clear_changed(temporary / path.name, read_labels(result.labels), corrected)
        written = Result(corrected, after, device="", warnings=[])
        write_tables(temporary, written)
        if also_write is not None:
            also_write(temporary, image, written)
        write_text(_log(result, session), temporary / "log.txt")
        write_json(_record(result, session, strokes, locked), temporary / REQUEST)
    report_progress(progress, 1.0, "Finished")
    return CorrectedResult(corrected, before, after, session.changes, result.vocabulary)


def find_organ(vocabulary: Vocabulary, key: str) -> Organ:
    """Return the organ with this key or name. Raises UserError if ``vocabulary`` does not have it."""
    normalized = key.strip().lower().replace(" ", "_")
    for organ in vocabulary:
        if normalized in (organ.key, organ.name.lower().replace(" ", "_")):
            return organ
    raise UserError(f"This result has no organ '{key}'.", f"Choose one of: {', '.join(vocabulary.by_key)}.")


def _find_vocabulary(folder: Path, named: str) -> Vocabulary:
    """Return the vocabulary of the labels: the one ``named``, or else the one that ``volumes.csv`` lists."""
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
        f"The organs of the labels in {folder} are unknown: volumes.csv is missing or not valid.",
        "Segment the CT again.",
    )


def _get_segmented_labels(result: ResultFolder, corrected: Collection[int]) -> frozenset[int] | None:
    """The labels that were segmented or are ``corrected`` now; None for all of the vocabulary."""
    options = result.record.get("options")
    names = options.get("organs") if isinstance(options, dict) else None
    if not isinstance(names, list):
        return None
    return frozenset((*(find_organ(result.vocabulary, str(name)).label for name in names), *corrected))


def _clear_changed(path: Path, before: sitk.Image, after: sitk.Image) -> None:
    """Set the map of the dominant expert to 0 where a correction changed the label: no expert decided there."""
    experts = read_labels(path)
    if experts.GetSize() != after.GetSize():
        # Written by an earlier version, on another grid.
        return
    unchanged = sitk.GetArrayViewFromImage(before) == sitk.GetArrayViewFromImage(after)
    array = np.where(unchanged, sitk.GetArrayViewFromImage(experts), np.uint8(0))
    write_image(Grid.from_image(experts).make_image(array), path)


def _get_uint8_labels(session: CorrectionSession) -> NDArray[np.uint8]:
    return session.labels.astype(np.uint8, copy=False)


def _record(
    result: ResultFolder, session: CorrectionSession, strokes: Sequence[OrganStroke], locked: Collection[str]
) -> Mapping[str, Any]:
    """Return the record of the result with this correction added."""
    ml = session.grid.volume_ml_per_voxel
    correction = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": str(result.folder.resolve()),
        "clicks": sum(1 for each in strokes if len(each.stroke.points) == 1),
        "scribbles": sum(1 for each in strokes if len(each.stroke.points) > 1),
        "locked": sorted(locked),
        "strokes": [
            {
                "organ": key,
                "adds": change.adds,
                "points_ras_mm": [list(point) for point in change.points],
                "engine": change.engine,
                "added_ml": round(change.added * ml, 4),
                "removed_ml": round(change.removed * ml, 4),
                "lost_by_others_ml": {
                    result.vocabulary.by_label[label].key if label in result.vocabulary.by_label else str(label): round(
                        voxels * ml, 4
                    )
                    for label, voxels in change.voxels_lost.items()
                },
                "seconds": round(change.seconds, 3),
            }
            for key, change in ((result.vocabulary.by_label[change.label].key, change) for change in session.changes)
        ],
    }
    options = result.record.get("options")
    kept = _get_segmented_labels(result, [change.label for change in session.changes])
    if isinstance(options, dict) and kept is not None:
        options = {**options, "organs": [organ.key for organ in result.vocabulary if organ.label in kept]}
    return {
        **result.record,
        **({"options": options} if options is not None else {}),
        "overwrite": False,
        CORRECTIONS: [*result.record.get(CORRECTIONS, []), correction],
    }


def _log(result: ResultFolder, session: CorrectionSession) -> str:
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
