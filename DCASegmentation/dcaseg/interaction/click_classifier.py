"""The engine that needs no network: which voxels a click changes, by a small classifier of the evidence on each voxel.

Small perceptrons turn the features of ``evidence`` into the probability that a voxel is wrong in the way that the click
says. They know no organ. A voxel changes if it is probably wrong and connected to the click through such voxels; if the
change as a whole is not sure enough, only its surer part does. ``dca fit-clicks`` fits the perceptrons and chooses both
probabilities; ``classifier.json`` is what it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..json_io import DataError, load, read_json
from .evidence import FEATURES, WALKER_SCALE, Evidence, evidence_of
from .random_walker import RandomWalkerEngine, without_islands
from .view import FloatArray, Mask, View

SHIPPED = Path(__file__).parent / "classifier.json"
"""The classifier in use."""

_STEPS = 24
# Who clicks again in the same direction was not content with the change, so it may be less sure: by _RELAXED for each
# click, down to _LEAST.
_RELAXED = 0.05
_LEAST_ADDING, _LEAST_REMOVING = 0.6, 0.75


@dataclass(frozen=True)
class Layer:
    """One layer: ``weights`` (inputs, outputs) and ``bias`` (outputs)."""

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


@dataclass(frozen=True)
class Perceptron:
    """``layers`` with ReLU between them, applied to features minus ``mean``, divided by ``scale``. One output.

    Raises DataError if the sizes do not match each other or the features.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        width = len(FEATURES)
        if len(self.mean) != width or len(self.scale) != width or not all(each > 0 for each in self.scale):
            raise DataError("mean", f"and scale do not fit {width} features")
        for layer in self.layers:
            if len(layer.weights) != width or {len(row) for row in layer.weights} != {len(layer.bias)}:
                raise DataError("layers", "do not fit each other")
            width = len(layer.bias)
        if width != 1:
            raise DataError("layers", "do not end in one output")

    def odds(self, features: FloatArray) -> FloatArray:
        """Return the log-odds (n,) that voxels with these ``features`` (n, features) are wrong."""
        x = (features - np.asarray(self.mean, np.float32)) / np.asarray(self.scale, np.float32)
        x = np.clip(x, -5.0, 5.0)
        for index, layer in enumerate(self.layers):
            x = x @ np.asarray(layer.weights, np.float32) + np.asarray(layer.bias, np.float32)
            if index + 1 < len(self.layers):
                x = np.maximum(x, 0.0)
        return np.asarray(x[:, 0], np.float32)


@dataclass(frozen=True)
class Sureness:
    """When voxels change: each is wrong with a probability of at least ``voxel``, and all together of ``mean``."""

    voxel: float
    mean: float

    def after(self, clicks: int, adds: bool) -> Sureness:
        """Return what is enough after so many earlier clicks in the same direction."""
        least = min(_LEAST_ADDING if adds else _LEAST_REMOVING, self.mean)
        return Sureness(self.voxel, max(least, self.mean - _RELAXED * clicks))


@dataclass(frozen=True)
class Decision:
    """What one kind of click changes: the mean log-odds of ``perceptrons``, and when they are enough."""

    perceptrons: tuple[Perceptron, ...]
    sureness: Sureness

    def probability(self, features: FloatArray, finds: bool = False) -> FloatArray:
        """Return the probability (n,) that voxels with these ``features`` (n, features) are wrong."""
        return probability_of(self.perceptrons, features, finds)


def probability_of(perceptrons: tuple[Perceptron, ...], features: FloatArray, finds: bool = False) -> FloatArray:
    """Return the probability (n,) that voxels with ``features`` (n, features) are wrong, by all ``perceptrons``.

    ``finds``: the organ has no mask. Then the random walker counts as much as the perceptrons.
    """
    odds = np.mean([each.odds(features) for each in perceptrons], axis=0)
    if finds:
        # Organs of many kinds are missing, in more surroundings than the perceptrons have seen.
        odds = 0.5 * (odds + WALKER_SCALE * features[:, FEATURES.index("walker")])
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -30.0, 30.0))), np.float32)


@dataclass(frozen=True)
class ClickClassifier:
    """The decisions on clicks that add to a mask, remove from one, and find an organ without a mask.

    ``features``: the names of the columns that the perceptrons were fitted to. ``cases``: the anatomies that they were
    fitted to. Raises DataError if the features are not those of ``evidence.FEATURES``.
    """

    features: tuple[str, ...]
    adding: Decision
    removing: Decision
    finding: Decision
    cases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.features != FEATURES:
            raise DataError("features", "are not those of this version")

    def changed(self, evidence: Evidence, view: View) -> FloatArray:
        """Return the organ's probability (z, y, x) after the latest click of ``view``.

        It differs from the mask only in one piece around the click, in the direction of the click.
        """
        click = view.strokes[-1]
        decision = self.finding if not view.mask.any() else self.adding if click.adds else self.removing
        seeds = np.zeros(view.mask.shape, bool)
        seeds[tuple(click.voxels.T)] = True
        wrong = np.zeros(view.mask.shape, np.float32)
        wrong[evidence.candidates] = decision.probability(evidence.features, finds=not view.mask.any())
        earlier = sum(1 for stroke in view.strokes[:-1] if stroke.adds == click.adds)
        threshold, piece = sure_piece(wrong, seeds, decision.sureness.after(earlier, click.adds))
        # The threshold becomes one half, so that the border lies where the probability crosses it.
        odds = _odds(wrong) - _odds(np.float32(threshold))
        odds = np.where(piece, np.maximum(odds, np.float32(0.05)), np.minimum(odds, np.float32(-0.05)))
        change = np.where(evidence.candidates | seeds, 1 / (1 + np.exp(-np.clip(odds, -30.0, 30.0))), 0.0)
        changed = change + (1 - change) * view.mask if click.adds else view.mask * (1 - change)
        return changed.astype(np.float32)


def sure_piece(wrong: FloatArray, seeds: Mask, sureness: Sureness) -> tuple[float, Mask]:
    """Return the piece (z, y, x) around ``seeds`` that is probably wrong, and the lowest probability in it.

    ``wrong`` (z, y, x): the probability that a voxel is wrong.
    """
    threshold = sureness.voxel
    for threshold in np.linspace(sureness.voxel, 0.99, _STEPS):
        piece = around(seeds, (wrong >= threshold) | seeds)
        if float(wrong[piece].mean()) >= sureness.mean:
            return float(threshold), piece
    return float(threshold), seeds


class ClassifierEngine:
    """The engine that classifies the evidence of ``evidence`` and the random walker; see the module."""

    name = "random_walker"

    def __init__(self, classifier: ClickClassifier | None = None) -> None:
        self._classifier = classifier or shipped_classifier()
        self._walker = RandomWalkerEngine()

    def foreground(self, view: View) -> FloatArray:
        """See ``view.Engine``."""
        walker = self._walker.foreground(view)
        if not view.mask.any() and view.strokes[-1].radius_mm is not None:
            # The user has drawn a box around the organ, whose size the random walker takes into account.
            return walker
        evidence = evidence_of(view, walker)
        return without_islands(self._classifier.changed(evidence, view), view)


def read_classifier(path: Path) -> ClickClassifier:
    """Read a classifier that ``dca fit-clicks`` wrote. Raises ValueError or OSError if it is none."""
    return load(ClickClassifier, read_json(path))


@cache
def shipped_classifier() -> ClickClassifier:
    """Return the classifier in use."""
    return read_classifier(SHIPPED)


def around(seeds: Mask, mask: Mask) -> Mask:
    """Return the pieces of ``mask`` (z, y, x), connected over faces, edges or corners, that contain one of ``seeds``.

    Errors along a border are often one voxel thick, and would be in many pieces if only faces counted.
    """
    pieces: NDArray[np.integer] = sitk.GetArrayFromImage(
        sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    )
    kept = np.zeros(int(pieces.max()) + 1, bool)
    kept[pieces[seeds]] = True
    kept[0] = False
    return kept[pieces]


def _odds(probability: FloatArray | np.float32) -> FloatArray:
    share = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(share / (1 - share)), np.float32)
