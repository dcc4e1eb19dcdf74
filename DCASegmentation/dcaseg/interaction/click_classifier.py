"""The engine that needs no network: which voxels a click changes, by a small classifier of the evidence on each voxel.

Small perceptrons turn the features of ``evidence`` into the probability that a voxel is wrong in the way that the click
says. They know no organ. A voxel changes if it is probably wrong and connected to the click through such voxels; if the
mean probability of the whole change is too low, only its most probable part changes. For a click in the middle of a
large error, perceptrons that have seen such errors choose among smaller and larger pieces (``click_piece``). ``dca
fit-clicks`` fits them all; it wrote ``classifier.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..json_io import DataError, dump, load, read_json
from .click_piece import PIECE_FEATURES, Pieces, find_pieces, select_best_piece
from .evidence import FEATURES, WALKER_SCALE, ClickFeatures, compute_ball_radius, compute_error_radius, compute_evidence
from .random_walker import RandomWalkerEngine, remove_new_islands
from .view import FloatArray, Mask, View

SHIPPED = Path(__file__).parent / "classifier.json"
"""The classifier in use."""

LARGE_ADDING_MM, LARGE_REMOVING_MM = 12.0, 8.0
"""A click at least this far from the border of the mask is on a large error."""

_STEPS = 24
_LINES = 4096
# A user who clicks again in the same direction was not satisfied, so less certainty is enough: by _STEP less for each
# earlier click, down to the minimum. On the border, more is needed, up to the maximum: users click the largest error
# first, and what remains on a border is soon thinner than a voxel.
_STEP = 0.05
_MIN_ADDING, _MIN_REMOVING = 0.6, 0.75
_MAX_ADDING, _MAX_REMOVING = 0.75, 0.9
_MIN_CAUTION_ADDING, _MIN_CAUTION_REMOVING = 0.0, 0.1
_SMALL = np.float32(0.05)


@dataclass(frozen=True)
class Layer:
    """One layer: ``weights`` (inputs, outputs) and ``bias`` (outputs)."""

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


@dataclass(frozen=True)
class MLP:
    """``layers`` with ReLU between them, applied to features minus ``mean``, divided by ``scale``. One output.

    Raises DataError if the sizes do not match each other.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        width = len(self.mean)
        if len(self.scale) != width or not all(each > 0 for each in self.scale):
            raise DataError("mean", "and scale do not fit each other")
        for layer in self.layers:
            if len(layer.weights) != width or {len(row) for row in layer.weights} != {len(layer.bias)}:
                raise DataError("layers", "do not fit each other")
            width = len(layer.bias)
        if width != 1:
            raise DataError("layers", "do not end in one output")

    def predict_log_odds(self, features: FloatArray) -> FloatArray:
        """Return the log-odds (n,) that voxels with these ``features`` (n, features) are wrong."""
        mean, scale = np.asarray(self.mean, np.float32), np.asarray(self.scale, np.float32)
        layers = [(np.asarray(each.weights, np.float32), np.asarray(each.bias, np.float32)) for each in self.layers]
        odds = np.empty(len(features), np.float32)
        # Parts that fit into the processor's cache.
        for start in range(0, len(features), _LINES):
            x = features[start : start + _LINES] - mean
            x /= scale
            np.clip(x, -5.0, 5.0, out=x)
            for index, (weights, bias) in enumerate(layers):
                x = x @ weights
                x += bias
                if index + 1 < len(layers):
                    np.maximum(x, 0.0, out=x)
            odds[start : start + _LINES] = x[:, 0]
        return odds


@dataclass(frozen=True)
class Thresholds:
    """When voxels change: each is wrong with a probability of at least ``voxel``, and all together of ``mean``."""

    voxel: float
    mean: float

    def adapt_to_clicks(self, clicks: int, adds: bool, on_border: bool) -> Thresholds:
        """Return the thresholds after this many earlier ``clicks`` in the same direction.

        ``on_border``: the latest click is in the outermost voxels of the mask, or next to them.
        """
        if on_border:
            most = max(_MAX_ADDING if adds else _MAX_REMOVING, self.mean)
            return Thresholds(self.voxel, min(most, self.mean + _STEP * clicks))
        least = min(_MIN_ADDING if adds else _MIN_REMOVING, self.mean)
        return Thresholds(self.voxel, max(least, self.mean - _STEP * clicks))


@dataclass(frozen=True)
class Decision:
    """What one kind of click changes: by the mean log-odds of ``perceptrons``, and by ``thresholds``."""

    perceptrons: tuple[MLP, ...]
    thresholds: Thresholds

    def predict_probability(self, features: NDArray[np.floating], finds: bool = False) -> FloatArray:
        """Return the probability (n,) that voxels with these ``features`` (n, features) are wrong."""
        return predict_ensemble_probability(self.perceptrons, features, finds)


@dataclass(frozen=True)
class PieceDecision:
    """What a click on a large error changes.

    The mean log-odds of ``perceptrons`` say whether a voxel is wrong, and those of ``pieces`` which share of a piece
    is. ``caution``: how much of that share is not counted on.
    """

    perceptrons: tuple[MLP, ...]
    pieces: tuple[MLP, ...]
    caution: float

    def select_piece(self, pieces: Pieces, mask_voxels: int, adds: bool, earlier: int) -> int | None:
        """Return the number of the piece to change, None for the click's own voxels only.

        ``mask_voxels``: the size of the organ's mask. ``earlier``: number of earlier clicks in the same direction.
        """
        least = min(_MIN_CAUTION_ADDING if adds else _MIN_CAUTION_REMOVING, self.caution)
        caution = max(least, self.caution - _STEP * earlier)
        return select_best_piece(
            pieces.voxels, predict_ensemble_probability(self.pieces, pieces.features), mask_voxels, adds, caution
        )


def predict_ensemble_probability(
    perceptrons: tuple[MLP, ...], features: NDArray[np.floating], finds: bool = False
) -> FloatArray:
    """Return the probability (n,) by all ``perceptrons``, for voxels or pieces with ``features`` (n, features).

    ``finds``: these are voxels, and the organ has no mask. Then the random walker counts as much as the perceptrons.
    """
    features = features.astype(np.float32)
    odds = np.mean([each.predict_log_odds(features) for each in perceptrons], axis=0)
    if finds:
        # Organs of many kinds are missing, in more surroundings than the perceptrons have seen.
        odds = 0.5 * (odds + WALKER_SCALE * features[:, FEATURES.index("walker")])
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -30.0, 30.0))), np.float32)


@dataclass(frozen=True)
class ClickClassifier:
    """The decisions on clicks that add to a mask, remove from one, and find an organ without a mask.

    ``adding_much`` and ``removing_much`` decide on large errors. ``features``, ``piece_features``: the names of the
    columns that the perceptrons were fitted to. ``cases``: the anatomies that they were fitted to. Raises DataError if
    the features are not those of this version.
    """

    features: tuple[str, ...]
    piece_features: tuple[str, ...]
    adding: Decision
    removing: Decision
    finding: Decision
    adding_much: PieceDecision
    removing_much: PieceDecision
    cases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.features != FEATURES or self.piece_features != PIECE_FEATURES:
            raise DataError("features", "are not those of this version")
        decisions = (self.adding, self.removing, self.finding, self.adding_much, self.removing_much)
        _require_width([each.perceptrons for each in decisions], len(FEATURES))
        _require_width([self.adding_much.pieces, self.removing_much.pieces], len(PIECE_FEATURES))

    def predict_organ_probability(self, evidence: ClickFeatures, view: View) -> FloatArray:
        """Return the organ's probability (z, y, x) after the latest click of ``view``.

        It differs from the mask only in one piece around the click, in the direction of the click.
        """
        click, finds = view.strokes[-1], not view.mask.any()
        earlier = sum(1 for stroke in view.strokes[:-1] if stroke.adds == click.adds)
        wrong = np.zeros(view.mask.shape, np.float32)
        if is_large(view):
            threshold, piece = self._select_large_piece(evidence, wrong, click.adds, earlier)
        else:
            decision = self.finding if finds else self.adding if click.adds else self.removing
            wrong[evidence.candidates] = decision.predict_probability(evidence.features, finds)
            thresholds = decision.thresholds.adapt_to_clicks(earlier, click.adds, is_on_border(view))
            threshold, piece = select_confident_piece(wrong, evidence.click, thresholds)
        # The threshold becomes one half, so that the border lies where the probability crosses it.
        odds = _compute_logit(wrong) - _compute_logit(np.float32(threshold))
        odds = np.where(piece, np.maximum(odds, _SMALL), np.minimum(odds, -_SMALL))
        may_change = evidence.candidates | evidence.click
        change = np.where(may_change, 1 / (1 + np.exp(-np.clip(odds, -30.0, 30.0))), 0.0)
        changed = change + (1 - change) * view.mask if click.adds else view.mask * (1 - change)
        return changed.astype(np.float32)

    def _select_large_piece(
        self, evidence: ClickFeatures, wrong: FloatArray, adds: bool, earlier: int
    ) -> tuple[float, Mask]:
        """Return what ``select_confident_piece`` does, for a large error; ``wrong`` (z, y, x) is filled in."""
        decision = self.adding_much if adds else self.removing_much
        piece = evidence.click.copy()
        if not evidence.candidates.any():
            return 1.0, piece
        probability = predict_ensemble_probability(decision.perceptrons, evidence.features)
        wrong[evidence.candidates] = probability
        pieces = find_pieces(evidence, probability)
        best = decision.select_piece(pieces, evidence.mask_voxels, adds, earlier)
        if best is None:
            return 1.0, piece
        piece[evidence.candidates] |= pieces.get_voxels(best)
        return float(pieces.thresholds[best]), piece


def is_large(view: View) -> bool:
    """Whether the latest click of ``view`` is in the middle of a large error.

    An error deeper than the whole organ usually is none: there is a mask far away, and the organ is missing here.
    """
    click = view.strokes[-1]
    if not view.mask.any() or click.radius_mm is None:
        return False
    deepest = np.inf if view.expected_ml is None else compute_ball_radius(view.expected_ml)
    return (LARGE_ADDING_MM if click.adds else LARGE_REMOVING_MM) <= click.radius_mm <= deepest


def is_on_border(view: View) -> bool:
    """Whether the latest click of ``view`` is in the outermost voxels of the mask, or next to them."""
    if not view.mask.any() or view.strokes[-1].radius_mm is None:
        return False
    radius, half = compute_error_radius(view)
    return radius <= 1.01 * half


def _require_width(groups: Sequence[tuple[MLP, ...]], width: int) -> None:
    if any(not group or any(len(each.mean) != width for each in group) for group in groups):
        raise DataError("perceptrons", "do not fit the features")


def select_confident_piece(wrong: FloatArray, seeds: Mask, thresholds: Thresholds) -> tuple[float, Mask]:
    """Return the piece (z, y, x) around ``seeds`` that is probably wrong, and the lowest probability in it.

    ``wrong`` (z, y, x): the probability that a voxel is wrong.
    """
    threshold = thresholds.voxel
    for threshold in np.linspace(thresholds.voxel, 0.99, _STEPS):
        piece = select_seeded_components(seeds, (wrong >= threshold) | seeds)
        if float(wrong[piece].mean()) >= thresholds.mean:
            return float(threshold), piece
    return float(threshold), seeds


class ClassifierEngine:
    """The engine that classifies the evidence of ``evidence`` and the random walker; see the module."""

    name = "classifier"

    def __init__(self, classifier: ClickClassifier | None = None) -> None:
        self._classifier = classifier or load_shipped_classifier()
        self._walker = RandomWalkerEngine()

    def predict_foreground(self, view: View) -> FloatArray:
        """See ``view.Engine``."""
        walker = self._walker.predict_foreground(view)
        if not view.mask.any() and view.strokes[-1].radius_mm is not None:
            # The user has drawn a box around the organ, whose size the random walker takes into account.
            return walker
        evidence = compute_evidence(view, walker)
        return remove_new_islands(self._classifier.predict_organ_probability(evidence, view), view)


def read_classifier(path: Path) -> ClickClassifier:
    """Read a classifier that ``dca fit-clicks`` wrote. Raises ValueError or OSError if it is none."""
    return load(ClickClassifier, read_json(path))


def format_classifier(classifier: ClickClassifier) -> str:
    """Return the text of the file for ``read_classifier``, with one list of numbers or names a line."""
    indented = json.dumps(dump(classifier), indent=0, allow_nan=False)
    return re.sub(r"\[[^][{}]*\]", lambda found: found[0].replace("\n", ""), indented) + "\n"


@cache
def load_shipped_classifier() -> ClickClassifier:
    """Return the classifier in use."""
    return read_classifier(SHIPPED)


def select_seeded_components(seeds: Mask, mask: Mask) -> Mask:
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


def _compute_logit(probability: FloatArray | np.float32) -> FloatArray:
    share = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(share / (1 - share)), np.float32)
