"""Slices of a case on the model grid as a radiologist sees them, with organs in color on top."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...organs import Vocabulary

# Displayed from black to white.
_SHOWN_HU = (-160.0, 240.0)
_OPACITY = 0.55
# Below is air, or lung.
AIR_HU = -300
_MARGIN = 2


@dataclass(frozen=True)
class Slice:
    """A plane through arrays (z, y, x) of a RAS grid: an axial or coronal one at ``index``; ``aspect`` is the height of
    a voxel over its width on the screen, ``box`` the rows and columns of the screen that are shown."""

    name: str
    axis: int
    index: int
    aspect: float
    box: tuple[slice, slice] = (slice(None), slice(None))

    def of(self, array: np.ndarray) -> np.ndarray:
        """The plane of ``array`` (..., z, y, x), anterior or superior on top, the patient's right on the left."""
        taken = np.take(array, self.index, axis=array.ndim - 3 + self.axis)
        return taken[..., ::-1, ::-1][(..., *self.box)]

    def around_body(self, hu: np.ndarray) -> Slice:
        """The same slice without the air around the body; ``hu`` is (z, y, x)."""
        body = np.asarray(replace(self, box=(slice(None), slice(None))).of(hu) > AIR_HU)
        return replace(self, box=(_extent(np.any(body, axis=1)), _extent(np.any(body, axis=0)))) if body.any() else self


def fullest_slices(labels: np.ndarray, spacing: tuple[float, float, float]) -> list[Slice]:
    """The axial and the coronal slice with the most organs, of those the one with most of each organ's voxels.

    ``labels`` are (z, y, x) of a RAS grid, ``spacing`` (z, y, x) in mm.
    """
    z, y, x = spacing
    return [
        Slice("Axial", 0, _fullest(labels, 0), y / x),
        Slice("Coronal", 1, _fullest(labels, 1), z / x),
    ]


def gray(hu: np.ndarray) -> np.ndarray:
    """HU (rows, columns) as RGB 0..1 (rows, columns, 3)."""
    low, high = _SHOWN_HU
    shade = np.clip((hu.astype(float) - low) / (high - low), 0, 1)
    return np.repeat(shade[..., None], 3, axis=-1)


def with_organs(picture: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """RGB 0..1 with the organs of ``labels`` (rows, columns) laid over it."""
    colors = np.array([(0, 0, 0), *(organ.color for organ in vocabulary)], float) / 255
    inside = (labels > 0)[..., None]
    return np.where(inside, (1 - _OPACITY) * picture + _OPACITY * colors[labels], picture)


def _extent(inside: np.ndarray) -> slice:
    """From the first to the last true value, with a margin."""
    places = np.flatnonzero(inside)
    return slice(max(int(places[0]) - _MARGIN, 0), int(places[-1]) + 1 + _MARGIN)


def _fullest(labels: np.ndarray, axis: int) -> int:
    votes = np.zeros(labels.shape[axis])
    others = tuple(one for one in range(3) if one != axis)
    for label in np.unique(labels[labels > 0]):
        counts = (labels == label).sum(axis=others)
        votes += (counts > 0) + counts / counts.max() / 100
    return int(np.argmax(votes))
