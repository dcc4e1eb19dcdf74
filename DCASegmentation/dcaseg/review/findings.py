"""Anatomical findings: islands, holes, and organs that are missing, cut, too large, too small or misplaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..inference.measurements import OrganMeasurement, compute_bounding_boxes
from ..organs import CUT_OFF, Organ
from ..types import Box
from . import normal_ranges
from .evidence import Evidence
from .regions import Mask, ReviewOptions, compute_bounding_box, expand_box, find_components, iter_components

# A piece below this share of the largest one is an error; a larger one may be the other half of the organ.
_MINOR_PIECE = 0.2
# An end whose cross-section is at least this share of the organ's largest one is a cut.
_FLAT_END = 0.5
_MIN_PLANES = 4
# Error probability from which the second most probable label is a candidate for a missing organ.
_CLOSE = 0.12


@dataclass(frozen=True)
class AnatomicalFinding:
    """Voxels that contradict the anatomy of ``organ``.

    ``kind`` is one of ``schema.KINDS``, ``text`` the reason without the organ's name. The voxels are ``mask`` within
    ``box`` (z, y, x) of the model grid; their error probability is at least ``error_probability``. ``suggestion`` is
    the label they should have, None if unknown. ``everywhere`` means that the reason applies to each region that
    consists mostly of these voxels, not only to the one that contains most of them.
    """

    organ: Organ
    kind: str
    text: str
    box: Box
    mask: Mask
    error_probability: float
    suggestion: int | None = None
    everywhere: bool = True


def summarize(findings: list[AnatomicalFinding], ml_per_voxel: float) -> str:
    """Return one text, with the organ's name, for ``findings`` of the same kind about the same organ."""
    organ, kind = findings[0].organ.name, findings[0].kind
    if len(findings) == 1:
        return f"{organ}: {findings[0].text}"
    ml = sum(np.count_nonzero(finding.mask) for finding in findings) * ml_per_voxel
    plural = {"island": "pieces separate from the rest of the organ", "hole": "holes in the organ"}.get(kind)
    if plural:
        return f"{organ}: {len(findings)} {plural}, {ml:.1f} ml in total."
    return f"{organ}: {' '.join(finding.text for finding in findings)}"


@dataclass
class AnatomicalFindings:
    """All anatomical findings of a label map.

    ``notes`` are notes on whole organs, by key. ``unusual`` are the keys of organs with an unusual volume or position.
    """

    findings: list[AnatomicalFinding] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    unusual: set[str] = field(default_factory=set)

    def note(self, organ: Organ, text: str) -> None:
        """Add a note on ``organ``."""
        self.notes.setdefault(organ.key, []).append(text)


def find(
    evidence: Evidence, grid: Grid, measurements: tuple[OrganMeasurement, ...], options: ReviewOptions, other_name: str
) -> AnatomicalFindings:
    """Check each organ of ``evidence``, which lies on ``grid``.

    ``measurements`` are those of the labels on the CT's grid. ``other_name`` names the other prediction in texts.
    """
    found = AnatomicalFindings()
    kept = [each for each in measurements if each.organ.label in evidence.kept]
    tight = compute_bounding_boxes(evidence.labels)
    boxes = {
        each.organ.key: expand_box(tight[each.organ.label], 1, evidence.labels.shape)
        if each.organ.label in tight
        else None
        for each in kept
    }
    reach_edge = {each.organ.key: each.cut_off for each in kept}
    centers = {
        each.organ.key: _center(evidence.labels[box] == each.organ.label, box, grid)
        for each in kept
        if (box := boxes[each.organ.key]) is not None
    }
    _check_positions(found, evidence, kept, boxes, centers, reach_edge, options)
    for each in kept:
        organ, box = each.organ, boxes[each.organ.key]
        if box is None:
            _check_missing(found, evidence, grid, organ, _is_beyond_scan(organ, centers, grid), options, other_name)
            continue
        if reach_edge[organ.key]:
            found.note(organ, f"{CUT_OFF[0].upper()}{CUT_OFF[1:]}.")
        _check_volume(found, evidence, each, box, reach_edge[organ.key], options, other_name)
        mask = evidence.labels[box] == organ.label
        found.findings += _find_islands(mask, box, organ, grid, options)
        found.findings += _find_holes(mask, evidence.labels[box] == 0, box, organ, grid, options)
        found.findings += _find_cut_ends(mask, box, organ, grid, options)
    return found


def _find_islands(
    mask: Mask, box: Box, organ: Organ, grid: Grid, options: ReviewOptions
) -> Iterator[AnatomicalFinding]:
    pieces, count = find_components(mask)
    if count < 2:
        return
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    apart = sizes > 0
    apart[sizes.argmax()] = False
    for piece, part, voxels in iter_components(pieces, apart):
        ml = sizes[piece] * grid.volume_ml_per_voxel
        minor = sizes[piece] < _MINOR_PIECE * sizes.max()
        text = f"a piece of {ml:.1f} ml separate from the rest of the organ."
        yield AnatomicalFinding(
            organ, "island", text, _offset_box(box, part), voxels, options.island if minor else options.island / 2,
            0 if minor else None,
        )  # fmt: skip


def _find_holes(
    mask: Mask, background: Mask, box: Box, organ: Organ, grid: Grid, options: ReviewOptions
) -> Iterator[AnatomicalFinding]:
    # Only faces connect background voxels, so a hole may be closed by corners of the organ.
    pieces, count = find_components(~mask, corners=False)
    edges = [pieces[index].ravel() for axis in range(3) for index in _iter_faces(axis)]
    closed = np.ones(count + 1, np.bool_)
    closed[0] = False
    closed[np.concatenate(edges)] = False
    for _, part, hole in iter_components(pieces, closed):
        if not background[part][hole].all():
            continue
        ml = np.count_nonzero(hole) * grid.volume_ml_per_voxel
        size = f"{ml:.1f} ml" if ml >= 0.05 else "less than 0.1 ml"
        text = f"a hole of {size} in the organ."
        yield AnatomicalFinding(organ, "hole", text, _offset_box(box, part), hole, options.hole, organ.label)


def _offset_box(box: Box, part: Box) -> Box:
    """Convert ``part``, a box within ``box``, to a box of the whole array."""
    z, y, x = (
        slice(outer.start + inner.start, outer.start + inner.stop) for outer, inner in zip(box, part, strict=True)
    )
    return z, y, x


def _iter_faces(axis: int) -> Iterator[tuple[slice | int, ...]]:
    for end in (0, -1):
        index: list[slice | int] = [slice(None)] * 3
        index[axis] = end
        yield tuple(index)


def _find_cut_ends(
    mask: Mask, box: Box, organ: Organ, grid: Grid, options: ReviewOptions
) -> Iterator[AnatomicalFinding]:
    """Find ends along z where the organ stops at half of its largest cross-section or more."""
    if organ.key in normal_ranges.TUBES:
        return
    areas = np.count_nonzero(mask, axis=(1, 2))
    planes = np.flatnonzero(areas)
    if len(planes) < _MIN_PLANES:
        return
    ends = ("lower", "upper") if grid.axes[2, 2] > 0 else ("upper", "lower")
    for plane, outward, word in ((planes[0], -1, ends[0]), (planes[-1], 1, ends[1])):
        # The end of the scan is not an error. There the box has no margin.
        if not 0 < box[0].start + plane < grid.shape[0] - 1 or areas[plane] < _FLAT_END * areas.max():
            continue
        end = np.zeros_like(mask)
        end[plane] = mask[plane]
        end[plane + outward] = mask[plane]
        text = f"its {word} end is flat: the last cross-section is at least half the size of the largest."
        yield AnatomicalFinding(organ, "cut", text, box, end, options.cut)


def _check_missing(
    found: AnatomicalFindings,
    evidence: Evidence,
    grid: Grid,
    organ: Organ,
    is_beyond_scan: bool,
    options: ReviewOptions,
    other_name: str,
) -> None:
    low, high = organ.volume_ml
    # Each voxel has a second most probable label; it counts only where the first one is uncertain.
    close = (evidence.alternative == organ.label) & (evidence.error_probability >= _CLOSE * 255)
    for candidate, error_probability, everywhere, text in (
        (
            None if evidence.other is None else evidence.other == organ.label,
            options.missing,
            True,
            f"not found, but the {other_name} show {{ml:.1f}} ml of it here.",
        ),
        (close, options.missing / 2, False, "not found; this is its most probable position."),
    ):
        box = None if candidate is None else compute_bounding_box(candidate)
        if candidate is None or box is None:
            continue
        pieces, count = find_components(candidate[box])
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sizes[0] = 0
        mask = pieces == int(sizes.argmax())
        ml = float(sizes.max()) * grid.volume_ml_per_voxel
        if not everywhere:
            mask &= _make_peak_mask(np.where(mask, evidence.error_probability[box], 0), grid, options.max_extent_mm)
        found.findings.append(
            AnatomicalFinding(organ, "missing", text.format(ml=ml), box, mask, error_probability, everywhere=everywhere)
        )
        found.note(organ, f"Not found; the usual volume is {low:g} to {high:g} ml.")
        return
    why = "The scan probably does not reach it." if is_beyond_scan else "It may have been removed by surgery."
    found.note(organ, f"Not found anywhere; the usual volume is {low:g} to {high:g} ml. {why}")


def _is_beyond_scan(organ: Organ, centers: Mapping[str, np.ndarray], grid: Grid) -> bool:
    """Whether the scan probably ends before it reaches ``organ``, judged by the position of the organs that were found.

    Organs that the scan cuts off count as well: in a short scan there are no others.
    """
    expected = normal_ranges.compute_expected_centers(centers, frozenset(centers)).get(organ.key)
    heights = grid.get_corners()[:, 2]
    return expected is not None and not heights.min() <= expected[2] <= heights.max()


def _make_peak_mask(values: NDArray[np.uint8], grid: Grid, max_extent_mm: float) -> Mask:
    """Return the mask of a box with sides of ``max_extent_mm`` around the maximum of ``values`` (z, y, x)."""
    center = np.unravel_index(int(values.argmax()), values.shape)
    result = np.zeros(values.shape, np.bool_)
    half = [max(int(max_extent_mm / 2 / step), 1) for step in grid.spacing[::-1]]
    z, y, x = (slice(max(int(at) - reach, 0), int(at) + reach + 1) for at, reach in zip(center, half, strict=True))
    result[z, y, x] = True
    return result


def _check_volume(
    found: AnatomicalFindings,
    evidence: Evidence,
    measured: OrganMeasurement,
    box: Box,
    at_edge: bool,
    options: ReviewOptions,
    other_name: str,
) -> None:
    organ = measured.organ
    low, high = organ.volume_ml
    if low <= measured.ml <= high or (measured.ml < low and at_edge):
        return
    found.unusual.add(organ.key)
    side = "below" if measured.ml < low else "above"
    found.note(organ, f"{measured.ml:.1f} ml is {side} the usual range of {low:g} to {high:g} ml.")
    own = evidence.labels[box] == organ.label
    if measured.ml < low:
        mask = own if evidence.other is None else own | (evidence.other[box] == organ.label)
        size = f"{measured.ml:.1f} ml, smaller than usual ({low:g} to {high:g} ml)"
        text = f"{size}: either only part of it was found, or this is another organ."
    elif evidence.other is None:
        return
    else:
        mask = own & (evidence.other[box] != organ.label)
        text = f"{measured.ml:.1f} ml, larger than usual ({low:g} to {high:g} ml); the {other_name} show less."
    if mask.any():
        found.findings.append(AnatomicalFinding(organ, "volume", text, box, mask, options.volume))


def _check_positions(
    found: AnatomicalFindings,
    evidence: Evidence,
    kept: list[OrganMeasurement],
    boxes: dict[str, Box | None],
    centers: dict[str, np.ndarray],
    at_edge: dict[str, bool],
    options: ReviewOptions,
) -> None:
    usual = frozenset(
        each.organ.key for each in kept if each.organ.key in centers and not each.note and not at_edge[each.organ.key]
    )
    for each in kept:
        organ, box = each.organ, boxes[each.organ.key]
        if box is None or at_edge[organ.key]:
            continue
        # The organ itself does not count for its own expected position.
        expected = normal_ranges.compute_expected_centers(centers, usual - {organ.key}).get(organ.key)
        if expected is None or not normal_ranges.is_far(organ.key, centers[organ.key], expected):
            continue
        distance = float(np.linalg.norm(centers[organ.key] - expected))
        found.unusual.add(organ.key)
        found.note(organ, f"Its center lies {distance:.0f} mm from the position expected from the other organs.")
        text = f"lies {distance:.0f} mm from the position expected from the other organs."
        mask = evidence.labels[box] == organ.label
        found.findings.append(AnatomicalFinding(organ, "position", text, box, mask, options.position))


def _center(mask: Mask, box: Box, grid: Grid) -> np.ndarray:
    """Return the center of gravity in mm (LPS) of the voxels of ``mask`` in ``box`` of ``grid``."""
    index = np.argwhere(mask).mean(axis=0) + [part.start for part in box]
    return np.array(grid.origin) + grid.axes @ (index[::-1] * np.array(grid.spacing))
