"""Which voxels a click changes with a click network: those that are probably wrong in the way that the click says.

A click network answers where the organ is; many of its voxels are close calls, and errors in thin or blurred organs
are as common as improvements. So a logistic regression turns its answer into the probability that a voxel is wrong,
given the position of the voxel with respect to the click. Users click the middle of an error. Its radius is then about
the distance r of the click from the border of the mask, it is hardly thicker than 2 r, and voxels that are many radii
away are seldom part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .click_classifier import select_seeded_components
from .random_walker import RandomWalkerEngine, remove_new_islands
from .view import Engine, FloatArray, View, compute_signed_distance, smooth_image

_HU = (-200.0, 350.0)
_SMOOTHING_MM = 1.0
_MAX_ODDS = 4.0
_MAX_DISTANCE_MM = 48.0


@dataclass(frozen=True)
class Calibration:
    """Weights of the logistic regression: log-odds that a voxel is wrong in the way that the latest click says.

    ``answers``: weights of the log-odds (at most 4) of each engine's answer, by its name. With r the radius of the
    error, d the distance of the voxel to the click, t its distance to the mask's border, and h half a voxel, all in mm:
    ``ratio`` is the weight of d / (r + h), at most 8; ``log_ratio`` that of log(1 + d / (r + h)), at most 3;
    ``thickness`` that of t / (r + h), 0 to 4; ``log_radius`` that of log(r); ``distance`` that of d.
    ``hu``: weight of the difference in HU to the click, at most 120. ``others``: weight of a voxel that belongs to
    another segment. ``adds``: weight if the click adds. ``min_probability``: a voxel changes if its probability
    is higher.
    """

    answers: Mapping[str, float]
    intercept: float
    ratio: float
    log_ratio: float
    thickness: float
    log_radius: float
    hu: float
    distance: float
    others: float
    adds: float
    min_probability: float

    def predict_organ_probability(self, answers: Mapping[str, FloatArray], view: View) -> FloatArray:
        """Return the organ's probability (z, y, x) after the latest click, given the engines' ``answers`` (z, y, x).

        It differs from the mask only in one piece around the click, in the direction of the click. The mask of ``view``
        must not be empty, and the click must lie on the wrong side of its border.
        """
        click = view.strokes[-1]
        seeds = np.zeros(view.mask.shape, bool)
        seeds[tuple(click.voxels.T)] = True
        distance = np.maximum(compute_signed_distance(seeds, view.grid.spacing), 0.0)
        odds = self._compute_odds(answers, view, distance) - np.float32(
            np.log(self.min_probability / (1 - self.min_probability))
        )
        kept = view.make_seed_mask(not click.adds)
        free = (view.mask != click.adds) & ~kept & (distance <= _MAX_DISTANCE_MM)
        piece = select_seeded_components(seeds, (free & (odds > 0)) | seeds)
        odds = np.where(piece, np.maximum(odds, np.float32(0.05)), np.minimum(odds, np.float32(-0.05)))
        wrong = np.where(free | seeds, 1 / (1 + np.exp(-np.clip(odds, -30.0, 30.0))), 0.0)
        return (wrong + (1 - wrong) * view.mask if click.adds else view.mask * (1 - wrong)).astype(np.float32)

    def _compute_odds(self, answers: Mapping[str, FloatArray], view: View, distance: FloatArray) -> FloatArray:
        click, spacing = view.strokes[-1], view.grid.spacing
        sign = 1.0 if click.adds else -1.0
        half = 0.5 * float(np.prod(spacing)) ** (1 / 3)
        assert click.radius_mm is not None
        # Distances are 0 in the outermost voxels of the mask, but its border lies half a voxel farther out.
        radius = max(click.radius_mm - half, half) if click.adds else click.radius_mm + half
        thickness = sign * compute_signed_distance(view.mask, spacing) - sign * half
        hu = smooth_image(np.clip(view.hu, *_HU), spacing, _SMOOTHING_MM)
        at_click = np.median(hu[distance <= max(2 * half, 0.7 * radius)])
        ratio = distance / np.float32(radius + half)
        odds = np.float32(self.intercept + self.log_radius * np.log(radius) + self.adds * click.adds)
        odds = odds + self.ratio * np.minimum(ratio, 8.0) + self.log_ratio * np.minimum(np.log1p(ratio), 3.0)
        odds += self.thickness * np.clip(thickness / (radius + half), 0.0, 4.0) + self.distance * distance
        odds += self.hu * np.minimum(np.abs(hu - at_click), 120.0)
        if click.adds:
            odds += self.others * (view.others & ~view.mask)
        for name, answer in answers.items():
            share = np.clip(answer, 1e-3, 1 - 1e-3)
            odds += self.answers[name] * sign * np.clip(np.log(share / (1 - share)), -_MAX_ODDS, _MAX_ODDS)
        return odds.astype(np.float32)


class CalibratedEngine:
    """The engine that combines the answers of ``engines`` (by the names in ``calibration``) and changes what is sure.

    For an organ without a mask, nothing is known about the size of the error, and the first engine answers alone.
    """

    def __init__(self, name: str, engines: Mapping[str, Engine], calibration: Calibration) -> None:
        self.name = name
        self._engines = dict(engines)
        self._calibration = calibration

    def predict_foreground(self, view: View) -> FloatArray:
        """See ``view.Engine``."""
        if not view.mask.any() or view.strokes[-1].radius_mm is None:
            return next(iter(self._engines.values())).predict_foreground(view)
        answers = {name: engine.predict_foreground(view) for name, engine in self._engines.items()}
        return remove_new_islands(self._calibration.predict_organ_probability(answers, view), view)


def create_calibrated_engine(name: str, network: Engine) -> CalibratedEngine:
    """Return the engine ``name``, which combines the random walker with a click network."""
    engines = {RandomWalkerEngine.name: RandomWalkerEngine(), "network": network}
    return CalibratedEngine(name, engines, WITH_NETWORK)


# Fitted to simulated clicks on synthetic CTs, with an unfinished network: to be fitted again when one is shipped.
WITH_NETWORK = Calibration(
    answers={RandomWalkerEngine.name: 0.28, "network": 0.2},
    intercept=0.743,
    ratio=0.383,
    log_ratio=-0.649,
    thickness=-1.477,
    log_radius=0.95,
    hu=-0.576 / 40,
    distance=-1.772 / 20,
    others=-0.008,
    adds=0.439,
    min_probability=0.7,
)
