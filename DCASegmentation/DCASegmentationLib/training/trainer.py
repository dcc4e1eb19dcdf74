"""The training loop in plain PyTorch (section 3.6 of the method's dossier), the same for every strategy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import OutputError, UserError
from ..method.log_gap import Partition
from ..method.network import DCANet
from ..organs import Vocabulary
from .augmentation import augment_intensity
from .averaging import AveragedWeights
from .cases import Case, read_pseudo_cases, write_pseudo_cases
from .checkpoint import generator_state, load_checkpoint, restore_generator, save_checkpoint
from .distributed import Processes, join, without_averaging
from .division import divide
from .options import TrainingOptions
from .sampling import PatchSampler
from .strategies.choosing import make_strategy
from .strategies.dca import stage_of as stage_of
from .strategies.strategy import Answering, Batch, Moment, Pool, Strategy, facts_of
from .validation import predict_with_confidence, validate

CHECKPOINT = "last.pt"
BEST = "best.pt"
LOG = "log.jsonl"

# The faster layout for 3D convolutions, on the CPU too.
_CHANNELS_LAST = torch.channels_last_3d

# So many steps in a row without a finite gradient, and nothing will be learned any more. A half-precision scaler that
# starts too high leaves out some ten.
_SKIPPED_IN_A_ROW = 100

Report = Callable[[dict[str, Any]], None]


class Trainer:
    """One run in one folder.

    ``labelled`` and ``unlabelled`` are cases on the model grid. The groups of organs come from log-gap analysis of
    the labelled cases. Everything drawn at random comes from the options' seed, and a resumed run draws what the
    uninterrupted one would have drawn. ``initial`` is a trained network whose weights the run starts from. ``groups``
    are the groups of organs to train with, whatever the labelled cases hold.

    Started by ``torchrun``, each process has a trainer and its share of every batch; the first one writes the files.

    Raises UserError if there are no labelled cases, if a label map has labels that the vocabulary does not, if the
    folder holds a run with other options, or if ``initial`` is a network of other options.
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
        groups: Partition | None = None,
    ) -> None:
        if not labelled:
            raise UserError("There is no labelled case to train on.", "Give at least one CT with a label map.")
        bare = next((case.name for case in [*labelled, *validation] if case.labels is None), None)
        if bare is not None:
            raise UserError(f"{bare} has no label map to learn from.", "Add one, or list it as unlabelled.")
        _require_labels([*labelled, *validation], vocabulary)
        if options.augment and options.grid.scaling != "window":
            raise UserError(
                "Augmentation changes intensities from 0 to 1, which z-scored CTs do not have.",
                "Turn it off (option augment).",
            )
        self.folder = folder
        self.options = options
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.processes: Processes = join(self.device)
        self.partition = groups if groups is not None else divide(labelled, vocabulary, options.partition)
        torch.manual_seed(options.seed)
        facts = facts_of(labelled, unlabelled, [organ.name for organ in vocabulary], self.processes.count)
        self.strategy: Strategy = make_strategy(options, self.partition, facts)
        self.network: DCANet = self.strategy.network
        if initial is not None:
            _start_from(self.network, initial)
        self.strategy.to(self.device)
        self.strategy.to(memory_format=_CHANNELS_LAST)  # type: ignore[call-overload]
        self._answering = self.strategy.answering()
        self.averaged = AveragedWeights(self._answering, options.averaging) if options.averaging else None
        self.optimizer = _optimizer(self.strategy, options)
        self.step = 0
        self.best = -1.0
        self._model = self.processes.wrapped(self.strategy, self.device)
        self._half = options.mixed_precision and self.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._half)
        self._generator = np.random.default_rng(options.seed)
        self._labelled = PatchSampler(labelled, options, self._generator)
        self._pool = Pool(
            list(labelled), list(unlabelled), lambda case: predict_with_confidence(self.best_network, case, options)
        )
        self._unlabelled = PatchSampler(unlabelled, options, self._generator) if unlabelled else None
        self._validation = list(validation)
        self._skipped = 0

    @property
    def best_network(self) -> Answering:
        """What is validated and scored: one network, or several together; averaged where the options average."""
        return self.averaged.network if self.averaged is not None else self._answering  # type: ignore[return-value]

    @property
    def validation(self) -> tuple[Case, ...]:
        """The cases to validate on."""
        return tuple(self._validation)

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
        # What the strategy keeps beside its network; runs from before there were others have none.
        self.strategy.load_state_dict(state.get("strategy", {}), strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self.averaged.network.load_state_dict(state["averaged"])
            self.averaged.updates = state["averaged_updates"]
        self.step = state["step"]
        self.best = state["best"]
        restored = restore_generator(state["generator"])
        self._generator.bit_generator.state = restored.bit_generator.state
        torch.set_rng_state(state["torch_generator"])
        self._take_new_cases(read_pseudo_cases(self.folder, self.step))

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint into the folder, from the first process alone."""
        if not self.processes.first:
            return
        beside = {key: value for key, value in self.strategy.state_dict().items() if not key.startswith("network.")}
        state: dict[str, Any] = {
            "options": self.options.to_json(),
            "owners": [list(owned) for owned in self.partition.owners],
            "step": self.step,
            "best": self.best,
            "network": self.network.state_dict(),
            "strategy": beside,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
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

        Ctrl+C saves too. ``report`` receives each line of the log. Raises UserError where the gradient is not finite
        in a hundred steps in a row: those steps are left out, and the weights are what they were before.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        try:
            while self.step < self.options.steps and not self._over(deadline):
                started = time.monotonic()
                values = self._advance()
                line: dict[str, Any] = {"step": self.step, **values, "seconds": round(time.monotonic() - started, 3)}
                if self._validation and self.step % validate_every == 0:
                    if self.processes.first:
                        line["dice"] = self._validate()
                    self.processes.wait()
                if self.processes.first:
                    self._log(line, report)
                if self.step % save_every == 0:
                    self.save()
                if self._skipped == _SKIPPED_IN_A_ROW:
                    raise UserError(
                        f"The gradient was not finite in {_SKIPPED_IN_A_ROW} steps in a row, the last of them "
                        f"{self.step}; they were left out.",
                        "Check the data (dca dataset check), or train anew with a smaller --learning-rate.",
                    )
        finally:
            self.save()

    def _over(self, deadline: float | None) -> bool:
        return deadline is not None and self.processes.agree(time.monotonic() >= deadline)

    def _advance(self) -> dict[str, float]:
        options = self.options
        moment = self.strategy.moment(self.step)
        new = self.strategy.new_cases(moment, self._pool)
        if new is not None:
            if self.processes.first:
                write_pseudo_cases(self.folder, self.step, new)
            self._take_new_cases(new)
        if self.strategy.begin(moment, None if self.averaged is None else self.averaged.network):  # type: ignore[arg-type]
            self.optimizer = _optimizer(self.strategy, options)
            if self.averaged is not None:
                self.averaged.start_from(self._answering)
        for group in self.optimizer.param_groups:
            # Checkpoints from before there were groups have no factor.
            group["lr"] = group.get("factor", 1.0) * learning_rate(moment.within, moment.length, options)
        self.strategy.train()
        self.optimizer.zero_grad(set_to_none=True)
        batch = self._draw(moment)
        values = self._backward(batch, moment)
        if batch.unlabelled is not None:
            values["weight"] = self.strategy.weight(moment)

        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.strategy.learning()), options.gradient_limit)
        if torch.isfinite(norm):
            self._scaler.step(self.optimizer)
            if self.averaged is not None:
                self.averaged.update(self._answering)
            self.strategy.after_step(moment)
            self._skipped = 0
        else:
            values["skipped"] = 1.0
            self._skipped += 1
        self._scaler.update()
        self.step += 1
        return values

    def _take_new_cases(self, new: Sequence[Case]) -> None:
        """Draw from ``new``, too, in place of those taken before; the generator goes on where it is."""
        self._labelled = PatchSampler([*self._pool.labelled, *new], self.options, self._generator)

    def _draw(self, moment: Moment) -> Batch:
        """This process's share of the step's patches; unlabelled ones where they count."""
        share = self.processes.share
        patches = self._labelled.draw(self.options.labelled_per_step)
        assert patches.labels is not None
        volumes = self._tensor(patches.volumes)
        truth = torch.from_numpy(share(patches.labels)).to(self.device)
        unlabelled = None
        if self._unlabelled is not None and self.strategy.weight(moment) > 0:
            unlabelled = self._tensor(self._unlabelled.draw(self.options.unlabelled_per_step).volumes)
        ignored = None
        if patches.ignored is not None:
            ignored = torch.from_numpy(share(patches.ignored)).to(self.device)
        return Batch(volumes, truth, share(patches.unknown), unlabelled, ignored)

    def _backward(self, batch: Batch, moment: Moment) -> dict[str, float]:
        """Gradients of all parts of the step, one graph after the other; the values to log."""
        parts = self.strategy.parts(moment, batch)
        values: dict[str, torch.Tensor] = {}
        for part in parts:
            with nullcontext() if part == parts[-1] else without_averaging(self._model):
                with torch.autocast(self.device.type, torch.float16, enabled=self._half):
                    loss = self._model(part, batch, moment)
                self._scaler.scale(loss.total).backward()
            values |= loss.values
        return self.processes.mean(values)

    def _tensor(self, volumes: np.ndarray) -> torch.Tensor:
        if self.options.augment:
            volumes = augment_intensity(volumes, self._generator)
        return torch.from_numpy(self.processes.share(volumes)).to(self.device).to(memory_format=_CHANNELS_LAST)

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
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(rounded) + "\n")
        except OSError as error:
            raise OutputError(
                f"The log {self.folder / LOG} cannot be written ({error.strerror}).", "Make room, then resume."
            ) from error
        if report is not None:
            report(rounded)


def same_groups(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> bool:
    """Whether each expert owns the same labels in both; their order within a group means nothing to the network."""
    return [set(owned) for owned in one] == [set(owned) for owned in other]


def learning_rate(within: int, length: int, options: TrainingOptions) -> float:
    """Polynomial decay (power 0.9) over the ``length`` steps of a stage, after a linear warm-up."""
    warmup = min(1.0, (within + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warmup * (1 - within / length) ** 0.9


def build_network(options: TrainingOptions, groups: Partition) -> DCANet:
    """A network with fresh weights for these options and groups of organs."""
    return make_strategy(options, groups).network


def _require_labels(cases: Sequence[Case], vocabulary: Vocabulary) -> None:
    for case in cases:
        highest = 0 if case.labels is None else int(case.labels.max())
        if highest > len(vocabulary):
            raise UserError(
                f"The label map of {case.name} holds label {highest}; {vocabulary.name} ends at {len(vocabulary)}.",
                "Choose the vocabulary it was labelled with, or give its list a label_map.",
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


def _optimizer(strategy: Strategy, options: TrainingOptions) -> torch.optim.Optimizer:
    groups = [
        {"params": list(group.parameters), "lr": group.factor * options.learning_rate, "factor": group.factor}
        for group in strategy.learning_groups()
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay)
