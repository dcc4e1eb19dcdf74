"""Fits the classifier of ``interaction.click_classifier`` to simulated clicks on the errors of a model.

Each case is a CT with its true labels and the model's result. For each organ, clicks at the center of the largest error
are simulated: on the model's mask, on one of which some errors are repaired, on an empty one, and on masks with large
errors of other kinds (``click_damage``). Between clicks, the classifier in use corrects the mask. When voxels change is chosen by cross-validation: each anatomy is predicted by
perceptrons that were fitted to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ..errors import UserError
from ..imaging.grid import Grid
from ..interaction.click_classifier import (
    ClickClassifier,
    Decision,
    Layer,
    Perceptron,
    Sureness,
    probability_of,
    shipped_classifier,
)
from ..interaction.evidence import FEATURES, evidence_of
from ..interaction.random_walker import RandomWalkerEngine, without_islands
from ..interaction.session import CorrectionSession
from ..interaction.strokes import Stroke, to_point
from ..interaction.view import FloatArray, Mask, View
from ..organs import Vocabulary
from .click_damage import damaged_mask
from .click_simulation import dice_of, next_click

MOST_WORSE = 0.1
"""The highest share of simulated clicks that may lower Dice when the thresholds are chosen. In use, a change is one
piece around the click, which about halves that share."""

# The masks to start from, and the number of clicks on each.
_CLICKS = {"model": 6, "repaired": 2, "missing": 1, "damaged": 2, "damaged again": 1}
_VOXELS = 2000
_SMALLEST_ML = 0.4
_REPAIRED = 0.6
_USABLE = 0.6
_HIDDEN = (32, 16)
_MEMBERS = 3
_FOLDS = 3
_BATCH = 2048
_RATE = 3e-3
_NOISE = 0.1
_SIZE_POWER = 0.75
_MOST_WEIGHT = 50.0
_VOXEL_CHOICES = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
_MEAN_CHOICES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class ClickSample:
    """Some of the voxels that one simulated click might have changed.

    ``group``: the anatomy. ``start``: the kind of mask before the first click. ``features`` (n, features); ``wrong`` (n,): whether the voxels are wrong in the way that the
    click says; ``weight`` (n,): how many voxels each one stands for. ``adds``: the click adds; ``missing``: the organ
    had no mask in the block. ``truth``, ``mask``: voxels of the organ and of its mask; ``dice``: before the click.
    """

    group: str
    features: NDArray[np.float16]
    wrong: Mask
    weight: FloatArray
    adds: bool
    missing: bool
    truth: int
    mask: int
    dice: float
    start: str = "model"

    def gain(self, changes: Mask) -> float:
        """Return the change of Dice if the sampled voxels ``changes`` (n,), and those they stand for, change."""
        right = float(self.weight[changes & self.wrong].sum())
        bad = float(self.weight[changes & ~self.wrong].sum())
        total = self.truth + self.mask
        overlap = 0.5 * self.dice * total
        if self.adds:
            return 2 * (overlap + right) / (total + right + bad) - self.dice
        return 2 * (overlap - bad) / max(total - right - bad, 1) - self.dice


class _Recorder:
    """An engine that keeps the evidence on each click, and answers with a classifier."""

    name = "recorder"

    def __init__(self, truth: sitk.Image, classifier: ClickClassifier, random: np.random.Generator) -> None:
        self._truth, self._classifier, self._random = truth, classifier, random
        self._walker = RandomWalkerEngine()
        self.taken: tuple[NDArray[np.float16], Mask, FloatArray, bool] | None = None

    def foreground(self, view: View) -> FloatArray:
        """See ``interaction.view.Engine``."""
        evidence = evidence_of(view, self._walker.foreground(view))
        reference = view.grid.image_of(np.zeros(view.mask.shape, np.uint8))
        nearest = sitk.Resample(self._truth, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        wrong = ((sitk.GetArrayFromImage(nearest) > 0) == view.strokes[-1].adds)[evidence.candidates]
        # Voxels near the click matter most, so more of them are taken.
        chance = np.exp(-evidence.distance / 12) + 0.04
        chance = np.minimum(chance * min(1.0, _VOXELS / max(float(chance.sum()), 1.0)), 1.0)
        picked = self._random.random(len(chance)) < chance
        weight = (1 / chance[picked]).astype(np.float32)
        self.taken = evidence.features[picked].astype(np.float16), wrong[picked], weight, not view.mask.any()
        return without_islands(self._classifier.changed(evidence, view), view)


def collect(
    group: str,
    ct: sitk.Image,
    start: sitk.Image,
    truth: sitk.Image,
    vocabulary: Vocabulary,
    random: np.random.Generator,
    known: Sequence[int] | None = None,
) -> list[ClickSample]:
    """Simulate clicks on all organs in ``truth``, starting from the model's result ``start``, on the same grid.

    ``known`` are the annotated labels, None for all. ``group``: the name of the anatomy.
    """
    samples: list[ClickSample] = []
    labels, first, hu = (sitk.GetArrayFromImage(each) for each in (truth, start, ct))
    grid = Grid.of(ct)
    names = {each.label: each.key for each in vocabulary}
    classifier = shipped_classifier()
    for organ in vocabulary:
        target = labels == organ.label
        if (known is not None and organ.label not in known) or (
            np.count_nonzero(target) * grid.volume_ml_per_voxel < _SMALLEST_ML
        ):
            continue
        image = grid.image_of(target.astype(np.uint8))
        own = first == organ.label
        for kind, clicks in _CLICKS.items():
            mask = _start(kind, own, target, hu, grid.spacing, random)
            recorder = _Recorder(image, classifier, random)
            begun = np.where(mask, organ.label, np.where(own, 0, first)).astype(first.dtype)
            session = CorrectionSession(ct, grid.image_of(begun), names, engine=recorder)
            samples += _clicks(group, kind, session, recorder, organ.label, target, clicks)
    return samples


def _start(
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
        return _repaired(own, target, random)
    if kind == "missing":
        return np.zeros_like(own)
    usable = dice_of(own, target) > _USABLE and random.random() < 0.5
    return damaged_mask(own if usable else target, hu, spacing, random)


def _repaired(mask: Mask, target: Mask, random: np.random.Generator) -> Mask:
    """Return ``mask`` with most of the pieces of its errors replaced by ``target``, all (z, y, x)."""
    error = mask != target
    pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(error.astype(np.uint8)), False))
    chosen = random.random(int(pieces.max()) + 1) < _REPAIRED
    return np.where(error & chosen[pieces], target, mask)


def _clicks(
    group: str, start: str, session: CorrectionSession, recorder: _Recorder, label: int, target: Mask, clicks: int
) -> list[ClickSample]:
    samples: list[ClickSample] = []
    for _ in range(clicks):
        mask = np.asarray(session.labels == label)
        click = next_click(mask, target, session.grid.spacing)
        if click is None:
            break
        recorder.taken = None
        try:
            session.apply(label, Stroke((to_point(click.index, session.grid),), click.adds))
        except UserError:
            break
        if recorder.taken is not None:
            features, wrong, weight, missing = recorder.taken
            counts = int(np.count_nonzero(target)), int(np.count_nonzero(mask))
            dice = dice_of(mask, target)
            samples.append(ClickSample(group, features, wrong, weight, click.adds, missing, *counts, dice, start))
    return samples


def fit_classifier(
    samples: Sequence[ClickSample],
    steps: int = 800,
    seed: int = 0,
    most_worse: float = MOST_WORSE,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[ClickClassifier, dict[str, dict[str, float]]]:
    """Fit a classifier to ``samples``, and return it with what cross-validation says of each kind of click.

    That is the mean change of Dice by a click (``gain``) and the share of clicks that lower it (``worse``), without the
    rule that a change is one piece. Raises UserError if there are not enough samples of each kind.
    """
    kinds = {
        "adding": [each for each in samples if not each.missing and each.adds],
        "removing": [each for each in samples if not each.missing and not each.adds],
        "finding": [each for each in samples if each.missing],
    }
    decisions: dict[str, Decision] = {}
    figures: dict[str, dict[str, float]] = {}
    for index, (name, kind) in enumerate(kinds.items()):
        if progress is not None:
            progress(index / len(kinds), f"Fitting: {name}")
        groups = sorted({each.group for each in kind})
        if len(groups) < 2:
            raise UserError(f"Too few anatomies have clicks for {name}.", "Give more cases, of different label maps.")
        predicted: list[tuple[ClickSample, FloatArray]] = []
        for fold in range(min(_FOLDS, len(groups))):
            held_out = set(groups[fold::_FOLDS])
            members = _members([each for each in kind if each.group not in held_out], steps, seed)
            predicted += [
                (each, probability_of(members, each.features.astype(np.float32), name == "finding"))
                for each in kind
                if each.group in held_out
            ]
        sureness, figures[name] = choose_sureness(predicted, most_worse)
        decisions[name] = Decision(_members(kind, steps, seed), sureness)
    cases = tuple(sorted({each.group for each in samples}))
    return ClickClassifier(FEATURES, **decisions, cases=cases), figures


def _members(samples: Sequence[ClickSample], steps: int, seed: int) -> tuple[Perceptron, ...]:
    return tuple(fit_perceptron(samples, steps, seed + member) for member in range(_MEMBERS))


def choose_sureness(
    predicted: Sequence[tuple[ClickSample, FloatArray]], most_worse: float
) -> tuple[Sureness, dict[str, float]]:
    """Choose when voxels change: for the largest mean gain, if at most the share ``most_worse`` of clicks lowers Dice.

    ``predicted``: samples with the probability (n,) that their voxels are wrong. Also returns the gain and the share.
    """
    best: tuple[tuple[bool, float], Sureness, dict[str, float]] | None = None
    for mean in _MEAN_CHOICES:
        for voxel in _VOXEL_CHOICES:
            gains = np.array([each.gain(_sure(p, each.weight, voxel, mean)) for each, p in predicted])
            worse, gain = float((gains < -1e-9).mean()), float(gains.mean())
            # Without a choice that is safe enough, the safest one.
            rank = (worse <= most_worse, gain if worse <= most_worse else -worse)
            if best is None or rank > best[0]:
                best = rank, Sureness(voxel, mean), {"clicks": len(gains), "gain": gain, "worse": worse}
    assert best is not None
    return best[1], best[2]


def _sure(probability: FloatArray, weight: FloatArray, voxel: float, mean: float) -> Mask:
    """Return the most probable voxels, at least ``voxel``, whose mean probability is at least ``mean``."""
    order = np.argsort(-probability, kind="stable")
    running = np.cumsum((probability * weight)[order]) / np.cumsum(weight[order])
    # The mean falls with each voxel, so the last one that is high enough ends the change.
    count = int(np.count_nonzero((running >= mean) & (probability[order] >= voxel)))
    sure = np.zeros(len(probability), bool)
    sure[order[:count]] = True
    return sure


def fit_perceptron(samples: Sequence[ClickSample], steps: int, seed: int) -> Perceptron:
    """Fit a perceptron to ``samples``.

    Voxels near the clicks count more than they occur, which does not change the probability given the distance, and
    those of small organs more, because a voxel is a larger share of them.
    """
    x = np.concatenate([each.features for each in samples]).astype(np.float32)
    y = torch.from_numpy(np.concatenate([each.wrong for each in samples]).astype(np.float32))
    weights = np.concatenate([np.full(len(each.wrong), (each.truth + each.mask) ** -_SIZE_POWER) for each in samples])
    running = torch.from_numpy(np.cumsum(np.minimum(weights / weights.mean(), _MOST_WEIGHT)))
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    inputs = torch.from_numpy(np.clip((x - mean) / scale, -5, 5))
    generator = torch.Generator().manual_seed(seed)
    network = _network(len(FEATURES), seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-2)
    for step in range(steps):
        rate = _RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        drawn = torch.rand(_BATCH, generator=generator, dtype=torch.float64) * running[-1]
        picked = torch.searchsorted(running, drawn).clamp(max=len(y) - 1)
        # Noise, so that the perceptron does not rely on exact values of synthetic CTs.
        batch = inputs[picked] + _NOISE * torch.randn((_BATCH, inputs.shape[1]), generator=generator)
        loss = functional.binary_cross_entropy_with_logits(network(batch)[:, 0], y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layers = [
        Layer(
            tuple(tuple(round(float(value), 5) for value in row) for row in each.weight.detach().T),
            tuple(round(float(value), 5) for value in each.bias.detach()),
        )
        for each in network
        if isinstance(each, nn.Linear)
    ]
    return Perceptron(tuple(np.round(mean, 5).tolist()), tuple(np.round(scale, 5).tolist()), tuple(layers))


def _network(inputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (inputs, *_HIDDEN, 1)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
