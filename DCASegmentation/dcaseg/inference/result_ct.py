"""The CT that a result folder was made from, as ``request.json`` records it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..dicom.archive import gathered
from ..dicom.ct_folder import find_one_ct
from ..errors import UserError
from ..imaging.file_errors import exists
from ..imaging.grid import Grid
from ..imaging.intensity import voxel_checksum
from ..imaging.readers import read_ct

_SAME_MM = 1e-3
_REMEDY = "Specify the CT that the result was made from with --ct, or segment this one."


def read_result_ct(record: Mapping[str, Any], result: Path, new_path: Path | None = None) -> sitk.Image:
    """Read the CT that the folder ``result`` was made from, the way it was read then.

    ``record`` is the content of its ``request.json``. ``new_path`` is the path of the CT if it was moved: a file or a
    folder of DICOM files.

    Raises UserError if the CT is missing, or if it is another one than that of the result; ImageError if it cannot be
    read.
    """
    with _source(record, result, new_path) as (path, series):
        # What the user accepted for the segmentation holds for its result.
        image = read_ct(path, series, notes=[], resample=record.get("resample") is True)
    _require_same(image, record)
    return image


def path_of(record: Mapping[str, Any]) -> Path:
    """The recorded path of the CT: a file, or the folder of the first slice. Raises UserError if there is none."""
    recorded = record.get("ct")
    if isinstance(recorded, list) and recorded and all(isinstance(each, str) for each in recorded):
        return Path(recorded[0]).parent
    if not isinstance(recorded, str):
        raise UserError("The result does not record its CT.", "Specify the CT with --ct.")
    return Path(recorded)


@contextmanager
def _source(record: Mapping[str, Any], result: Path, new_path: Path | None) -> Iterator[tuple[Path, str | None]]:
    """Where to read the CT from, and which series of that folder."""
    recorded = record.get("ct")
    if new_path is not None and new_path.is_dir():
        found = find_one_ct(new_path, None, result, resample=record.get("resample") is True)
        with gathered(found.files, found.name) as folder:
            yield folder, None
        return
    if new_path is not None:
        yield new_path, None
        return
    path = path_of(record)
    files = [Path(each) for each in recorded] if isinstance(recorded, list) else []
    if not all(map(exists, files or [path])):
        raise UserError(f"The CT of this result is no longer at {path}.", "Specify its new path with --ct.")
    if files:
        # Its folder may contain other series, or only a part of the slices.
        with gathered(files, path.name) as folder:
            yield folder, None
        return
    series = record.get("series")
    yield path, series if path.is_dir() and isinstance(series, str) else None


def _require_same(image: sitk.Image, record: Mapping[str, Any]) -> None:
    """Raise UserError if ``image`` is not the CT in ``record``. Records of earlier versions may lack the details."""
    stated: Any = record.get("ct_geometry")
    try:
        recorded = Grid(*(tuple(stated[key]) for key in ("size", "spacing_mm", "origin_mm", "direction")))
        same = recorded.same_as(Grid.of(image), _SAME_MM)
    except (TypeError, KeyError, ValueError):
        same = True
    if not same:
        raise UserError("The CT is not the one that was segmented: its geometry is different.", _REMEDY)
    checksum = record.get("ct_checksum")
    if isinstance(checksum, str) and checksum != voxel_checksum(sitk.GetArrayViewFromImage(image)):
        raise UserError("The CT is not the one that was segmented: its voxels have changed.", _REMEDY)
