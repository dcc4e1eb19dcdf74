"""The training loop of DCA in plain PyTorch (section 3.6 of the method's dossier)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from ..method.experts import VNET_N_STAGES, ExpertDecoder
from ..method.log_gap import Partition, partition
from ..method.network import DCANet
from ..method.objective import unsupervised_weight
from ..organs import Vocabulary
from .augmentation import augment_intensity
from .averaging import AveragedWeights
from .cases import Case
from .checkpoint import generator_state, load_checkpoint, restore_generator, save_checkpoint
from .dca_step import Stage, supervised_losses, unsupervised_loss
from .options import TrainingOptions
from .sampling import PatchSampler
from .validation import validate

CHECKPOINT = "last.pt"
BEST = "best.pt"
LOG = "log.jsonl"

# The faster layout for 3D convolutions, on the CPU too.
_CHANNELS_LAST = torch.channels_last_3d

Report = Callable[[dict[str, Any]], None]


class Trainer:
    """One run in one folder.

    ``labelled`` and ``unlabelled`` are cases on the model grid. The groups of organs come from log-gap analysis of
    the labelled cases. Everything drawn at random comes from the options' seed, and a resumed run draws what the
    uninterrupted one would have drawn. ``initial`` is a trained network whose weights the run starts from.

    Raises UserError if there are no labelled cases, if the folder holds a run with other options, or if ``initial``
    is a network of other options.
    """

    def __init__(
        self,
        folder: Path,
        options: TrainingOptions,
        vocabulary: Vocabulary,
        labelled: Sequence[Case],
        unlabelled: Sequence[Case],
        validation: Sequence[Case] = (),
        device: str = "cpu",
        initial: DCANet | None = None,
    ) -> None:
        if not labelled:
            raise UserError("There is no labelled case to train on.", "Give at least one CT with a label map.")
        self.folder = folder
        self.options = options
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.partition = _log_gap(labelled, vocabulary)
        torch.manual_seed(options.seed)
        self.network = build_network(options, self.partition)
        if initial is not None:
            _start_from(self.network, initial)
        self.network.to(self.device)
        self.network.to(memory_format=_CHANNELS_LAST)  # type: ignore[call-overload]
        self.averaged = AveragedWeights(self.network, options.averaging) if options.averaging else None
        self.optimizer = _optimizer(self.network, options)
        self.step = 0
        self.best = -1.0
        self._generator = np.random.default_rng(options.seed)
        self._labelled = PatchSampler(labelled, options, self._generator)
        self._unlabelled = PatchSampler(unlabelled, options, self._generator) if unlabelled else None
        self._validation = list(validation)

    @property
    def best_network(self) -> DCANet:
        """The network that is validated and shipped: the averaged weights where the options average."""
        return self.averaged.network if self.averaged is not None else self.network  # type: ignore[return-value]

    def resume(self) -> None:
        """Go on from the folder's last checkpoint.

        Raises UserError if there is none to read, or if it is of other options (steps and seed aside).
        """
        state = load_checkpoint(self.folder / CHECKPOINT)
        saved = TrainingOptions.from_json(state["options"])
        if replace(saved, steps=self.options.steps) != self.options:
            raise UserError(
                f"The run in {self.folder} was started with other options.",
                "Resume it with the same options, or train in a new folder.",
            )
        if not same_groups(state["owners"], self.partition.owners):
            raise UserError(
                f"The run in {self.folder} has other groups of organs: its labelled cases have changed.",
                "Resume it with the same cases, or train in a new folder.",
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.network.load_state_dict(state["averaged"])
            self.averaged.updates = state["averaged_updates"]
        self.step = state["step"]
        self.best = state["best"]
        restored = restore_generator(state["generator"])
        self._generator.bit_generator.state = restored.bit_generator.state
        torch.set_rng_state(state["torch_generator"])

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint into the folder."""
        state: dict[str, Any] = {
            "options": self.options.to_json(),
            "owners": [list(owned) for owned in self.partition.owners],
            "step": self.step,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": generator_state(self._generator),
            "torch_generator": torch.get_rng_state(),
        }
        if self.averaged is not None:
            state["averaged"] = self.averaged.network.state_dict()
            state["averaged_updates"] = self.averaged.updates
        save_checkpoint(self.folder / name, state)

    def run(
        self,
        minutes: float | None = None,
        save_every: int = 100,
        validate_every: int = 500,
        report: Report | None = None,
    ) -> None:
        """Train until the options' steps are done or ``minutes`` are over, saving on the way and at the end.

        Ctrl+C saves too. ``report`` receives each line of the log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        try:
            while self.step < self.options.steps and (deadline is None or time.monotonic() < deadline):
                started = time.monotonic()
                values = self._advance()
                line: dict[str, Any] = {"step": self.step, **values, "seconds": round(time.monotonic() - started, 3)}
                if self._validation and self.step % validate_every == 0:
                    line["dice"] = self._validate()
                self._log(line, report)
                if self.step % save_every == 0:
                    self.save()
        finally:
            self.save()

    def _advance(self) -> dict[str, float]:
        options = self.options
        stage, first, length = stage_of(self.step, options)
        within = self.step - first
        if stage == "aggregation" and within == 0:
            self._start_aggregation()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(within, length, options)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}

        patches = self._labelled.draw(options.labelled_per_step)
        assert patches.labels is not None
        truth = torch.from_numpy(patches.labels).to(self.device)
        balance = options.class_balance * (1 - within / length)
        volumes = self._tensor(patches.volumes)
        losses = supervised_losses(self.network, volumes, truth, options, stage, balance, patches.unknown)
        if losses:
            torch.stack(list(losses.values())).sum().backward()
            values |= {name: loss.item() for name, loss in losses.items()}

        weight = self._unsupervised_weight(stage, within, length)
        if weight > 0 and self._unlabelled is not None:
            volumes = self._tensor(self._unlabelled.draw(options.unlabelled_per_step).volumes)
            loss, agreement = unsupervised_loss(self.network, volumes, options, stage)
            (weight * loss).backward()
            values |= {"unsupervised": loss.item(), "weight": weight, "agreement": agreement.item()}

        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.gradient_limit)
        if torch.isfinite(norm):
            self.optimizer.step()
            if self.averaged is not None:
                self.averaged.update(self.network)
        else:
            values["skipped"] = 1.0
        self.step += 1
        return values

    def _start_aggregation(self) -> None:
        """Begin the aggregation's stage: on the averaged experts, as a copy of the medium one if that has its blocks.

        The optimizer starts anew: its moments are those of weights that learn no more.
        """
        if self.averaged is not None:
            self.network.load_state_dict(self.averaged.network.state_dict())
        aggregation, slots = self.network.aggregation, self.network.expert_slots
        medium = 1 in slots and tuple(self.options.n_stages[1]) == VNET_N_STAGES
        if aggregation is not None and medium and self.options.aggregation_start == "medium":
            experts: list[ExpertDecoder] = list(self.network.experts)  # type: ignore[arg-type]
            aggregation.start_from(experts, self.network.owners, plain=slots.index(1))
        self.optimizer = _optimizer(self.network, self.options)
        if self.averaged is not None:
            self.averaged.start_from(self.network)

    def _unsupervised_weight(self, stage: Stage, within: int, length: int) -> float:
        options = self.options
        if stage == "experts":
            return 0.0
        weight = unsupervised_weight(within, round(options.ramp_fraction * length), options.unsupervised_weight)
        return weight if weight > options.negligible_weight * options.unsupervised_weight else 0.0

    def _tensor(self, volumes: np.ndarray) -> torch.Tensor:
        if self.options.augment:
            volumes = augment_intensity(volumes, self._generator)
        return torch.from_numpy(volumes).to(self.device).to(memory_format=_CHANNELS_LAST)

    def _validate(self) -> dict[str, float]:
        scores = validate(self.best_network, self._validation, self.options)
        dice = {
            organ.key: round(float(score), 4)
            for organ, score in zip(self.vocabulary, scores, strict=True)
            if np.isfinite(score)
        }
        mean = float(np.mean(list(dice.values())))
        if mean > self.best:
            self.best = mean
            self.save(BEST)
        return {"mean": round(mean, 4), **dice}

    def _log(self, line: dict[str, Any], report: Report | None) -> None:
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        if report is not None:
            report(rounded)


def same_groups(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> bool:
    """Whether each expert owns the same labels in both; their order within a group means nothing to the network."""
    return [set(owned) for owned in one] == [set(owned) for owned in other]


def stage_of(step: int, options: TrainingOptions) -> tuple[Stage, int, int]:
    """Who learns at ``step``, the first step of that stage, and its length in steps."""
    border = round(options.experts_first * options.steps)
    if border == 0:
        return "joint", 0, options.steps
    return ("experts", 0, border) if step < border else ("aggregation", border, options.steps - border)


def learning_rate(within: int, length: int, options: TrainingOptions) -> float:
    """Polynomial decay (power 0.9) over the ``length`` steps of a stage, after a linear warm-up."""
    warmup = min(1.0, (within + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warmup * (1 - within / length) ** 0.9


def build_network(options: TrainingOptions, groups: Partition) -> DCANet:
    """A network with fresh weights for these options and groups of organs."""
    return DCANet(
        owners=groups.owners,
        n_filters=options.n_filters,
        norm=options.norm,
        n_stages=options.n_stages,
        dilations=options.dilations,
        fusion=options.fusion,
        stitching=options.stitching,
    )


def _start_from(network: DCANet, initial: DCANet) -> None:
    """Give ``network`` the weights of ``initial``, which may have other groups of organs.

    To an expert an organ of the others is background, and a logit that has learned to be never the largest is slow to
    unlearn it: where an expert gets an organ that it did not own, the logit keeps its fresh weights. Raises UserError
    if ``initial`` is a network of other options.
    """
    heads: list[nn.Conv3d] = [expert.head for expert in network.experts]  # type: ignore[misc]
    fresh = [[parameter.detach().clone() for parameter in head.parameters()] for head in heads]
    try:
        network.load_state_dict(initial.state_dict())
    except RuntimeError:
        raise UserError(
            "The model to start from has a network of other options (organs, filters, stages, fusion or norm).",
            "Train with the options of that model, or start without it.",
        ) from None
    before = dict(zip(initial.expert_slots, initial.owners, strict=True))
    with torch.no_grad():
        for slot, owned, head, values in zip(network.expert_slots, network.owners, heads, fresh, strict=True):
            new = sorted(set(owned) - set(before[slot]))
            for parameter, value in zip(head.parameters(), values, strict=True):
                parameter[new] = value[new]


def _log_gap(labelled: Sequence[Case], vocabulary: Vocabulary) -> Partition:
    """The groups by mean voxels of each organ over the cases that tell of it, times the number of cases."""
    counts = sum((case.voxel_counts(len(vocabulary)) for case in labelled), np.zeros(len(vocabulary) + 1, np.int64))
    sizes: dict[int, int] = {}
    for organ in vocabulary:
        telling = sum(organ.label not in case.unknown for case in labelled)
        sizes[organ.label] = round(int(counts[organ.label]) * len(labelled) / telling) if telling else 0
    return partition(sizes, names={organ.label: organ.name for organ in vocabulary})


def _optimizer(network: DCANet, options: TrainingOptions) -> torch.optim.Optimizer:
    if options.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        network.parameters(), lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay
    )
