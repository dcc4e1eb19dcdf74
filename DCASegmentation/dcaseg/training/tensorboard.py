"""A run's log in TensorBoard, which is optional and installed by the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError, format_install_command
from ..method.log_gap import GROUPS, Partition
from ..organs import Vocabulary
from .cases import Case
from .options import TrainingOptions
from .sampling import PatchSampler
from .strategies.base import ScoredNetwork

FOLDER = "tensorboard"


class TensorBoardLog:
    """Writes losses, λ, agreement with the pseudo-labels, Dice of organs and groups, and an example slice.

    The events go to the folder ``tensorboard`` of ``run``. Raises UserError if TensorBoard is not installed.
    """

    def __init__(self, run: Path, vocabulary: Vocabulary, groups: Partition, options: TrainingOptions) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "TensorBoard is not installed.",
                f"Install it ({format_install_command('tensorboard')}), or leave out --tensorboard.",
            ) from None
        self._writer = SummaryWriter(str(run / FOLDER))
        self._vocabulary = vocabulary
        self._groups = groups
        self._options = options

    def add(self, line: dict[str, Any]) -> None:
        """Add one line of the run's log (see ``Trainer.run``)."""
        step = line["step"]
        for name, value in line.items():
            if name in ("weight", "agreement", "seconds", "skipped", "certain"):
                self._writer.add_scalar(name, value, step)
            elif name not in ("step", "dice"):
                self._writer.add_scalar(f"loss/{name}", value, step)
        dice = line.get("dice", {})
        for key, value in dice.items():
            self._writer.add_scalar(f"dice/{key}", value, step)
        for group, owned in zip(GROUPS, self._groups.owners, strict=True):
            known = [dice[key] for key in (self._vocabulary.by_label[label].key for label in owned) if key in dice]
            if known:
                self._writer.add_scalar(f"dice of groups/{group}", float(np.mean(known)), step)

    def add_example(self, network: ScoredNetwork, case: Case, step: int) -> None:
        """Add an image of the middle slice of a patch of ``case``: CT, ground truth and result, side by side."""
        sampler = PatchSampler([case], self._options, np.random.default_rng(0))
        patch = sampler.draw(1)
        assert patch.labels is not None
        training = network.training
        network.eval()
        with torch.inference_mode():
            volume = torch.from_numpy(patch.volumes).to(next(network.parameters()).device)
            predicted = network(volume).argmax(dim=1)[0].cpu().numpy()
        network.train(training)
        middle = patch.volumes.shape[2] // 2
        ct = patch.volumes[0, 0, middle]
        if self._options.grid.scaling != "window":
            ct = (ct - ct.min()) / max(float(np.ptp(ct)), 1e-6)
        gray = np.repeat(ct[..., None], 3, axis=-1)
        panes = [gray, self._overlay(gray, patch.labels[0, middle]), self._overlay(gray, predicted[middle])]
        # Flip to the radiological view: rows of an RAS array run to anterior, columns to the right.
        picture = np.concatenate([pane[::-1, ::-1] for pane in panes], axis=1)
        self._writer.add_image("example: CT, truth, result", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write the remaining events to disk."""
        self._writer.close()

    def _overlay(self, gray: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Blend the organs' colors of ``labels`` (height, width) over ``gray`` (height, width, 3)."""
        colors = np.array([(0, 0, 0), *(organ.color for organ in self._vocabulary)], np.float32) / 255
        inside = (labels > 0)[..., None]
        return np.where(inside, (gray + colors[labels]) / 2, gray).astype(np.float32)
