"""Does a result look like the organs of an abdomen that lies as the header of the CT says?

A CT whose header is wrong (axes flipped or swapped, a wrong spacing) is segmented like any other. What comes out shows
it: organs on the wrong side of each other, or most of them of sizes that they do not have.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid, canonical_view
from ..organs import Vocabulary

# An organ says something only if at least this share of its smallest usual volume was found.
_FOUND_SHARE = 0.3
# Sizes are judged with this much room beyond the usual range, of at least so many organs.
_SIZE_ROOM = 1.5
_FEWEST_ORGANS = 4

# (organ, other, axis in LPS, what the reverse looks like, mm that the centers must differ by): along the axis the first
# lies at the smaller coordinate. x runs to the patient's left, y to the back, z to the head.
_ORDER = (
    ("liver", "spleen", 0, "the liver lies left of the spleen", 20.0),
    ("right_kidney", "left_kidney", 0, "the right kidney lies left of the left one", 20.0),
    ("liver", "left_kidney", 0, "the liver lies left of the left kidney", 20.0),
    ("right_kidney", "spleen", 0, "the right kidney lies left of the spleen", 20.0),
    ("bladder", "right_kidney", 2, "the bladder lies above the kidneys", 20.0),
    ("bladder", "left_kidney", 2, "the bladder lies above the kidneys", 20.0),
    ("bladder", "liver", 2, "the bladder lies above the liver", 20.0),
    ("right_kidney", "liver", 2, "the right kidney lies above the liver", 40.0),
    ("left_kidney", "spleen", 2, "the left kidney lies above the spleen", 40.0),
    ("pancreas", "left_kidney", 1, "the pancreas lies behind the left kidney", 15.0),
    ("stomach", "left_kidney", 1, "the stomach lies behind the left kidney", 15.0),
    ("bladder", "prostate_uterus", 1, "the bladder lies behind the prostate or uterus", 30.0),
)
# The axis (x, y, z in LPS) that an organ extends along most, where the scan shows enough of it.
_LONG = (("aorta", 2, "the aorta does not run from head to feet"),)
_LONGEST_RATIO = 1.5
# The kidneys are further apart from side to side than in any other direction; one that has sunk leaves some room.
_MOST_BESIDE_RATIO = 1.3
# Right minus left, of both: 0.15 to 0.24 in true CTs, -0.13 to -0.18 in mirrored ones.
_CLEARLY_FULLER = 0.06
_BODY_HU = -300.0
_SOFT_HU = (0.0, 200.0)


def implausible(
    labels: NDArray[np.uint8],
    grid: Grid,
    vocabulary: Vocabulary,
    asked_for: Collection[int] | None = None,
    hu: NDArray[np.generic] | None = None,
) -> list[str]:
    """Notes on the case as a whole, at most one on places and one on sizes; none where nothing is unusual.

    ``labels`` (z, y, x) lie on ``grid``, as do the values ``hu`` of the CT, where they are given. ``asked_for`` are the
    labels that were to be segmented, all of the vocabulary's where not given.
    """
    counts, centers, spreads = _moments(labels, grid, len(vocabulary))
    ml = counts * grid.volume_ml_per_voxel
    cut = _cut_off(labels, grid, len(vocabulary))
    organs = [organ for organ in vocabulary if asked_for is None or organ.label in asked_for]
    present = {organ.key: organ.label for organ in organs if ml[organ.label] >= _FOUND_SHARE * organ.volume_ml[0]}
    notes = []
    wrong = [
        text
        for one, other, axis, text, least in _ORDER
        if one in present
        and other in present
        and centers[present[one], axis] > centers[present[other], axis] + least
        # Of an organ that the scan cuts off, the height of the center says little.
        and not (axis == 2 and (cut[present[one]] or cut[present[other]]))
    ]
    for key, axis, text in _LONG:
        if key in present:
            spread = spreads[present[key]]
            others = [spread[each] for each in range(3) if each != axis]
            if max(others) > _LONGEST_RATIO * spread[axis]:
                wrong.append(text)
    kidneys = [present.get(key) for key in ("right_kidney", "left_kidney")]
    if kidneys[0] is not None and kidneys[1] is not None:
        apart = np.abs(centers[kidneys[0]] - centers[kidneys[1]])
        if max(apart[1:]) > _MOST_BESIDE_RATIO * apart[0]:
            wrong.append("the kidneys do not lie side by side")
    if hu is not None and "liver" in present and _left_is_fuller(labels, hu, grid, present["liver"]):
        wrong.append("at the height of the liver there is more soft tissue on the left than on the right")
    if wrong:
        found = "; ".join(dict.fromkeys(wrong))
        notes.append(
            f"The result does not look like an abdomen as the header says it lies: {found}. Check the orientation of "
            "the CT (flipped or swapped axes?)."
        )
    judged = [organ for organ in organs if counts[organ.label] and not cut[organ.label]]
    odd = [
        organ
        for organ in judged
        if not organ.volume_ml[0] / _SIZE_ROOM <= ml[organ.label] <= organ.volume_ml[1] * _SIZE_ROOM
    ]
    if len(judged) >= _FEWEST_ORGANS and 2 * len(odd) > len(judged):
        notes.append(
            f"{len(odd)} of {len(judged)} organs have volumes far from an adult's: check that the image is a CT of an "
            "adult's abdomen, and its spacing and orientation."
        )
    return notes


def _left_is_fuller(labels: NDArray[np.uint8], hu: NDArray[np.generic], grid: Grid, liver: int) -> bool:
    """Whether the half of the body in which the liver should be holds clearly less soft tissue than the other.

    A network that has learned where organs lie finds them on the usual sides in a mirrored CT, too; the CT does not.
    """
    where = canonical_view(labels, grid, "RAS") == liver
    areas = where.sum(axis=(1, 2))
    planes = np.arange(len(areas))
    middle = float((planes * areas).sum() / areas.sum())
    spread = float(np.sqrt((areas * (planes - middle) ** 2).sum() / areas.sum()))
    part = canonical_view(hu, grid, "RAS")[max(0, int(middle - spread)) : int(middle + spread) + 1]
    profile = np.cumsum((part > _BODY_HU).sum(axis=(0, 1)))
    if profile[-1] == 0:
        return False
    # The 2nd and the 98th percentile, for the sake of tables and arms.
    first, last = (float(np.interp(share * profile[-1], profile, np.arange(len(profile)))) for share in (0.02, 0.98))
    soft = ((part > _SOFT_HU[0]) & (part < _SOFT_HU[1])).sum(axis=(0, 1))
    center = int((first + last) / 2)
    # The index grows to the patient's right.
    left, right = float(soft[:center].sum()), float(soft[center + 1 :].sum())
    return left + right > 0 and (right - left) / (right + left) < -_CLEARLY_FULLER


def _moments(
    labels: NDArray[np.uint8], grid: Grid, organs: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """For each label 0 to ``organs``: voxels, center in mm (LPS), and standard deviations along x, y, z in mm."""
    size = organs + 1
    counts = np.zeros(size, np.int64)
    sums, squares = np.zeros((size, 3)), np.zeros((size, 3))
    to_mm = grid.axes * np.array(grid.spacing)
    # Slice by slice: the indices of a whole volume would take many times its memory.
    for z, plane in enumerate(labels):
        y, x = np.nonzero(plane)
        if not len(x):
            continue
        found = plane[y, x]
        points = np.stack([x, y, np.full_like(x, z)], axis=1) @ to_mm.T
        counts += np.bincount(found, minlength=size)[:size]
        for axis in range(3):
            sums[:, axis] += np.bincount(found, points[:, axis], size)[:size]
            squares[:, axis] += np.bincount(found, points[:, axis] ** 2, size)[:size]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts[:, None]
        spreads = np.sqrt(np.maximum(squares / counts[:, None] - means**2, 0.0))
    return counts, means + np.array(grid.origin), spreads


def _cut_off(labels: NDArray[np.uint8], grid: Grid, organs: int) -> NDArray[np.bool_]:
    """For each label whether it reaches the first or last plane along the patient's long axis."""
    axis = int(np.argmax(np.abs(grid.axes[2])))
    array_axis = 2 - axis
    cut = np.zeros(organs + 1, bool)
    for index in (0, labels.shape[array_axis] - 1):
        cut[np.unique(labels.take(index, array_axis))] = True
    return cut
