"""A small oblique synthetic CT with four organs and synthetic maps, for tests of scenes and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk

from dcaseg.organs import AMOS, Organ

# Boxes of indices (z, y, x). Index x increases to the patient's left, y to posterior, z to superior.
BOXES = {
    "liver": (slice(8, 22), slice(6, 22), slice(4, 16)),
    "spleen": (slice(12, 20), slice(12, 24), slice(26, 34)),
    "right_kidney": (slice(4, 12), slice(22, 28), slice(8, 14)),
    "left_kidney": (slice(4, 12), slice(22, 28), slice(24, 30)),
}
SIZE_ZYX = (26, 34, 40)


@dataclass
class SyntheticResult:
    """A synthetic segmentation result with the attributes that the scene uses."""

    labels: sitk.Image
    attention: dict[int, dict[str, sitk.Image]] = field(default_factory=dict)
    dominant_expert: sitk.Image | None = None
    entropy: sitk.Image | None = None
    disagreement: sitk.Image | None = None
    organs: tuple[Organ, ...] | None = None


def small_ct(tilt_degrees: float = 12.0) -> sitk.Image:
    """Organs of 100 HU in fat with noise, in air; spacing 5 x 6 x 8 mm; turned about the x axis."""
    hu = np.full(SIZE_ZYX, -1000, dtype=np.int16)
    # Noise, because fat of a constant value would be taken for padding outside the field of view.
    body = hu[:, 2:-2, 2:-2]
    body[:] = np.random.default_rng(0).integers(-120, -80, body.shape, endpoint=True)
    for box in BOXES.values():
        hu[box] = 100
    return on_grid(hu, tilt_degrees)


def small_labels(tilt_degrees: float = 12.0) -> sitk.Image:
    labels = np.zeros(SIZE_ZYX, dtype=np.uint8)
    for key, box in BOXES.items():
        labels[box] = AMOS.by_key[key].label
    return on_grid(labels, tilt_degrees)


def small_result(tilt_degrees: float = 12.0) -> SyntheticResult:
    """A result with attention at level 4 only: head expert in the liver, tail expert in the left kidney."""
    labels = small_labels(tilt_degrees)
    array = sitk.GetArrayFromImage(labels)
    head = np.where(array == AMOS.by_key["liver"].label, 0.9, 0.1)
    tail = np.where(array == AMOS.by_key["left_kidney"].label, 0.9, 0.05)
    maps = {"head": head, "medium": 1.0 - head - tail * (1.0 - head), "tail": tail * (1.0 - head)}
    experts = np.where(array == AMOS.by_key["liver"].label, 1, np.where(array > 0, 3, 0)).astype(np.uint8)
    return SyntheticResult(
        labels=labels,
        attention={4: {name: on_grid(values.astype(np.float32), tilt_degrees) for name, values in maps.items()}},
        dominant_expert=on_grid(experts, tilt_degrees),
        entropy=on_grid((1.0 - np.maximum(head, tail)).astype(np.float32), tilt_degrees),
    )


def in_wide_air(image: sitk.Image, outside: float) -> sitk.Image:
    """``image`` with 8 more voxels of value ``outside`` on each side of its axial slices."""
    return sitk.ConstantPad(image, [8, 8, 0], [8, 8, 0], outside)


def on_grid(array: np.ndarray, tilt_degrees: float) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((5.0, 6.0, 8.0))
    image.SetOrigin((-101.5, -97.25, -310.125))
    angle = np.deg2rad(tilt_degrees)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    image.SetDirection((1.0, 0.0, 0.0, 0.0, cos, -sin, 0.0, sin, cos))
    return image
