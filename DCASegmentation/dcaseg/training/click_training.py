"""Training of the click network: cubes from cases, masks with simulated errors, and simulated clicks."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..errors import UserError
from ..interaction.click_network import ClickNetwork, make_network_input
from ..interaction.click_options import ClickNetworkOptions
from ..interaction.view import FloatArray, Mask, ViewStroke, compute_signed_distance
from .cases import Case
from .checkpoints import load_checkpoint, remove_leftovers, save_checkpoint
from .interruption import Interruption
from .options import ClickTrainingOptions
from .run_folder import CHECKPOINT, append_to_log, trim_log

_VALIDATION_SEED = 7_000_000
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Sample:
    """A training cube.

    ``features`` (channel, z, y, x) is the network's input, ``truth`` (z, y, x) the correct mask, and ``mask`` (z, y, x)
    the mask to correct.
    """

    features: FloatArray
    truth: Mask
    mask: Mask


class ClickSampler:
    """Draws samples from cases on the network's grid. All organs of a case are equally likely.

    Raises UserError if no case has a labeled organ.
    """

    def __init__(self, cases: Sequence[Case], options: ClickNetworkOptions, generator: np.random.Generator) -> None:
        self._cases = [case for case in cases if case.positions]
        if not self._cases:
            raise UserError("No case has a labeled organ.", "Specify cases with label maps.")
        self._options = options
        self.generator = generator

    def draw(self) -> Sample:
        """Draw one sample. If the simulated mask has no error, another one is drawn."""
        while True:
            case = self._cases[int(self.generator.integers(len(self._cases)))]
            labels = sorted(case.positions)
            label = labels[int(self.generator.integers(len(labels)))]
            sample = self._sample(case, label)
            if sample is not None:
                return sample

    def _sample(self, case: Case, label: int) -> Sample | None:
        random, side, spacing = self.generator, self._options.side, self._options.spacing_mm
        assert case.labels is not None
        positions = case.positions[label]
        anchor = positions[int(random.integers(len(positions)))]
        # 1.5 times the cube's size, because the error and thus the click may be away from the anchor.
        margin_side = side * 3 // 2
        labels = _cut(case.labels, anchor, margin_side, 0)
        truth = labels == label
        others_truth = (labels != 0) & ~truth
        mask = simulate_mask(truth, labels, label, spacing, random)
        strokes: list[tuple[NDArray[np.int64], bool, float | None]] = []
        count = int(random.choice((1, 1, 1, 2, 3, 5)))
        for number in range(count):
            click = simulate_click(mask, truth, spacing, random)
            if click is None:
                break
            at, adds = click
            radius = None if not mask.any() else abs(float(compute_signed_distance(mask, (spacing,) * 3)[tuple(at)]))
            strokes.append((at, adds, radius))
            if number + 1 < count:
                # The effect of the previous clicks: the mask is mostly correct near them.
                near = _make_ball(mask.shape, at, float(random.uniform(6.0, 30.0)) / spacing)
                mask = np.where(near, truth, mask)
        if not strokes or (mask == truth).all():
            return None
        center = strokes[-1][0]
        hu = _cut(case.hu, anchor, margin_side, -1024)
        low = center - side // 2

        def cube(array: np.ndarray, fill: float) -> np.ndarray:
            return _cut(array, center, side, fill)

        strokes_in_cube = []
        for at, adds, radius in strokes:
            inner = at - low
            if ((inner >= 0) & (inner < side)).all():
                strokes_in_cube.append(ViewStroke(inner[None], adds, radius))
        others = others_truth & ~mask
        hu = hu.astype(np.float32)
        if random.random() < 0.5:
            hu = hu * np.float32(random.uniform(0.9, 1.1)) + np.float32(random.uniform(-20, 20))
        if random.random() < 0.3:
            hu = hu + random.normal(0, float(random.uniform(2, 20)), hu.shape).astype(np.float32)
        if random.random() < 0.3:
            # The neighboring organs may not be segmented.
            others = np.zeros_like(others)
        features = make_network_input(cube(hu, -1024.0), cube(mask, 0), cube(others, 0), strokes_in_cube, spacing)
        return Sample(features, cube(truth, 0), cube(mask, 0))


def simulate_mask(
    truth: Mask, labels: NDArray[np.uint8], label: int, spacing_mm: float, random: np.random.Generator
) -> Mask:
    """Add errors that networks make to the mask ``truth`` (z, y, x).

    Borders are irregular, shifted or coarse; parts are missing; the mask leaks into the surroundings or includes parts
    of a neighboring organ; sometimes it is empty.
    """
    if random.random() < 0.08:
        return np.zeros_like(truth)
    depth = compute_signed_distance(truth, (spacing_mm,) * 3)
    wobble = _generate_noise(truth.shape, float(random.uniform(6.0, 20.0)) / spacing_mm, random)
    depth += wobble * np.float32(random.uniform(0.5, 4.0)) + np.float32(random.normal(0.0, 1.2))
    mask = depth < 0
    if random.random() < 0.5:
        # As from a network on a grid of 4 mm.
        step = 2 if spacing_mm > 1.5 else 3
        coarse = depth[::step, ::step, ::step] < 0
        grown = coarse.repeat(step, 0).repeat(step, 1).repeat(step, 2)
        mask = grown[: truth.shape[0], : truth.shape[1], : truth.shape[2]]
    for _ in range(int(random.integers(0, 3))):
        inside = np.argwhere(truth)
        at = inside[int(random.integers(len(inside)))]
        mask = mask & ~_make_blob(truth.shape, at, float(random.uniform(6.0, 30.0)) / spacing_mm, random)
    for _ in range(int(random.integers(0, 3))):
        rim = np.argwhere((depth > 0) & (depth < 6.0))
        if len(rim):
            at = rim[int(random.integers(len(rim)))]
            mask = mask | _make_blob(truth.shape, at, float(random.uniform(4.0, 16.0)) / spacing_mm, random)
    if random.random() < 0.25:
        neighbors = np.argwhere((labels != 0) & (labels != label) & (depth < 20.0))
        if len(neighbors):
            at = neighbors[int(random.integers(len(neighbors)))]
            swapped = labels == labels[tuple(at)]
            mask = mask | (swapped & _make_blob(truth.shape, at, float(random.uniform(6.0, 24.0)) / spacing_mm, random))
    return mask


def simulate_click(
    mask: Mask, truth: Mask, spacing_mm: float, random: np.random.Generator
) -> tuple[NDArray[np.int64], bool] | None:
    """Simulate a click in the larger of the largest missing and the largest surplus region; None without errors.

    Returns its voxel (z, y, x) and whether it adds. Since people do not hit the exact center, the click is a random
    voxel whose depth is at least half of the largest depth.
    """
    best: tuple[int, bool, Mask] | None = None
    for adds, error in ((True, truth & ~mask), (False, mask & ~truth)):
        if not error.any():
            continue
        pieces = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(error.astype(np.uint8)), False))
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        number = int(sizes.argmax())
        if best is None or sizes[number] > best[0]:
            best = (int(sizes[number]), adds, pieces == number)
    if best is None:
        return None
    _, adds, piece = best
    depth = -compute_signed_distance(piece, (spacing_mm,) * 3)
    deep = np.argwhere(piece & (depth >= 0.5 * depth[piece].max()))
    return deep[int(random.integers(len(deep)))], adds


class ClickTrainer:
    """One training run in one folder. A resumed run draws the same samples as an uninterrupted one."""

    def __init__(
        self,
        folder: Path,
        options: ClickTrainingOptions,
        cases: Sequence[Case],
        validation: Sequence[Case] = (),
        device: str = "cpu",
    ) -> None:
        self.folder = folder
        self.options = options
        self.device = torch.device(device)
        torch.manual_seed(options.seed)
        self.network = ClickNetwork(**asdict(options.network)).to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=options.learning_rate, weight_decay=1e-4)
        self.step = 0
        self._sampler = ClickSampler(cases, options.network, np.random.default_rng(options.seed))
        self._validation = list(validation)

    def resume(self) -> None:
        """Continue from the folder's checkpoint. Raises UserError if it is missing or has other options."""
        state = load_checkpoint(self.folder / CHECKPOINT)
        stored = {**state["options"], "steps": self.options.steps}
        if stored != json.loads(json.dumps(self.options.to_json())):
            raise UserError(
                f"The run in {self.folder} was started with other options.", "Resume it with the same options."
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._sampler.generator = _restore_generator(state["generator"])
        self.step = int(state["step"])

    def save(self) -> None:
        """Write the checkpoint. Raises OutputError if it cannot be written; the previous one then stays."""
        save_checkpoint(
            self.folder / CHECKPOINT,
            {
                "options": json.loads(json.dumps(self.options.to_json())),
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": dict(self._sampler.generator.bit_generator.state),
                "step": self.step,
            },
        )

    def run(
        self,
        minutes: float | None = None,
        save_every: int = 500,
        log_every: int = 20,
        report: Report | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Train for ``options.steps`` steps or for ``minutes``, save, and validate.

        Ctrl+C, SIGTERM and SIGHUP end the run after the current step: a checkpoint is saved, and KeyboardInterrupt is
        raised. A second signal raises it immediately, and the last checkpoint stays as it is.

        ``report`` receives each line of the log, and ``notify`` messages for the user. Raises UserError if the loss is
        not finite; the last checkpoint then stays as it is.
        """
        started = time.monotonic()
        losses: list[float] = []
        remove_leftovers(self.folder / CHECKPOINT)
        trim_log(self.folder, self.step)
        with Interruption(notify) as interruption:
            while self.step < self.options.steps and not interruption.requested:
                if minutes is not None and time.monotonic() - started >= 60 * minutes:
                    break
                losses.append(self._train_step())
                self.step += 1
                if self.step % log_every == 0 or self.step == self.options.steps:
                    self._log({"step": self.step, "loss": float(np.mean(losses))}, report)
                    losses = []
                if self.step % save_every == 0:
                    self.save()
            self.save()
            if interruption.requested:
                raise KeyboardInterrupt
        if self._validation:
            self._log({"step": self.step, **self.validate()}, report)

    def _train_step(self) -> float:
        rate = self.options.learning_rate * min(1.0, (self.step + 1) / max(self.options.warmup_steps, 1))
        rate *= 0.5 * (1 + math.cos(math.pi * self.step / self.options.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        samples = [self._sampler.draw() for _ in range(self.options.batch)]
        cubes = torch.from_numpy(np.stack([each.features for each in samples])).to(self.device)
        truth = torch.from_numpy(np.stack([each.truth for each in samples])).to(self.device).float()
        mask = torch.from_numpy(np.stack([each.mask for each in samples])).to(self.device).float()
        self.network.train()
        logits = self.network(cubes)
        # Voxels where the mask is wrong have more weight, because they are only a small part of a cube.
        weight = 1.0 + 4.0 * (truth != mask)
        cross_entropy = (functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).mean()
        probabilities = torch.sigmoid(logits).flatten(1)
        target = truth.flatten(1)
        overlap = (probabilities * target).sum(1)
        dice = 1 - ((2 * overlap + 1) / (probabilities.sum(1) + target.sum(1) + 1)).mean()
        loss = cross_entropy + dice
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        if not torch.isfinite(loss):
            raise UserError(f"The loss is not finite at step {self.step}.", "Train with a lower --learning-rate.")
        self.optimizer.step()
        return float(loss.detach())

    def validate(self, count: int = 48) -> dict[str, float]:
        """Mean Dice in the cube before and after the click, and the fraction of clicks that lower it.

        They are computed on ``count`` fixed samples of the validation cases.
        """
        sampler = ClickSampler(self._validation, self.options.network, np.random.default_rng(_VALIDATION_SEED))
        self.network.eval()
        pairs = []
        with torch.inference_mode():
            for _ in range(count):
                sample = sampler.draw()
                logits = self.network(torch.from_numpy(sample.features)[None].to(self.device))[0].cpu().numpy()
                pairs.append((_dice(sample.mask, sample.truth), _dice(logits > 0, sample.truth)))
        before, after = np.array(pairs).T
        return {
            "dice_before": round(float(before.mean()), 4),
            "dice_after": round(float(after.mean()), 4),
            "worse": round(float((after < before).mean()), 4),
        }

    def _log(self, line: dict[str, Any], report: Report | None) -> None:
        rounded = append_to_log(self.folder, line)
        if report is not None:
            report(rounded)


def _cut(array: np.ndarray, center: NDArray[np.int64], side: int, fill: float) -> np.ndarray:
    """A cube of ``side`` voxels around ``center`` (z, y, x), padded with ``fill`` outside of the array."""
    result = np.full((side,) * 3, fill, array.dtype)
    low = np.asarray(center) - side // 2
    source, target = [], []
    for axis in range(3):
        start, stop = max(int(low[axis]), 0), min(int(low[axis]) + side, array.shape[axis])
        if start >= stop:
            return result
        source.append(slice(start, stop))
        target.append(slice(start - int(low[axis]), stop - int(low[axis])))
    result[tuple(target)] = array[tuple(source)]
    return result


def _make_ball(shape: Sequence[int], center: NDArray[np.int64], radius: float) -> Mask:
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return np.asarray((z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 <= radius**2)


def _make_blob(shape: Sequence[int], center: NDArray[np.int64], radius: float, random: np.random.Generator) -> Mask:
    """A flattened ball with an irregular surface or, sometimes, half of a larger ball."""
    z, y, x = (np.arange(n, dtype=np.float32) - float(c) for n, c in zip(shape, center, strict=True))
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    stretch = float(random.uniform(0.4, 1.0))
    along = direction[0] * z[:, None, None] + direction[1] * y[None, :, None] + direction[2] * x[None, None, :]
    squared = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2
    if random.random() < 0.15:
        return np.asarray((along > 0) & (squared < (3 * radius) ** 2))
    away = np.sqrt(np.maximum(squared + (stretch**-2 - 1) * along**2, 0))
    return np.asarray(away + _generate_noise(shape, max(radius / 2, 1.5), random) * 0.2 * radius <= radius)


def _generate_noise(shape: Sequence[int], sigma: float, random: np.random.Generator) -> FloatArray:
    """Smooth noise with mean 0 and SD 1: drawn on a coarse grid of ``sigma`` voxels, then interpolated."""
    coarse = [max(2, int(np.ceil(n / max(sigma, 1.0))) + 2) for n in shape]
    values = torch.from_numpy(random.standard_normal(coarse, dtype=np.float32))[None, None]
    fine = functional.interpolate(values, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0].numpy()
    return (fine - fine.mean()) / max(float(fine.std()), 1e-6)


def _dice(one: Mask, other: Mask) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else 1.0


def _restore_generator(state: dict[str, Any]) -> np.random.Generator:
    generator = np.random.default_rng()
    generator.bit_generator.state = state
    return generator
