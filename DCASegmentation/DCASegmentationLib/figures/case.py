"""What a picture shows of a case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from DCASegmentationLib.organs import Organ, Vocabulary


class CaseResult(Protocol):
    """The part of a segmentation result that scenes and pictures use; ``inference`` makes such results.

    ``labels`` lies on exactly the grid of the CT, and so does ``deciding_expert`` (0 background, 1 head, 2 medium,
    3 tail). ``attention`` maps a level (1 to 4) to the maps of the experts "head", "medium" and "tail"; these,
    ``entropy`` and ``disagreement`` (0 to 1) lie on the coarser grid of the model. What was not asked for is None or
    empty. ``organs`` are those that were looked for, None for all of the vocabulary.
    """

    @property
    def organs(self) -> tuple[Organ, ...] | None: ...

    @property
    def labels(self) -> sitk.Image: ...
    @property
    def attention(self) -> Mapping[int, Mapping[str, sitk.Image]]: ...
    @property
    def deciding_expert(self) -> sitk.Image | None: ...
    @property
    def entropy(self) -> sitk.Image | None: ...
    @property
    def disagreement(self) -> sitk.Image | None: ...


@dataclass(frozen=True)
class Panel:
    """One view: RGB pixels (rows, columns, 3) uint8, a title, the letters at its left and right edge, and a scale.

    ``mm_per_pixel`` is 0 where no scale applies (the 3D view).
    """

    pixels: np.ndarray
    title: str
    left: str = ""
    right: str = ""
    mm_per_pixel: float = 0.0

    @property
    def aspect(self) -> float:
        return self.pixels.shape[1] / self.pixels.shape[0]


def organs_in(labels: sitk.Image, vocabulary: Vocabulary) -> tuple[Organ, ...]:
    """The organs that a label map has more of than a few stray voxels, in the order of the vocabulary."""
    counts = np.bincount(sitk.GetArrayViewFromImage(labels).ravel(), minlength=len(vocabulary) + 1)
    ml = float(np.prod(labels.GetSpacing())) / 1000
    return tuple(organ for organ in vocabulary if counts[organ.label] and not organ.is_stray(counts[organ.label] * ml))


def organs_missing(result: CaseResult, vocabulary: Vocabulary) -> list[Organ]:
    """The organs that were looked for and not found."""
    found = organs_in(result.labels, vocabulary)
    return [organ for organ in (vocabulary if result.organs is None else result.organs) if organ not in found]


def finest_level(attention: Mapping[int, Mapping[str, sitk.Image]]) -> int | None:
    """The level whose maps have the most detail (4 is full resolution), or None without maps."""
    return max(attention, default=None)
