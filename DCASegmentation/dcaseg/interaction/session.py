"""Correction sessions: a CT, its labels, and the strokes that correct them, with undo.

    session = CorrectionSession(ct, labels, {10: "pancreas"})
    change = session.apply(10, Stroke(((-12, 40, 95),)))
    session.undo()

``session_requests`` serves sessions to a warm process.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..errors import UserError
from ..imaging.grid import Grid
from ..imaging.intensity import compute_voxel_checksum
from ..organs import get_typical_volume
from ..types import Box
from .click_classifier import LARGE_ADDING_MM, ClassifierEngine
from .continuation import find_next_points
from .evidence import compute_ball_radius
from .strokes import Point, Stroke, is_between_corners, is_inside_box, make_box_around, make_box_from_corners, rasterize
from .view import (
    Engine,
    View,
    ViewStroke,
    compute_signed_distance,
    compute_strides,
    compute_view_strides,
    crop_grid,
    downsample,
    downsample_grid,
    resample_mask_to_ct,
)

BOX_MM = 96.0
"""Side of the block around a stroke, in mm. Nothing outside of it changes, unless the user draws a box or the organ has
no mask there."""

# A missing organ is followed into at most this many further blocks.
_MAX_CONTINUED = 4
# The voxels on which missing organs are found and followed. Smaller organs are found on those of other clicks.
_COARSE_MM = 2.5
_FINE_ML = 100.0
# An organ is followed until it has its usual volume, or its mask has grown this many times.
_MAX_GROWTH = 2.0

_AIR_HU = -500.0
# Organs that may contain gas, so that a click into air is valid.
_HOLLOW = frozenset({"esophagus", "stomach", "duodenum", "bowel", "small_bowel", "colon", "rectum"})
# An adding and a removing stroke that are closer than this contradict each other.
_CONTRADICTION_MM = 2.0
# The radius at the middle of a missing organ, as a share of the shortest side of the box around it. Larger shares leak
# into neighbors in the box.
_SHARE_OF_BOX = 0.2


@dataclass(frozen=True)
class Change:
    """The effect of one stroke.

    ``label``: that of the organ. ``adds``: whether the stroke adds to the organ. ``points``: RAS, mm.
    ``box``: the block (z, y, x) in which voxels may have changed; ``before``: the labels in it before the stroke.
    ``added``, ``removed``: number of voxels that the organ gained and lost.
    ``voxels_lost``: number of voxels that other segments lost to the organ, by label.
    ``engine``: name of the engine. ``seconds``: time taken.
    """

    label: int
    adds: bool
    points: tuple[Point, ...]
    box: Box
    before: NDArray[np.integer] = field(repr=False)
    added: int
    removed: int
    voxels_lost: Mapping[int, int]
    engine: str
    seconds: float

    @property
    def changed(self) -> int:
        """Number of voxels whose label changed."""
        return self.added + self.removed


@dataclass
class _VoxelStroke:
    """The voxels (n, 3) of a stroke for an organ."""

    label: int
    adds: bool
    voxels: NDArray[np.int64]
    radius_mm: float | None = None


class CorrectionSession:
    """Corrects the labels of one CT, stroke by stroke, with undo.

    ``ct`` (HU) and ``labels`` (0 is background) are 3D images on the same grid. Neither is changed: ``labels`` is
    copied. ``names`` are organ keys by label, for messages and to know which organs may contain gas. ``titles`` are the
    names of segments by label, for messages, and may be any text. ``locked`` are labels whose voxels never change.
    ``checksum`` is the ``imaging.intensity.compute_voxel_checksum`` of the CT that was segmented.

    Raises UserError if the images lie on different grids, or if ``ct`` is not the CT that was segmented.
    """

    def __init__(
        self,
        ct: sitk.Image,
        labels: sitk.Image,
        names: Mapping[int, str] | None = None,
        locked: Collection[int] = (),
        engine: Engine | None = None,
        checksum: str | None = None,
        titles: Mapping[int, str] | None = None,
    ) -> None:
        self.grid = Grid.from_image(ct)
        if not Grid.from_image(labels).is_same_as(self.grid):
            raise UserError(
                "The segmentation does not lie on the CT's grid.",
                "Resample it to the CT, or harden the transform it is under, and try again.",
            )
        self._hu = sitk.GetArrayViewFromImage(ct)
        if checksum is not None and compute_voxel_checksum(self._hu) != checksum:
            raise UserError(
                "The CT is not the one that was segmented: its voxels have changed.",
                "Segment it again, or use the original CT.",
            )
        self._ct = ct
        self._labels = sitk.GetArrayFromImage(labels)
        self._first = sitk.GetArrayViewFromImage(labels)
        # Keeps the image alive, whose memory the array above views.
        self._first_image = labels
        self._names = dict(names or {})
        self._titles = dict(titles or {})
        self._locked = frozenset(locked)
        self._engine: Engine = engine or ClassifierEngine()
        self._placed: list[_VoxelStroke] = []
        self._changes: list[Change] = []
        # Made when it is needed first.
        self._coarse_ct: tuple[tuple[int, int, int], sitk.Image] | None = None

    @property
    def labels(self) -> NDArray[np.integer]:
        """The current labels (z, y, x), a read-only view."""
        view = self._labels.view()
        view.flags.writeable = False
        return view

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes in order, without those that were undone."""
        return tuple(self._changes)

    def image(self) -> sitk.Image:
        """Return a copy of the corrected labels as an image on the CT's grid."""
        return self.grid.make_image(self._labels.copy())

    def lock(self, labels: Iterable[int]) -> None:
        """Lock these labels too, for instance organs that the user has accepted."""
        self._locked |= set(labels)

    def apply(self, label: int, stroke: Stroke, corners: tuple[Point, Point] | None = None) -> Change:
        """Correct the organ ``label`` with ``stroke``.

        Nothing changes outside the box with opposite ``corners`` (RAS, mm); None means a block of 96 mm around the
        stroke, or larger for a longer stroke. Earlier strokes for the organ remain in effect. A stroke that agrees with
        the mask changes nothing, but constrains later ones. Raises UserError for an invalid stroke; then nothing
        changes.
        """
        start = time.perf_counter()
        voxels = rasterize(stroke.points, self.grid)
        box = (
            make_box_around(voxels, self.grid, BOX_MM) if corners is None else make_box_from_corners(corners, self.grid)
        )
        adds = self._adds(label, voxels, stroke.add)
        self._check(label, voxels, adds, box)
        before = self._labels[box].copy()
        placed = _VoxelStroke(label, adds, voxels)
        in_organ = self._labels[tuple(voxels.T)] == label
        # A stroke that agrees with the mask confirms it: it is recorded, and nothing else happens.
        if (in_organ == adds).all():
            after = before
        else:
            after = self._correct_labels(placed, box, corners is not None)
            missing = not (before == label).any()
            if corners is None and (missing or (adds and self._is_large(placed))):
                box, after = self._follow_ends(placed, box, after, missing)
                before = self._labels[box].copy()
            if corners is not None:
                # On an oblique CT, the block of voxels is larger than the box.
                after = np.where(is_between_corners(corners, self.grid, box), after, before)
        found, organ = after == label, before == label
        taken = before[found & ~organ]
        lost, counts = np.unique(taken[taken != 0], return_counts=True)
        change = Change(
            label=label,
            adds=adds,
            points=stroke.points,
            box=box,
            before=before,
            added=int(np.count_nonzero(found & ~organ)),
            removed=int(np.count_nonzero(organ & ~found)),
            voxels_lost={int(other): int(count) for other, count in zip(lost, counts, strict=True)},
            engine=self._engine.name,
            seconds=time.perf_counter() - start,
        )
        # Not earlier: an error above must leave the session unchanged.
        self._labels[box] = after
        self._placed.append(placed)
        self._changes.append(change)
        return change

    def undo(self) -> Change:
        """Undo the last stroke exactly, and return its change. Raises UserError if there is no stroke."""
        if not self._changes:
            raise UserError("There is no click to undo.", "Click first.")
        change = self._changes.pop()
        self._placed.pop()
        self._labels[change.box] = change.before
        return change

    def name_of(self, label: int) -> str:
        """Return the name of ``label`` in messages."""
        title = self._titles.get(label)
        return title if title is not None else self._names.get(label, f"segment {label}").replace("_", " ")

    def _adds(self, label: int, voxels: NDArray[np.int64], add: bool | None) -> bool:
        if add is not None:
            return add
        hits = self._labels[tuple(voxels.T)] == label
        return bool(np.count_nonzero(hits) * 2 < len(hits))

    def _check(self, label: int, voxels: NDArray[np.int64], adds: bool, box: Box) -> None:
        name = self.name_of(label)
        highest = np.iinfo(self._labels.dtype).max if np.issubdtype(self._labels.dtype, np.integer) else 0
        if not 1 <= label <= highest:
            raise UserError(f"Segment {label} does not exist.", f"Labels range from 1 to {highest}.")
        if label in self._locked:
            raise UserError(
                f"The {name} is locked or accepted, so nothing was changed.",
                "Undo its acceptance, or omit it from --lock.",
            )
        if not is_inside_box(voxels, box).all():
            raise UserError("A point lies outside the box.", "Draw the box around all of the points.")
        at = tuple(voxels.T)
        if not adds and not (self._labels[box] == label).any():
            raise UserError(f"There is no {name} near this point to remove.", "Click to add it first.")
        if adds:
            locked = set(np.unique(self._labels[at]).tolist()) & self._locked
            if locked:
                raise UserError(
                    f"The point lies in the {self.name_of(min(locked))}, which is locked or accepted.",
                    "Undo its acceptance or omit it from --lock, or click elsewhere.",
                )
            self._require_tissue(label, voxels)
        self._require_no_contradiction(label, voxels, adds)

    def _require_tissue(self, label: int, voxels: NDArray[np.int64]) -> None:
        """Raise UserError if a point lies in air and the organ contains no gas."""
        # A segment that the user added may be anything, even a lung.
        if self._names.get(label) in (None, *_HOLLOW):
            return
        for z, y, x in voxels[:: max(1, len(voxels) // 16)]:
            around = self._hu[max(0, z - 1) : z + 2, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            if float(np.median(around)) < _AIR_HU:
                air_hu = float(self._hu[z, y, x])
                raise UserError(
                    f"The point lies in air ({air_hu:.0f} HU), but the {self.name_of(label)} contains no air.",
                    "Click into tissue.",
                )

    def _require_no_contradiction(self, label: int, voxels: NDArray[np.int64], adds: bool) -> None:
        steps = np.array(self.grid.spacing[::-1])
        for earlier in self._placed:
            if earlier.label != label or earlier.adds == adds:
                continue
            for voxel in voxels:
                distances = np.abs((earlier.voxels - voxel) * steps).max(axis=1)
                if float(distances.min()) < _CONTRADICTION_MM:
                    raise UserError(
                        f"The stroke contradicts an earlier one at this position in the {self.name_of(label)}.",
                        "Undo the earlier stroke first, or click farther away from it.",
                    )

    def _is_large(self, placed: _VoxelStroke) -> bool:
        """Whether the stroke ``placed``, which adds, is deep in a large error, more of which may be left."""
        expected_ml = get_typical_volume(self._names.get(placed.label))
        if placed.radius_mm is None or expected_ml is None:
            return False
        return LARGE_ADDING_MM <= placed.radius_mm <= compute_ball_radius(expected_ml)

    def _follow_ends(
        self, first: _VoxelStroke, box: Box, after: NDArray[np.integer], missing: bool
    ) -> tuple[Box, NDArray[np.integer]]:
        """Return the box and the labels in it after an organ that ends at the edge of ``box`` has been followed.

        ``first`` found the organ, or a large part of it, and ``after`` are the labels in ``box`` since then. Unless the
        organ was ``missing``, nothing changes outside of ``box``. Ends are followed on coarser voxels, which takes a
        fraction of the time.
        """
        label = first.label
        if get_typical_volume(self._names.get(label)) is None:
            return box, after
        coarse, strides = self._make_coarse_session(first, box, after)
        organ = coarse._labels == label
        coarse._follow(label, self._labels[_get_center_slices(self.grid, strides)] == label)
        followed = coarse._labels == label
        where = np.argwhere(followed != organ)
        if not len(where):
            return box, after
        # A voxel more on each side, because the border on the CT's voxels is interpolated.
        low, high = np.maximum(where.min(axis=0) - 1, 0), np.minimum(where.max(axis=0) + 2, organ.shape)
        seen = _make_box(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        part = _make_box(
            slice(side.start * step, size if side.stop == count else side.stop * step)
            for side, step, size, count in zip(seen, strides, self.grid.shape, organ.shape, strict=True)
        )
        whole = _make_box(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(part, box, strict=True))
        labels = self._labels[whole].copy()
        labels[_get_relative_slices(box, whole)] = after
        before = labels[_get_relative_slices(part, whole)]
        mask = before == label
        found = resample_mask_to_ct(
            followed[seen].astype(np.float32),
            *(organ[seen], crop_grid(coarse.grid, seen), mask, crop_grid(self.grid, part), strides),
        )
        labels[_get_relative_slices(part, whole)] = self._merge_mask(
            found, mask, before, (*self._select_strokes(label), first), part
        )
        return (whole, labels) if missing else (box, labels[_get_relative_slices(box, whole)])

    def _make_coarse_session(
        self, first: _VoxelStroke, box: Box, after: NDArray[np.integer]
    ) -> tuple[CorrectionSession, tuple[int, int, int]]:
        """Return this session on the voxels on which ends are followed, and how many of the CT's make one (z, y, x).

        Its labels are those after the stroke ``first``: ``after`` in ``box``.
        """
        if self._coarse_ct is None:
            z, y, x = compute_strides(self.grid, _COARSE_MM)
            self._coarse_ct = (z, y, x), sitk.BinShrink(self._ct, (x, y, z))
        strides, ct = self._coarse_ct
        grid = Grid.from_image(ct)
        labels = self._labels[_get_center_slices(self.grid, strides)].copy()
        # The voxels of ``box`` that are the centers of coarse ones.
        inner, outer = [], []
        for side, step, count in zip(box, strides, grid.shape, strict=True):
            start = -((step // 2 - side.start) // step)
            stop = min(-((step // 2 - side.stop) // step), count)
            outer.append(slice(start, stop))
            inner.append(slice(start * step + step // 2 - side.start, side.stop - side.start, step))
        target = labels[tuple(outer)]
        target[...] = after[tuple(inner)][tuple(slice(0, size) for size in target.shape)]
        coarse = CorrectionSession(ct, grid.make_image(labels), self._names, self._locked, self._engine)
        last = np.array(grid.shape) - 1
        coarse._placed = [
            replace(each, voxels=np.unique(np.minimum(each.voxels // strides, last), axis=0))
            for each in (*self._placed, first)
        ]
        return coarse, strides

    def _follow(self, label: int, before: NDArray[np.bool_]) -> None:
        """Follow the organ that the latest stroke found: each end as a click just beyond it would.

        ``before``: its mask (z, y, x) before that stroke.
        """
        expected_ml = get_typical_volume(self._names.get(label))
        assert expected_ml is not None
        max_ml = max(expected_ml, _MAX_GROWTH * np.count_nonzero(before) * self.grid.volume_ml_per_voxel)
        free = ~np.isin(self._labels, list(self._locked)) if self._locked else np.ones(self._labels.shape, bool)
        # For each step, the mask so far is the one before all strokes.
        self._first = self._labels
        latest = self._placed[-1]
        ends = [latest.voxels[len(latest.voxels) // 2]]
        for _ in range(_MAX_CONTINUED):
            organ = self._labels == label
            if np.count_nonzero(organ) * self.grid.volume_ml_per_voxel > max_ml:
                break
            ends = [*ends[1:], *find_next_points(organ, organ & ~before, self._hu, free, self.grid, ends[0])]
            ends = [end for end in ends if not organ[tuple(end)]]
            if not ends:
                break
            before, step = organ, _VoxelStroke(label, True, ends[0][None])
            box = make_box_around(step.voxels, self.grid, BOX_MM)
            self._labels[box] = self._correct_labels(step, box, False)
            self._placed.append(step)

    def _correct_labels(self, latest: _VoxelStroke, box: Box, is_drawn: bool) -> NDArray[np.integer]:
        """Return the labels in ``box`` after all strokes for an organ, of which ``latest`` is the last.

        ``is_drawn``: the user has drawn the box around the organ, so a missing organ is about as large as it.
        """
        label = latest.label
        grid = crop_grid(self.grid, box)
        before = self._labels[box]
        mask = before == label
        expected_ml = get_typical_volume(self._names.get(label))
        # The borders of a large organ, found with one click, are coarse anyway.
        is_coarse = expected_ml is not None and expected_ml >= _FINE_ML and not mask.any() and not is_drawn
        strides = compute_view_strides(grid, _COARSE_MM) if is_coarse else compute_view_strides(grid)
        view_grid = downsample_grid(grid, strides)
        coarse = downsample(mask, strides) > 0.5
        if mask.any() and not coarse.any():
            # Everything of the organ here is thinner than half a voxel of the view; it is not missing.
            coarse = downsample(mask, strides) > 0
        first = np.array([each.start for each in box])
        last = np.array(view_grid.shape) - 1

        def seen(placed: _VoxelStroke) -> NDArray[np.int64]:
            own = placed.voxels[is_inside_box(placed.voxels, box)] - first
            return np.unique(np.minimum(own // strides, last), axis=0)

        newest = seen(latest)
        if coarse.any():
            latest.radius_mm = float(np.abs(compute_signed_distance(coarse, view_grid.spacing)[tuple(newest.T)]).max())
        elif is_drawn:
            latest.radius_mm = _SHARE_OF_BOX * min(
                size * step for size, step in zip(grid.size, grid.spacing, strict=True)
            )
        earlier = [each for each in self._select_strokes(label) if is_inside_box(each.voxels, box).any()]
        view = View(
            grid=view_grid,
            hu=downsample(self._hu[box], strides),
            mask=coarse,
            first_mask=downsample(self._first[box] == label, strides) > 0.5,
            others=downsample((before != 0) & ~mask, strides) > 0.5,
            strokes=(*(ViewStroke(seen(each), each.adds, each.radius_mm) for each in earlier),
                     ViewStroke(newest, latest.adds, latest.radius_mm)),
            expected_ml=expected_ml,
        )  # fmt: skip
        found = resample_mask_to_ct(self._engine.predict_foreground(view), coarse, view_grid, mask, grid, strides)
        return self._merge_mask(_drop_opposite_change(found, mask, latest.adds), mask, before, (*earlier, latest), box)

    def _select_strokes(self, label: int) -> list[_VoxelStroke]:
        """Return the strokes so far that say where the organ ``label`` is or is not.

        A stroke that adds to another organ counts as one that removes from this organ.
        """
        return [
            replace(each, adds=each.adds and each.label == label)
            for each in self._placed
            if each.label == label or each.adds
        ]

    def _merge_mask(
        self,
        found: NDArray[np.bool_],
        mask: NDArray[np.bool_],
        before: NDArray[np.integer],
        strokes: Sequence[_VoxelStroke],
        box: Box,
    ) -> NDArray[np.integer]:
        """Return the labels in ``box`` if an organ was ``found`` there, all (z, y, x).

        The last of ``strokes`` is the organ's latest. They hold, and locked segments stay. ``mask``, ``before``: the
        organ's mask and the labels before.
        """
        start = np.array([each.start for each in box])
        for each in strokes:
            found[tuple((each.voxels[is_inside_box(each.voxels, box)] - start).T)] = each.adds
        if self._locked:
            found = np.where(np.isin(before, list(self._locked)), mask, found)
        return np.where(found, strokes[-1].label, np.where(mask, 0, before)).astype(before.dtype)


def _make_box(sides: Iterable[slice]) -> Box:
    z, y, x = sides
    return z, y, x


def _get_center_slices(grid: Grid, strides: tuple[int, int, int]) -> tuple[slice, ...]:
    """Return the index of the voxels in the middle of blocks of ``strides`` (z, y, x), without incomplete blocks."""
    return tuple(slice(step // 2, size // step * step, step) for size, step in zip(grid.shape, strides, strict=True))


def _get_relative_slices(inner: Sequence[slice], outer: Sequence[slice]) -> tuple[slice, ...]:
    """Return the index of the box ``inner`` within the box ``outer``."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))


def _drop_opposite_change(found: NDArray[np.bool_], mask: NDArray[np.bool_], adds: bool) -> NDArray[np.bool_]:
    """Return ``found``, or only its change in the direction of the stroke if the opposite change is larger.

    An engine may move the whole border of the organ, but a click that adds must not remove most of it.
    """
    grown, shrunk = found & ~mask, mask & ~found
    wanted, counter = (grown, shrunk) if adds else (shrunk, grown)
    if np.count_nonzero(counter) <= np.count_nonzero(wanted):
        return found
    return mask | grown if adds else mask & ~shrunk
