"""A written DICOM SEG read back and compared with the labels it came from, voxel by voxel, where they lie in space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import SimpleITK as sitk

from ..errors import OutputError
from ..organs import Vocabulary
from .segmentation import Algorithm, write_segmentation

_SAME_MM = 0.01


def write_checked(
    path: Path,
    slices: Sequence[Path],
    labels: sitk.Image,
    vocabulary: Vocabulary,
    algorithm: Algorithm,
    pseudonym: str = "",
) -> None:
    """As ``segmentation.write_segmentation``, and compared with ``labels``. Raises OutputError where they differ; then
    there is no file."""
    write_segmentation(path, slices, labels, vocabulary, algorithm, pseudonym)
    try:
        require_same_voxels(path, labels, vocabulary)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def require_same_voxels(path: Path, labels: sitk.Image, vocabulary: Vocabulary) -> None:
    """Raises OutputError unless the DICOM SEG at ``path`` holds exactly ``labels`` (uint8), each voxel in its place."""
    segmentation = hd.seg.segread(path)
    keys = {number: segmentation.get_segment_description(number).tracking_id for number in _numbers(segmentation)}
    label_of = np.zeros(256, dtype=np.uint8)
    for number, key in keys.items():
        label_of[number] = vocabulary.by_key[str(key)].label
    volume = segmentation.get_volume(combine_segments=True, dtype=np.uint8)
    expected = sitk.GetArrayViewFromImage(labels)
    seen = np.zeros(len(expected), dtype=bool)
    columns, rows = labels.GetSize()[:2]
    for index, plane in enumerate(volume.array):
        corners = [volume.affine @ (index, *corner, 1.0) for corner in ((0, 0), (0, columns - 1), (rows - 1, 0))]
        there = np.array([labels.TransformPhysicalPointToContinuousIndex(corner[:3].tolist()) for corner in corners])
        z = round(float(there[0, 2]))
        told = np.array([(0, 0, z), (columns - 1, 0, z), (0, rows - 1, z)])
        off_mm = float(np.abs((there - told) * labels.GetSpacing()).max())
        if off_mm > _SAME_MM or not 0 <= z < len(expected) or not np.array_equal(label_of[plane], expected[z]):
            raise _differs(path)
        seen[z] = True
    if expected[~seen].any():
        raise _differs(path)


def _numbers(segmentation: hd.seg.Segmentation) -> range:
    return range(1, segmentation.number_of_segments + 1)


def _differs(path: Path) -> OutputError:
    return OutputError(f"{path.name} read back differs from the labels.", "Report this, with the header of the CT.")
