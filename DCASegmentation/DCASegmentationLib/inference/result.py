"""What a segmentation run gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import SimpleITK as sitk

from ..organs import Organ
from .measurements import OrganMeasurement
from .review.making import ReviewResult


@dataclass
class Result:
    """Labels and maps of one CT.

    ``labels`` (uint8) lie on exactly the CT's grid. ``attention`` (level to expert to float32 image, summing to one
    over the experts), ``entropy`` and ``disagreement`` (float32, 0 to 1) lie on the model grid, ``deciding_expert``
    (uint8: 0 background, 1 head, 2 medium, 3 tail) on the CT's, where it is 0 exactly where ``labels`` are; all are
    there if they were asked for.
    ``attention_by_organ`` holds mean attention: level to organ key to expert. ``seconds`` is the time of each phase,
    ``device`` where the network ran, ``runtime`` what ran it.
    ``islands_ml`` is what was taken out of each organ, by key, as too small and too far off to be it.
    ``review`` holds the places to check, None if they were not asked for.
    """

    labels: sitk.Image
    measurements: tuple[OrganMeasurement, ...]
    device: str
    runtime: str = ""
    attention: dict[int, dict[str, sitk.Image]] = field(default_factory=dict)
    deciding_expert: sitk.Image | None = None
    entropy: sitk.Image | None = None
    disagreement: sitk.Image | None = None
    review: ReviewResult | None = None
    attention_by_organ: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    islands_ml: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def organs(self) -> tuple[Organ, ...]:
        """The organs that were asked for."""
        return tuple(measurement.organ for measurement in self.measurements)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume in ml of every organ that was asked for, by key."""
        return {measurement.organ.key: measurement.ml for measurement in self.measurements}
