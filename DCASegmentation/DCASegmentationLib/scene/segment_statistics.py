"""Volume and mean HU of every current segment, including corrections, and the table of them as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer.util

from dcaseg.imaging.scan_edges import ScanEdges
from dcaseg.organs import CUT_OFF, VOCABULARIES
from DCASegmentationLib.scene.segmentation import get_layers

_HEADER = ("organ", "name", "ml", "mean_hu", "voxels", "note")
_ORGANS = {organ.key: organ for vocabulary in VOCABULARIES.values() for organ in vocabulary}


@dataclass(frozen=True)
class SegmentStatistics:
    """The measurements of one segment on the CT's grid.

    ``mean_hu`` is None for a segment without voxels. ``cut_off`` is true if the segment reaches an end of the scan, so
    that its volume is a lower bound.
    """

    segment_id: str
    name: str
    voxels: int
    ml: float
    mean_hu: float | None
    cut_off: bool = False

    @property
    def shown_ml(self) -> str:
        """The volume as shown in a table, marked as a lower bound if the scan cuts off the organ."""
        return f"\N{GREATER-THAN OR EQUAL TO} {self.ml:.1f}" if self.cut_off else f"{self.ml:.1f}"

    @property
    def note(self) -> str:
        """How the volume compares with the usual range of adults; empty within it and for segments added by hand."""
        if self.voxels == 0:
            return "empty"
        organ = _ORGANS.get(self.segment_id)
        if organ is None:
            return CUT_OFF if self.cut_off else ""
        return organ.note(self.voxels, self.ml, self.cut_off)


def measure_segments(segmentation: Any, ct: Any) -> list[SegmentStatistics]:
    """Measure every segment of a vtkMRMLSegmentationNode on the grid of the CT node, in segment order.

    The volume of a segment is its number of voxels on that grid times the voxel volume; its mean HU is that of these
    voxels.
    """
    values: dict[str, np.ndarray] = {}
    array = slicer.util.arrayFromVolume(ct)
    edges = ScanEdges(array, ct.GetSpacing())
    cut_off: set[str] = set()
    for layer in get_layers(segmentation, ct):
        values |= layer.get_values_by_segment(array)
        whole = np.zeros(array.shape, layer.labels.dtype)
        whole[layer.box] = layer.labels
        cut_off |= {layer.segments[label] for label in edges.find_truncated_labels(whole) if label in layer.segments}
    ml_per_voxel = float(np.prod(ct.GetSpacing())) / 1000.0
    content = segmentation.GetSegmentation()
    none = np.empty(0)
    return [
        _compute_statistics(
            segment_id,
            content.GetSegment(segment_id).GetName(),
            values.get(segment_id, none),
            ml_per_voxel,
            segment_id in cut_off,
        )
        for segment_id in content.GetSegmentIDs()
    ]


def as_text(rows: Iterable[SegmentStatistics], delimiter: str = ",") -> str:
    """The table as text with a header line: CSV, or separated by tabs for pasting into a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(_HEADER)
    for row in rows:
        hu = "" if row.mean_hu is None else f"{row.mean_hu:.1f}"
        writer.writerow((row.segment_id, row.name, f"{row.ml:.3f}", hu, row.voxels, row.note))
    return text.getvalue()


def _compute_statistics(
    segment_id: str, name: str, values: np.ndarray, ml_per_voxel: float, reaches_end: bool
) -> SegmentStatistics:
    mean = float(values.mean(dtype=np.float64)) if len(values) else None
    ml = len(values) * ml_per_voxel
    organ = _ORGANS.get(segment_id)
    is_cut = reaches_end and not (organ is not None and organ.is_stray(ml))
    return SegmentStatistics(segment_id, name, len(values), ml, mean, is_cut)
