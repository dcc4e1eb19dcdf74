"""The CT that a result folder was made from, as ``request.json`` records it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..dicom.archive import gathered
from ..dicom.ct_folder import CTSeries, find_one_ct, iter_cts
from ..errors import ImageError, UserError
from ..imaging.file_errors import exists
from ..imaging.grid import Grid
from ..imaging.intensity import compute_voxel_checksum
from ..imaging.readers import read_ct

_SAME_MM = 1e-3
_REMEDY = "Use --ct to specify the CT that was segmented, or segment this one."


def read_result_ct(record: Mapping[str, Any], result: Path, new_path: Path | None = None) -> sitk.Image:
    """Read the CT that the folder ``result`` was made from, the way it was read then.

    ``record`` is the content of its ``request.json``. ``new_path`` is the path of the CT if it was moved: a file or a
    folder of DICOM files, which may contain other series.

    Raises UserError if the CT is missing, or if it is another one than that of the result; ImageError if it cannot be
    read.
    """
    # What the user accepted for the segmentation holds for its result.
    resample = record.get("resample") is True
    if new_path is not None and new_path.is_dir():
        return _find_same_ct(new_path, record, result, resample)
    with _source(record, new_path) as (path, series):
        image = read_ct(path, series, notes=[], resample=resample)
    _require_same(image, record)
    return image


def _find_same_ct(folder: Path, record: Mapping[str, Any], result: Path, resample: bool) -> sitk.Image:
    """The CT in ``folder``, among several perhaps, that is the one in ``record``."""
    problems: list[UserError] = []
    for found in _find_candidates(folder, record, result, resample):
        try:
            with gathered(found.files, found.name) as gathered_folder:
                image = read_ct(gathered_folder, None, notes=[], resample=resample)
            _require_same(image, record)
        except UserError as error:
            problems.append(error)
        else:
            return image
    if len(problems) == 1:
        raise problems[0]
    raise UserError(f"{folder} does not contain the CT that was segmented.", _REMEDY)


def _find_candidates(folder: Path, record: Mapping[str, Any], result: Path, resample: bool) -> Iterable[CTSeries]:
    """The CTs in ``folder`` to compare with ``record``, the most likely ones first."""
    if isinstance(record.get("ct_checksum"), str):
        return sorted(iter_cts(folder, result, resample), key=lambda found: found.slices != _get_slice_count(record))
    # Without the checksum, two phases of an examination cannot be told apart, so there must be only one CT.
    try:
        return [find_one_ct(folder, None, result, resample=resample)]
    except ImageError as error:
        # The commands that read a result have no option to select a series.
        remedy = "Specify a folder with only that CT." if "--series" in error.remedy else error.remedy
        raise ImageError(error.problem, remedy) from None


def _get_slice_count(record: Mapping[str, Any]) -> int | None:
    """The recorded number of slices; None if there is none."""
    try:
        return int(record["ct_geometry"]["size"][2])
    except (TypeError, KeyError, IndexError, ValueError):
        return None


def get_ct_path(record: Mapping[str, Any]) -> Path:
    """The recorded path of the CT: a file, or the folder of the first slice. Raises UserError if there is none."""
    recorded = record.get("ct")
    if isinstance(recorded, list) and recorded and all(isinstance(each, str) for each in recorded):
        return Path(recorded[0]).parent
    if not isinstance(recorded, str):
        raise UserError("The result does not record its CT.", "Specify the CT with --ct.")
    return Path(recorded)


@contextmanager
def _source(record: Mapping[str, Any], new_path: Path | None) -> Iterator[tuple[Path, str | None]]:
    """Where to read the CT from, and which series of that folder."""
    recorded = record.get("ct")
    if new_path is not None:
        yield new_path, None
        return
    path = get_ct_path(record)
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
        same = recorded.is_same_as(Grid.from_image(image), _SAME_MM)
    except (TypeError, KeyError, ValueError):
        same = True
    if not same:
        raise UserError("The CT is not the one that was segmented: its geometry is different.", _REMEDY)
    checksum = record.get("ct_checksum")
    if isinstance(checksum, str) and checksum != compute_voxel_checksum(sitk.GetArrayViewFromImage(image)):
        raise UserError("The CT is not the one that was segmented: its voxels have changed.", _REMEDY)
