"""Plausibility of a result: do the organs lie where the orientation in the CT's header puts them, with usual sizes?

A CT with a wrong header (axes flipped or swapped, wrong spacing) is segmented like any other. The result shows the
error: organs on the wrong side of each other, or unusual volumes of most organs.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ..imaging.grid import Grid, get_canonical_view
from ..organs import Vocabulary

# An organ is considered only if at least this share of its smallest usual volume was found.
_FOUND_SHARE = 0.3
# Tolerance factor on the usual range of volumes, and the number of organs needed to judge them.
_VOLUME_TOLERANCE = 1.5
_MIN_ORGANS = 4

# (organ, other organ, axis in LPS, text for the reverse order, tolerance in mm): along the axis the center of the first
# organ has the smaller coordinate. x points to the patient's left, y to the back, z to the head.
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
# (organ, axis along which it extends most, text if it does not); axes x, y, z in LPS.
_LONG = (("aorta", 2, "the aorta does not run from head to feet"),)
_MAX_ACROSS_RATIO = 1.5
# A kidney is longest from head to feet: (standard deviation along z) / (largest across) is 1.15 or more in our
# anatomies.
_MIN_KIDNEY_RATIO = 0.95
# No organ of an adult is longer than this in mm, except after a disease; two such organs mean a wrong spacing.
_MAX_LENGTH_MM = {
    "right_kidney": 200.0, "left_kidney": 200.0, "spleen": 230.0, "liver": 400.0, "gallbladder": 160.0,
    "bladder": 240.0,
}  # fmt: skip
_MIN_LONG = 2
# The length of an ellipsoid with a standard deviation of 1 along its axis.
_LENGTH_OF_DEVIATION = 2 * 5**0.5
# The kidneys lie farther apart from side to side than in any other direction; the ratio tolerates a low-lying kidney.
_KIDNEY_RATIO = 1.3
# (right - left) / (right + left) of the soft tissue is 0.15 to 0.24 in correct CTs, -0.13 to -0.18 in mirrored ones.
_MIN_ASYMMETRY = 0.06
# The liver only gives the level at which to compare the sides, so a part of it is enough: a short scan cuts it off, and
# in a mirrored CT little of it may be found.
_MIN_LIVER_ML = 50.0
_BODY_HU = -300.0
_SOFT_HU = (0.0, 200.0)


def check_plausibility(
    labels: NDArray[np.uint8],
    grid: Grid,
    vocabulary: Vocabulary,
    kept: Collection[int] | None = None,
    hu: NDArray[np.generic] | None = None,
) -> list[str]:
    """Return warnings about the whole case: at most one each on positions, lengths and volumes; empty if all is usual.

    ``labels`` (z, y, x) and the CT's values ``hu`` (z, y, x; optional) lie on ``grid``. ``kept`` are the labels that
    were segmented, None for all of the vocabulary.
    """
    counts, centers, spreads = _compute_moments(labels, grid, len(vocabulary))
    ml = counts * grid.volume_ml_per_voxel
    cut = _find_truncated_labels(labels, grid, len(vocabulary))
    organs = [organ for organ in vocabulary if kept is None or organ.label in kept]
    present = {organ.key: organ.label for organ in organs if ml[organ.label] >= _FOUND_SHARE * organ.volume_ml[0]}
    notes = []
    wrong = [
        text
        for one, other, axis, text, tolerance in _ORDER
        if one in present
        and other in present
        and centers[present[one], axis] > centers[present[other], axis] + tolerance
        # The height of the center means little if the scan cuts the organ off.
        and not (axis == 2 and (cut[present[one]] or cut[present[other]]))
    ]
    for key, axis, text in _LONG:
        if key in present:
            spread = spreads[present[key]]
            across = [spread[each] for each in range(3) if each != axis]
            if max(across) > _MAX_ACROSS_RATIO * spread[axis]:
                wrong.append(text)
    kidneys = [present.get(key) for key in ("right_kidney", "left_kidney")]
    if kidneys[0] is not None and kidneys[1] is not None:
        distance = np.abs(centers[kidneys[0]] - centers[kidneys[1]])
        if max(distance[1:]) > _KIDNEY_RATIO * distance[0]:
            wrong.append("the kidneys do not lie side by side")
        elif not any(cut[kidney] for kidney in kidneys) and all(
            spreads[kidney][2] < _MIN_KIDNEY_RATIO * max(spreads[kidney][:2]) for kidney in kidneys
        ):
            wrong.append("the kidneys are not longest from head to feet")
    liver = next((organ.label for organ in organs if organ.key == "liver" and ml[organ.label] >= _MIN_LIVER_ML), None)
    if hu is not None and liver is not None and _is_mirrored(labels, hu, grid, liver):
        wrong.append("at the level of the liver, the left side of the body has more soft tissue than the right")
    if wrong:
        problems = "; ".join(dict.fromkeys(wrong))
        notes.append(
            f"The result does not fit the orientation in the CT's header: {problems}. Check the orientation of the CT "
            "(flipped or swapped axes?)."
        )
    long = [
        (organ.name.lower(), mm)
        for organ in organs
        if organ.key in present
        and (mm := _LENGTH_OF_DEVIATION * float(max(spreads[organ.label]))) > _MAX_LENGTH_MM.get(organ.key, np.inf)
    ]
    if len(long) >= _MIN_LONG:
        listed = ", ".join(f"{name} {mm:.0f} mm" for name, mm in long)
        notes.append(
            f"Organs are longer than usual in adults ({listed}): check the spacing of the CT, especially the "
            "slice spacing."
        )
    if len(organs) >= _MIN_ORGANS and not any(counts[organ.label] for organ in organs):
        notes.append("No organ was found: check that the image is a CT of the abdomen, and check its spacing.")
    judged = [organ for organ in organs if counts[organ.label] and not cut[organ.label]]
    odd = [
        organ
        for organ in judged
        if not organ.volume_ml[0] / _VOLUME_TOLERANCE <= ml[organ.label] <= organ.volume_ml[1] * _VOLUME_TOLERANCE
    ]
    if len(judged) >= _MIN_ORGANS and 2 * len(odd) > len(judged):
        notes.append(
            f"{len(odd)} of {len(judged)} organs have volumes that are unusual in adults: check that the image is a CT "
            "of an adult's abdomen, and check its spacing and orientation."
        )
    return notes


def _is_mirrored(labels: NDArray[np.uint8], hu: NDArray[np.generic], grid: Grid, liver: int) -> bool:
    """Whether the right half of the body, where the liver belongs, has clearly less soft tissue than the left half.

    A network that has learned where organs lie finds them on the usual sides even in a mirrored CT. The CT's values do
    not depend on the network.
    """
    where = get_canonical_view(labels, grid, "RAS") == liver
    areas = where.sum(axis=(1, 2))
    planes = np.arange(len(areas))
    middle = float((planes * areas).sum() / areas.sum())
    spread = float(np.sqrt((areas * (planes - middle) ** 2).sum() / areas.sum()))
    part = get_canonical_view(hu, grid, "RAS")[max(0, int(middle - spread)) : int(middle + spread) + 1]
    profile = np.cumsum((part > _BODY_HU).sum(axis=(0, 1)))
    if profile[-1] == 0:
        return False
    # From the 2nd to the 98th percentile, so that the table and the arms have little influence.
    first, last = (float(np.interp(share * profile[-1], profile, np.arange(len(profile)))) for share in (0.02, 0.98))
    soft = ((part > _SOFT_HU[0]) & (part < _SOFT_HU[1])).sum(axis=(0, 1))
    center = int((first + last) / 2)
    # The index increases to the patient's right.
    left, right = float(soft[:center].sum()), float(soft[center + 1 :].sum())
    return left + right > 0 and (right - left) / (right + left) < -_MIN_ASYMMETRY


def _compute_moments(
    labels: NDArray[np.uint8], grid: Grid, organs: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """For each label 0 to ``organs``: number of voxels, center in mm (LPS), standard deviations along x, y, z in mm."""
    size = organs + 1
    counts = np.zeros(size, np.int64)
    sums, squares = np.zeros((size, 3)), np.zeros((size, 3))
    to_mm = grid.axes * np.array(grid.spacing)
    # Slice by slice: the indices of all voxels would take many times the memory of the volume.
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


def _find_truncated_labels(labels: NDArray[np.uint8], grid: Grid, organs: int) -> NDArray[np.bool_]:
    """For each label, whether it reaches the first or last plane along the patient's long axis."""
    axis = int(np.argmax(np.abs(grid.axes[2])))
    array_axis = 2 - axis
    cut = np.zeros(organs + 1, bool)
    for index in (0, labels.shape[array_axis] - 1):
        cut[np.unique(labels.take(index, array_axis))] = True
    return cut
