"""Fits the classifier of ``interaction.click_classifier`` to simulated clicks on the errors of a model.

Each case is a CT with its true labels and the model's result. For each organ, clicks at the center of the largest error
are simulated: on the model's mask, on one of which some errors are repaired, on an empty one, and on masks with large
errors of other kinds (``click_damage``). Between clicks, the classifier in use corrects the mask. When voxels change is
chosen by cross-validation: each anatomy is predicted by perceptrons that were fitted to the others. The perceptrons for
pieces see such predictions, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ..errors import UserError
from ..imaging.grid import Grid
from ..interaction.click_classifier import (
    MLP,
    ClickClassifier,
    Decision,
    Layer,
    PieceDecision,
    Thresholds,
    is_large,
    load_shipped_classifier,
    predict_ensemble_probability,
)
from ..interaction.click_piece import PIECE_FEATURES, Pieces, find_pieces
from ..interaction.evidence import FEATURES, ClickFeatures, compute_evidence
from ..interaction.random_walker import RandomWalkerEngine, remove_new_islands
from ..interaction.session import CorrectionSession
from ..interaction.strokes import Stroke, to_point
from ..interaction.view import FloatArray, Mask, View
from ..organs import Vocabulary
from .click_damage import damage_mask
from .click_simulation import compute_dice, find_next_click

LOSS = 5.0
"""How many times as much as a gain of Dice a loss counts when the caution is chosen: the user has to undo it."""

MAX_WORSE = 0.1
"""The highest share of simulated clicks on small errors that may lower Dice when the thresholds are chosen. In use, a
change is one piece around the click, which lowers that share."""

# The masks to start from, and the number of clicks on each.
_CLICKS = {"model": 6, "repaired": 2, "missing": 1, "damaged": 2, "damaged again": 1}
# Those of them that depend on the model's result.
_OWN = ("model", "repaired")
_VOXELS = 2000
_MIN_ML = 0.4
_REPAIRED = 0.6
_USABLE = 0.6
_HIDDEN = (32, 16)
_PIECE_HIDDEN = (24,)
_MEMBERS = 3
_FOLDS = 3
_BATCH = 2048
_PIECE_BATCH = 1024
_PIECE_STEPS = 500
_RATE = 3e-3
_NOISE = 0.1
_SIZE_POWER = 0.75
_MAX_WEIGHT = 50.0
_VOXEL_CHOICES = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
_MEAN_CHOICES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_CAUTION_CHOICES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


@dataclass(frozen=True)
class ClickSample:
    """What one simulated click might have changed.

    ``group``: the anatomy. ``start``: the kind of mask before the first click. ``evidence``: its features are float16.
    ``wrong`` (n,): whether the candidates are wrong in the way that the click says. ``adds``: the click adds.
    ``earlier``: number of earlier clicks in the same direction. ``large``: see ``is_large``. ``truth``, ``mask``: size
    of the organ and of its mask, in voxels of the evidence; ``dice``: before the click.
    """

    group: str
    start: str
    evidence: ClickFeatures
    wrong: Mask
    adds: bool
    earlier: int
    large: bool
    truth: int
    mask: int
    dice: float

    @property
    def missing(self) -> bool:
        """Whether the organ had no mask near the click."""
        return self.evidence.mask_voxels == 0

    def compute_dice_after(self, voxels: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return Dice (k,) if this many ``voxels`` change, of which this many should."""
        total = self.truth + self.mask
        overlap = 0.5 * self.dice * total
        if self.adds:
            return 2 * (overlap + right) / (total + voxels)
        return 2 * (overlap - voxels + right) / np.maximum(total - voxels, 1)


class _Recorder:
    """An engine that keeps the evidence on each click, and answers with a classifier."""

    name = "recorder"

    def __init__(self, truth: sitk.Image, classifier: ClickClassifier) -> None:
        self._truth, self._classifier = truth, classifier
        self._walker = RandomWalkerEngine()
        self.taken: tuple[ClickFeatures, Mask, int, bool] | None = None

    def predict_foreground(self, view: View) -> FloatArray:
        """See ``interaction.view.Engine``."""
        evidence = compute_evidence(view, self._walker.predict_foreground(view))
        reference = view.grid.make_image(np.zeros(view.mask.shape, np.uint8))
        nearest = sitk.Resample(self._truth, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        wrong = ((sitk.GetArrayFromImage(nearest) > 0) == view.strokes[-1].adds)[evidence.candidates]
        kept = replace(evidence, features=evidence.features.astype(np.float16))
        earlier = sum(1 for stroke in view.strokes[:-1] if stroke.adds == view.strokes[-1].adds)
        # A missing organ may be followed into further blocks, but the click lies in the first one.
        self.taken = self.taken or (kept, wrong, earlier, is_large(view))
        return remove_new_islands(self._classifier.predict_organ_probability(evidence, view), view)


def collect(
    group: str,
    ct: sitk.Image,
    start: sitk.Image,
    truth: sitk.Image,
    vocabulary: Vocabulary,
    random: np.random.Generator,
    known: Sequence[int] | None = None,
    only_own_errors: bool = False,
) -> list[ClickSample]:
    """Simulate clicks on all organs in ``truth``, starting from the model's result ``start``, on the same grid.

    ``known`` are the annotated labels, None for all. ``group``: the name of the anatomy. ``only_own_errors``: no clicks
    on missing organs and on masks with errors made at random.
    """
    samples: list[ClickSample] = []
    labels, first, hu = (sitk.GetArrayFromImage(each) for each in (truth, start, ct))
    grid = Grid.from_image(ct)
    names = {each.label: each.key for each in vocabulary}
    classifier = load_shipped_classifier()
    for organ in vocabulary:
        target = labels == organ.label
        if (known is not None and organ.label not in known) or (
            np.count_nonzero(target) * grid.volume_ml_per_voxel < _MIN_ML
        ):
            continue
        image = grid.make_image(target.astype(np.uint8))
        own = first == organ.label
        for kind, clicks in _CLICKS.items():
            if only_own_errors and kind not in _OWN:
                continue
            mask = _make_initial_mask(kind, own, target, hu, grid.spacing, random)
            recorder = _Recorder(image, classifier)
            begun = np.where(mask, organ.label, np.where(own, 0, first)).astype(first.dtype)
            session = CorrectionSession(ct, grid.make_image(begun), names, engine=recorder)
            samples += _simulate_clicks(group, kind, session, recorder, organ.label, target, clicks)
    return samples


def _make_initial_mask(
    kind: str,
    own: Mask,
    target: Mask,
    hu: NDArray[np.generic],
    spacing: tuple[float, float, float],
    random: np.random.Generator,
) -> Mask:
    """Return the mask (z, y, x) before the first click; ``own`` is the model's."""
    if kind == "model":
        return own
    if kind == "repaired":
        return _repair_errors(own, target, random)
    if kind == "missing":
        return np.zeros_like(own)
    usable = compute_dice(own, target) > _USABLE and random.random() < 0.5
    return damage_mask(own if usable else target, hu, spacing, random)


def _repair_errors(mask: Mask, target: Mask, random: np.random.Generator) -> Mask:
    """Return ``mask`` with most of the pieces of its errors replaced by ``target``, all (z, y, x)."""
    error = mask != target
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(error.astype(np.uint8)), False))
    chosen = random.random(int(pieces.max()) + 1) < _REPAIRED
    return np.where(error & chosen[pieces], target, mask)


def _simulate_clicks(
    group: str, start: str, session: CorrectionSession, recorder: _Recorder, label: int, target: Mask, clicks: int
) -> list[ClickSample]:
    samples: list[ClickSample] = []
    for _ in range(clicks):
        mask = np.asarray(session.labels == label)
        click = find_next_click(mask, target, session.grid.spacing)
        if click is None:
            break
        recorder.taken = None
        try:
            session.apply(label, Stroke((to_point(click.index, session.grid),), click.adds))
        except UserError:
            break
        if recorder.taken is not None:
            evidence, wrong, earlier, large = recorder.taken
            # In voxels of the view, which may be coarser than the CT's.
            size = session.grid.volume_ml_per_voxel / evidence.voxel_ml
            counts = round(np.count_nonzero(target) * size), round(np.count_nonzero(mask) * size)
            dice = compute_dice(mask, target)
            samples.append(ClickSample(group, start, evidence, wrong, click.adds, earlier, large, *counts, dice))
    return samples


@dataclass(frozen=True)
class _Predicted:
    """The pieces of a click, by perceptrons that were fitted to other anatomies.

    ``right`` (k,): how many voxels of each piece are wrong in the way that the click says.
    """

    sample: ClickSample
    pieces: Pieces
    right: NDArray[np.int64]

    @classmethod
    def from_sample(cls, sample: ClickSample, perceptrons: tuple[MLP, ...]) -> _Predicted:
        """Return the pieces of ``sample`` by ``perceptrons``."""
        pieces = find_pieces(sample.evidence, predict_ensemble_probability(perceptrons, sample.evidence.features))
        order = np.argsort(-pieces.level, kind="stable")
        return cls(sample, pieces, np.cumsum(sample.wrong[order], dtype=np.int64)[pieces.voxels - 1])

    def compute_gain(self, decision: PieceDecision) -> float:
        """Return the change of Dice by the piece that ``decision`` chooses."""
        sample = self.sample
        best = decision.select_piece(self.pieces, sample.evidence.mask_voxels, sample.adds, sample.earlier)
        if best is None:
            return 0.0
        return float(sample.compute_dice_after(self.pieces.voxels, self.right)[best] - sample.dice)


def fit_classifier(
    samples: Sequence[ClickSample],
    steps: int = 800,
    seed: int = 0,
    max_worse: float = MAX_WORSE,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[ClickClassifier, dict[str, dict[str, float]]]:
    """Fit a classifier to ``samples``, and return it with what cross-validation says of each kind of click.

    That is the mean change of Dice by a click (``compute_gain``) and the share of clicks that lower it (``worse``); for
    small errors and missing organs without the rule that a change is one piece. Raises UserError if there are not
    enough samples of each kind.
    """
    present = [each for each in samples if not each.missing]
    # The model's own errors are mostly small. Large ones are learned from all clicks.
    own = [each for each in present if not each.start.startswith("damaged")]
    kinds = {
        "adding": [each for each in own if each.adds],
        "removing": [each for each in own if not each.adds],
        "finding": [each for each in samples if each.missing],
        "adding_much": [each for each in present if each.adds],
        "removing_much": [each for each in present if not each.adds],
    }
    decisions: dict[str, Decision | PieceDecision] = {}
    figures: dict[str, dict[str, float]] = {}
    for index, (name, kind) in enumerate(kinds.items()):
        if progress is not None:
            progress(index / len(kinds), f"Fitting: {name.replace('_', ' ')}")
        groups = sorted({each.group for each in kind})
        if len(groups) < 2:
            raise UserError(
                f"Too few anatomies have clicks for {name.replace('_', ' ')}.",
                "Specify more cases, of different label maps.",
            )
        folds = [set(groups[fold::_FOLDS]) for fold in range(min(_FOLDS, len(groups)))]
        decide = _decide_on_pieces if name.endswith("_much") else _decide
        decisions[name], figures[name] = decide(kind, folds, steps, seed, max_worse)
    cases = tuple(sorted({each.group for each in samples}))
    content: dict[str, Any] = dict(decisions)
    return ClickClassifier(FEATURES, PIECE_FEATURES, **content, cases=cases), figures


def _decide(
    kind: Sequence[ClickSample], folds: Sequence[set[str]], steps: int, seed: int, max_worse: float
) -> tuple[Decision, dict[str, float]]:
    predicted: list[tuple[ClickSample, FloatArray]] = []
    for held_out in folds:
        members = _fit_ensemble([each for each in kind if each.group not in held_out], steps, seed)
        predicted += [
            (each, predict_ensemble_probability(members, each.evidence.features, each.missing))
            for each in kind
            if each.group in held_out
        ]
    thresholds, figures = choose_thresholds(predicted, max_worse)
    return Decision(_fit_ensemble(kind, steps, seed), thresholds), figures


def _decide_on_pieces(
    kind: Sequence[ClickSample], folds: Sequence[set[str]], steps: int, seed: int, _max_worse: float
) -> tuple[PieceDecision, dict[str, float]]:
    predicted: list[_Predicted] = []
    for held_out in folds:
        members = _fit_ensemble([each for each in kind if each.group not in held_out], steps, seed)
        predicted += [_Predicted.from_sample(each, members) for each in kind if each.group in held_out]
    tried: list[tuple[_Predicted, tuple[MLP, ...]]] = []
    for held_out in folds:
        members = _fit_piece_ensemble([each for each in predicted if each.sample.group not in held_out], steps, seed)
        tried += [(each, members) for each in predicted if each.sample.group in held_out]
    caution, figures = choose_caution(tried)
    return PieceDecision(
        _fit_ensemble(kind, steps, seed), _fit_piece_ensemble(predicted, steps, seed), caution
    ), figures


def _fit_ensemble(samples: Sequence[ClickSample], steps: int, seed: int) -> tuple[MLP, ...]:
    return tuple(fit_perceptron(samples, steps, seed + member) for member in range(_MEMBERS))


def _fit_piece_ensemble(predicted: Sequence[_Predicted], steps: int, seed: int) -> tuple[MLP, ...]:
    features = np.concatenate([each.pieces.features for each in predicted])
    share = np.concatenate([each.right / each.pieces.voxels for each in predicted]).astype(np.float32)
    running = np.arange(1.0, len(share) + 1)
    return tuple(
        _train_perceptron(
            features, share, running, _PIECE_HIDDEN, min(steps, _PIECE_STEPS), _PIECE_BATCH, seed + member
        )
        for member in range(_MEMBERS)
    )


def choose_thresholds(
    predicted: Sequence[tuple[ClickSample, FloatArray]], max_worse: float
) -> tuple[Thresholds, dict[str, float]]:
    """Choose when voxels change: for the largest mean gain, if at most the share ``max_worse`` of clicks lowers Dice.

    ``predicted``: samples with the probability (n,) that their voxels are wrong. Also returns the gain and the share.
    """
    # Sorted once: the most probable voxels, how many of them are wrong, and the mean probability so far.
    lines = []
    for each, probability in predicted:
        order = np.argsort(-probability, kind="stable")
        counts = np.arange(1, len(order) + 1)
        running = np.cumsum(probability[order], dtype=np.float64) / counts
        lines.append((each, probability[order], running, np.cumsum(each.wrong[order], dtype=np.int64)))
    best: tuple[tuple[bool, float], Thresholds, dict[str, float]] | None = None
    for mean in _MEAN_CHOICES:
        for voxel in _VOXEL_CHOICES:
            gains = np.array([_compute_gain(*line, voxel, mean) for line in lines])
            worse, gain = float((gains < -1e-9).mean()), float(gains.mean())
            # Without a choice that is safe enough, the safest one.
            rank = (worse <= max_worse, gain if worse <= max_worse else -worse)
            if best is None or rank > best[0]:
                best = rank, Thresholds(voxel, mean), {"clicks": len(gains), "gain": gain, "worse": worse}
    assert best is not None
    return best[1], best[2]


def _compute_gain(
    sample: ClickSample,
    probability: FloatArray,
    running: NDArray[np.float64],
    right: NDArray[np.int64],
    voxel: float,
    mean: float,
) -> float:
    """Return the change of Dice if the voxels of at least ``voxel``, and on average of ``mean``, change."""
    # The mean falls with each voxel, so the last one that is high enough ends the change.
    count = int(np.count_nonzero((running >= mean) & (probability >= voxel)))
    if not count:
        return 0.0
    return float(sample.compute_dice_after(np.array([count]), right[count - 1 : count])[0] - sample.dice)


def choose_caution(
    predicted: Sequence[tuple[_Predicted, tuple[MLP, ...]]],
) -> tuple[float, dict[str, float]]:
    """Choose the caution with the largest mean gain of Dice, where losses count more (see ``LOSS``).

    ``predicted``: the pieces of each click, and the perceptrons that choose among them. Also returns the mean gain, as
    it is, and the share of clicks that lower Dice, both of the clicks on large errors if there are any.
    """
    tried: list[tuple[float, dict[str, float]]] = []
    large = np.array([each.sample.large for each, _ in predicted])
    shown = large if large.any() else ~large
    for caution in _CAUTION_CHOICES:
        gains = np.array([each.compute_gain(PieceDecision((), members, caution)) for each, members in predicted])
        value = float(np.where(gains < 0, LOSS * gains, gains).mean())
        worse, gain = float((gains[shown] < -1e-9).mean()), float(gains[shown].mean())
        tried.append((value, {"clicks": int(shown.sum()), "gain": gain, "worse": worse, "caution": caution}))
    best = max(tried, key=lambda each: each[0])[1]
    return best["caution"], best


def fit_perceptron(samples: Sequence[ClickSample], steps: int, seed: int) -> MLP:
    """Fit a perceptron for voxels to ``samples``.

    Voxels near the clicks count more than they occur, which does not change the probability given the distance, and
    those of small organs more, because a voxel is a larger share of them.
    """
    random = np.random.default_rng(seed)
    features, wrong, weights = [], [], []
    for sample in samples:
        chance = np.exp(-sample.evidence.distance / 12) + 0.04
        chance = np.minimum(chance * min(1.0, _VOXELS / max(float(chance.sum()), 1.0)), 1.0)
        picked = random.random(len(chance)) < chance
        features.append(sample.evidence.features[picked])
        wrong.append(sample.wrong[picked])
        weights.append(np.full(int(picked.sum()), (sample.truth + sample.mask) ** -_SIZE_POWER))
    weight = np.concatenate(weights)
    running = np.cumsum(np.minimum(weight / weight.mean(), _MAX_WEIGHT))
    x = np.concatenate(features).astype(np.float32)
    return _train_perceptron(x, np.concatenate(wrong).astype(np.float32), running, _HIDDEN, steps, _BATCH, seed)


def _train_perceptron(
    features: FloatArray,
    target: FloatArray,
    running: NDArray[np.float64],
    hidden: tuple[int, ...],
    steps: int,
    batch_size: int,
    seed: int,
) -> MLP:
    """Fit a perceptron whose output has the log-odds of ``target`` (n,), 0 to 1, given ``features`` (n, features).

    ``running`` (n,): the cumulative weights of the lines.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    inputs = torch.from_numpy(np.clip((features - mean) / scale, -5, 5))
    wanted, cumulative = torch.from_numpy(target), torch.from_numpy(running)
    generator = torch.Generator().manual_seed(seed)
    network = _make_mlp((features.shape[1], *hidden, 1), seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-2)
    for step in range(steps):
        rate = _RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        drawn = torch.rand(batch_size, generator=generator, dtype=torch.float64) * cumulative[-1]
        picked = torch.searchsorted(cumulative, drawn).clamp(max=len(wanted) - 1)
        # Noise, so that the perceptron does not rely on exact values of synthetic CTs.
        batch = inputs[picked] + _NOISE * torch.randn((batch_size, inputs.shape[1]), generator=generator)
        loss = functional.binary_cross_entropy_with_logits(network(batch)[:, 0], wanted[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layers = [
        Layer(tuple(map(_round_values, each.weight.detach().T.tolist())), _round_values(each.bias.tolist()))
        for each in network
        if isinstance(each, nn.Linear)
    ]
    return MLP(_round_values(mean.tolist()), _round_values(scale.tolist()), tuple(layers))


def _round_values(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def _make_mlp(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
