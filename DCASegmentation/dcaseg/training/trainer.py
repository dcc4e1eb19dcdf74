"""The training loop in plain PyTorch (section 3.6 of the method's dossier), the same for every strategy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import OutputError, UserError
from ..file_lock import locked
from ..imaging.writers import write_text
from ..method.log_gap import Partition
from ..method.network import DCANet, load_initial_weights
from ..organs import Vocabulary
from .activation_checkpointing import LEVELS, is_out_of_memory, save_memory
from .cases import Case, read_pseudo_cases, write_pseudo_cases
from .checkpoints import has_checkpoint, load_checkpoint, remove_leftovers, save_checkpoint
from .compact_state import LIMIT_BYTES, Detail, read_compact, write_compact
from .distributed import Processes, join, without_averaging
from .ema import EMA
from .interruption import Interruption
from .options import TrainingOptions
from .sampling import MixedSampler, PatchSampler, Prefetcher, Sampler, StepPatches, StepSampler
from .strategies.base import Answering, Batch, Pool, StepState, Strategy, facts_of
from .strategies.registry import make_strategy
from .training_set import Labelled, divide
from .validation import Stopped, predict_with_confidence, validate

CHECKPOINT = "last.pt"
BEST = "best.pt"
LOG = "log.jsonl"
LOCK = "lock.sqlite"

# The faster layout for 3D convolutions, on the CPU too.
_CHANNELS_LAST = torch.channels_last_3d

# So many steps in a row without a finite gradient, and nothing will be learned any more. A half-precision scaler that
# starts too high leaves out some ten.
_SKIPPED_IN_A_ROW = 100

Report = Callable[[dict[str, Any]], None]


class Trainer:
    """One run in one folder.

    ``labelled`` and ``unlabelled`` are cases on the model grid. The groups of organs come from log-gap analysis of
    the labelled cases. Every patch of a step is drawn from the options' seed and the number of the step, so a resumed
    run draws what the uninterrupted one would have drawn. ``initial`` is a trained network whose weights the run
    starts from. ``groups`` are the groups of organs to train with, whatever the labelled cases hold. ``sampler`` and
    ``unlabelled_sampler`` draw the patches in place of the cases, which may then be missing where ``groups`` or
    ``anatomies`` are given: ``anatomies`` are what ``sampler`` draws from besides the cases, each of which counts like
    a labelled case where groups of organs are made and organs weighed.

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
        sampler: Sampler | None = None,
        unlabelled_sampler: Sampler | None = None,
        anatomies: Sequence[Labelled] = (),
    ) -> None:
        if not labelled and (sampler is None or (groups is None and not anatomies)):
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
        counted: list[Labelled] = [*labelled, *anatomies]
        self.partition = groups if groups is not None else divide(counted, vocabulary, options.partition)
        torch.manual_seed(options.seed)
        facts = facts_of(counted, unlabelled, [organ.name for organ in vocabulary], self.processes.count)
        self.strategy: Strategy = make_strategy(options, self.partition, facts)
        self.network: DCANet = self.strategy.network
        if initial is not None:
            _start_from(self.network, initial)
        self.strategy.to(self.device)
        self.strategy.to(memory_format=_CHANNELS_LAST)  # type: ignore[call-overload]
        self._answering = self.strategy.answering()
        self.averaged = EMA(self._answering, options.ema_decay) if options.ema_decay else None
        self.optimizer = _optimizer(self.strategy, options)
        self.step = 0
        self.best = -1.0
        self._model = self.processes.wrapped(self.strategy, self.device)
        self._half = options.mixed_precision and self.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._half)
        if unlabelled_sampler is None and unlabelled:
            unlabelled_sampler = PatchSampler(unlabelled, options)
        self._unlabelled_sampler = unlabelled_sampler
        self._given_sampler = sampler
        self._counted = len(counted)
        self._sampler = self._step_sampler(sampler or PatchSampler(labelled, options))
        self._pool = Pool(
            list(labelled), list(unlabelled), lambda case: predict_with_confidence(self.best_network, case, options)
        )
        self._validation = list(validation)
        self._skipped = 0
        self._prefetcher: Prefetcher | None = None
        self._workers = 0
        self._say: Callable[[str], None] | None = None
        self._memory_level = 0
        # The log's line of a step whose validation is still to come.
        self._pending: dict[str, Any] | None = None
        # Whether the weights are those of a whole number of steps, and may be saved.
        self._whole = True

    @property
    def best_network(self) -> Answering:
        """What is validated and scored: one network, or several together; averaged where the options average."""
        return self.averaged.network if self.averaged is not None else self._answering  # type: ignore[return-value]

    @property
    def validation(self) -> tuple[Case, ...]:
        """The cases to validate on."""
        return tuple(self._validation)

    def resume(self, compact: Path | None = None) -> None:
        """Go on from the folder's last checkpoint, or from the file ``compact`` that ``export`` wrote.

        The options may have other steps: a stage that is over stays over, and the present one is shortened or
        lengthened. From a compact file it goes on much the same, not bit for bit. Raises UserError if there is no
        checkpoint to read, or if it is of other options.
        """
        self._restore(load_checkpoint(self.folder / CHECKPOINT) if compact is None else read_compact(compact)[0])

    def export(self, path: Path, record: dict[str, Any] | None = None, limit_bytes: int = LIMIT_BYTES) -> Detail | None:
        """Write what another computer goes on from to ``path``, in at most ``limit_bytes``, from the first process
        alone; ``record`` describes the run. Returns what was kept. Raises OutputError as ``write_compact`` does."""
        return write_compact(path, self._state(), record, limit_bytes) if self.processes.first else None

    def _restore(self, state: dict[str, Any]) -> None:
        saved = TrainingOptions.from_json(state["options"])
        if replace(saved, steps=self.options.steps, expert_stage_steps=self.options.expert_stage_steps) != self.options:
            raise UserError(
                f"The run in {self.folder} was started with other options.",
                "Resume it with the same options, or train in a new folder.",
            )
        if not same_groups(state["owners"], self.partition.owners):
            raise UserError(
                f"The run in {self.folder} has other groups of organs: its labelled cases have changed.",
                "Resume it with the same cases, or train in a new folder.",
            )
        self._load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.best = state["best"]
        self.options = _continued(self.options, saved, self.step)
        self.strategy.options = self.options
        self._pending = None if state.get("pending") is None else json.loads(state["pending"])
        pseudo = read_pseudo_cases(self.folder, self.step)
        if pseudo:
            self._take_new_cases(pseudo)
        if "torch_generator" in state:
            torch.set_rng_state(state["torch_generator"])
        if self.device.type == "cuda" and "cuda_generator" in state:
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)

    def _load_weights(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        # What the strategy keeps besides its network; runs from before there were others have none.
        self.strategy.load_state_dict(state.get("strategy", {}), strict=False)
        if self.averaged is not None:
            self.averaged.network.load_state_dict(state["averaged"])
            self.averaged.updates = state["averaged_updates"]

    def use_best(self) -> None:
        """Give the strategy the weights that validated best, of all its networks, those of its own among them.

        Without validation it stays as the last step left it.
        """
        if has_checkpoint(self.folder / BEST):
            self._load_weights(load_checkpoint(self.folder / BEST))
            self._answering.load_state_dict(self.best_network.state_dict())

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint into the folder, from the first process alone."""
        if self.processes.first:
            save_checkpoint(self.folder / name, self._state())

    def _state(self) -> dict[str, Any]:
        others = {key: value for key, value in self.strategy.state_dict().items() if not key.startswith("network.")}
        state: dict[str, Any] = {
            "options": self.options.to_json(),
            "owners": [list(owned) for owned in self.partition.owners],
            "step": self.step,
            "best": self.best,
            "network": self.network.state_dict(),
            "strategy": others,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "pending": None if self._pending is None else json.dumps(self._pending),
            "torch_generator": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_generator"] = torch.cuda.get_rng_state(self.device)
        if self.averaged is not None:
            state["averaged"] = self.averaged.network.state_dict()
            state["averaged_updates"] = self.averaged.updates
        return state

    def run(
        self,
        minutes: float | None = None,
        save_every: int = 100,
        validate_every: int = 500,
        report: Report | None = None,
        say: Callable[[str], None] | None = None,
        lock: bool = True,
        workers: int = 0,
    ) -> None:
        """Train until the options' steps are done or ``minutes`` are over, saving on the way and at the end.

        Ctrl+C and SIGTERM end the run after the step, or the validated case, that is at work: it is saved, and
        KeyboardInterrupt is raised. A second signal raises it at once; the last checkpoint stays as it is. ``report``
        receives each line of the log, ``say`` what the user should know meanwhile. ``lock`` keeps other processes out
        of the folder; a caller that does so itself turns it off. Patches are drawn ahead by ``workers`` processes, or
        by a thread of this one.

        Raises UserError where the gradient is not finite in a hundred steps in a row: those steps are left out, and
        the weights are what they were before. Raises OutputError where another process trains in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        with ExitStack() as stack:
            if lock and self.processes.first:
                stack.enter_context(locked(self.folder / LOCK))
            interruption = stack.enter_context(Interruption(say if self.processes.first else None))
            if self.processes.first:
                for name in (CHECKPOINT, BEST):
                    remove_leftovers(self.folder / name)
                self._trim_log()
            self._say = say
            self._workers = workers
            self._prefetcher = self._prefetching(workers)
            try:
                self._train(deadline, save_every, validate_every, report, interruption)
            finally:
                self._prefetcher.close()
                self._prefetcher = None
                # In the middle of a step there is nothing to save, and a second Ctrl+C has no time for it.
                if self._whole and not interruption.at_once:
                    self.save()
            if self.processes.any(interruption.requested):
                raise KeyboardInterrupt

    def _prefetching(self, workers: int) -> Prefetcher:
        def unlabelled(step: int) -> bool:
            return self.strategy.weight(self.strategy.step_state(step)) > 0

        return Prefetcher(self._sampler, unlabelled, self.options.steps, workers, self._say)

    def _train(
        self,
        deadline: float | None,
        save_every: int,
        validate_every: int,
        report: Report | None,
        interruption: Interruption,
    ) -> None:
        self._finish_pending(report, interruption)
        while self.step < self.options.steps and not self._over(deadline, interruption):
            started = time.monotonic()
            values = self._advance()
            line: dict[str, Any] = {"step": self.step, **values, "seconds": round(time.monotonic() - started, 3)}
            if self._validation and self.step % validate_every == 0:
                self._pending = line
                self._finish_pending(report, interruption)
            elif self.processes.first:
                self._log(line, report)
            if self.step % save_every == 0:
                self.save()
            if self._skipped == _SKIPPED_IN_A_ROW:
                raise UserError(
                    f"The gradient was not finite in {_SKIPPED_IN_A_ROW} steps in a row, the last of them "
                    f"{self.step}; they were left out.",
                    "Check the data (dca dataset check), or train anew with a smaller --learning-rate.",
                )

    def _finish_pending(self, report: Report | None, interruption: Interruption) -> None:
        """Validate where the last step asks for it, and log the step; after an interruption it waits for a resume."""
        if self._pending is None:
            return
        line = dict(self._pending)
        stopped = False
        if self.processes.first:
            try:
                dice = self._validate(interruption)
            except Stopped:
                stopped = True
            else:
                line["dice"] = dice
        if self.processes.any(stopped):
            return
        self._pending = None
        if self.processes.first:
            self._log(line, report)

    def _over(self, deadline: float | None, interruption: Interruption) -> bool:
        if self.processes.any(interruption.requested):
            return True
        return deadline is not None and self.processes.agree(time.monotonic() >= deadline)

    def _advance(self) -> dict[str, float]:
        options = self.options
        step_state = self.strategy.step_state(self.step)
        new = self.strategy.new_cases(step_state, self._pool)
        if new is not None:
            if self.processes.first:
                write_pseudo_cases(self.folder, self.step, new)
            self._take_new_cases(new)
        batch = self._draw(step_state)
        self._whole = False
        begun = self.strategy.on_step_start(step_state, None if self.averaged is None else self.averaged.network)  # type: ignore[arg-type]
        if begun:
            self.optimizer = _optimizer(self.strategy, options)
            if self.averaged is not None:
                self.averaged.start_from(self._answering)
        for group in self.optimizer.param_groups:
            # Checkpoints from before there were groups have no factor.
            group["lr"] = group.get("factor", 1.0) * learning_rate(
                step_state.stage_step, step_state.stage_steps, options
            )
        self.strategy.train()
        self.optimizer.zero_grad(set_to_none=True)
        values = self._backward_in_memory(batch, step_state, resumable=not begun)
        if batch.unlabelled is not None:
            values["weight"] = self.strategy.weight(step_state)

        self._update(step_state, values)
        self.step += 1
        self._whole = True
        return values

    def _update(self, step_state: StepState, values: dict[str, float]) -> None:
        """The optimizer's step, unless the gradient is not finite, and what follows from it."""
        options = self.options
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.strategy.trainable_parameters()), options.grad_clip_norm)
        if torch.isfinite(norm):
            self._scaler.step(self.optimizer)
            if self.averaged is not None:
                self.averaged.update(self._answering)
            self.strategy.on_step_end(step_state)
            self._skipped = 0
        else:
            values["skipped"] = 1.0
            self._skipped += 1
        self._scaler.update()

    def _step_sampler(self, labelled: Sampler) -> StepSampler:
        return StepSampler(labelled, self._unlabelled_sampler, self.options, self.processes.share)

    def _take_new_cases(self, new: Sequence[Case]) -> None:
        """Draw from ``new``, too, in place of those taken before; what was drawn ahead is dropped."""
        if self._given_sampler is None:
            sampler: Sampler = PatchSampler([*self._pool.labelled, *new], self.options)
        else:
            sampler = self._given_sampler
            if new:
                weights = (max(self._counted, 1), len(new))
                sampler = MixedSampler([sampler, PatchSampler(new, self.options)], weights)
        self._sampler = self._step_sampler(sampler)
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = self._prefetching(self._workers)

    def _draw(self, step_state: StepState) -> Batch:
        """This process's share of the step's patches; unlabelled ones where they count."""
        unlabelled = self.strategy.weight(step_state) > 0
        draw = self._sampler.draw if self._prefetcher is None else self._prefetcher.take
        return self._on_device(draw(step_state.step, unlabelled))

    def _on_device(self, drawn: StepPatches) -> Batch:
        labels = drawn.labelled.labels
        assert labels is not None
        unlabelled = None if drawn.unlabelled is None else self._tensor(drawn.unlabelled.volumes)
        return Batch(
            self._tensor(drawn.labelled.volumes),
            self._moved(labels),
            drawn.labelled.unannotated,
            unlabelled,
            None if drawn.labelled.ignored is None else self._moved(drawn.labelled.ignored),
        )

    def _backward_in_memory(self, batch: Batch, step_state: StepState, resumable: bool) -> dict[str, float]:
        """``_backward``; where memory runs out, again with fewer activations kept, and so for the rest of the run.

        Raises UserError where that is not enough, with the weights of the last step unless a stage has just begun.
        """
        before = [buffer.clone() for buffer in self.strategy.buffers()]
        while True:
            failure = None
            try:
                return self._backward(batch, step_state)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0]
            # After the handler, whose traceback holds on to the tensors of the failed attempt.
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, value in zip(self.strategy.buffers(), before, strict=True):
                buffer.copy_(value)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if self._memory_level == LEVELS or self.processes.count > 1:
                self._whole = resumable
                raise UserError(
                    f"There is not enough memory for a step ({failure}).",
                    "Train with a smaller --batch, --patch or --filters, or on another device.",
                )
            self._memory_level += 1
            save_memory(self.strategy, self._memory_level)
            if self._say is not None and self._memory_level == 1:
                self._say(
                    "There is not enough memory for a step; from now on activations are computed twice, which takes "
                    "less memory and more time, and gives the same gradient."
                )

    def _backward(self, batch: Batch, step_state: StepState) -> dict[str, float]:
        """Gradients of all parts of the step, one graph after the other; the values to log."""
        parts = self.strategy.loss_names(step_state, batch)
        values: dict[str, torch.Tensor] = {}
        for part in parts:
            with nullcontext() if part == parts[-1] else without_averaging(self._model):
                with torch.autocast(self.device.type, torch.float16, enabled=self._half):
                    loss = self._model(part, batch, step_state)
                # Activations that are computed again count their batch statistics once more.
                counted = [buffer.clone() for buffer in self.strategy.buffers()] if self._memory_level else []
                self._scaler.scale(loss.total).backward()
                for buffer, value in zip(self.strategy.buffers(), counted, strict=bool(counted)):
                    buffer.copy_(value)
            values |= loss.values
        return self.processes.mean(values)

    def _tensor(self, volumes: np.ndarray) -> torch.Tensor:
        return self._moved(volumes).to(memory_format=_CHANNELS_LAST)

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.as_tensor(array)
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            # The copy goes on while the GPU works on the last step.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _validate(self, interruption: Interruption) -> dict[str, float]:
        scores = validate(self.best_network, self._validation, self.options, stop=lambda: interruption.requested)
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

    def _trim_log(self) -> None:
        """Take out of the log what the checkpoint does not have: after a kill, those steps are taken once more."""
        path = self.folder / LOG
        if not path.exists():
            return
        last = self.step - (self._pending is not None)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= last]
        if kept != lines:
            write_text("".join(line + "\n" for line in kept), path)


def _step_of(line: str) -> float:
    """The step of a line of the log; infinity for half a line, which a kill in the middle of writing leaves."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _continued(options: TrainingOptions, saved: TrainingOptions, step: int) -> TrainingOptions:
    """``options`` for a run of ``saved`` options that goes on from ``step``, perhaps to another number of steps.

    The experts' stage ends where it ended, if it is over. Else it has its share of the new steps, and no step that has
    been taken for the experts becomes one of the next stage.
    """
    share = round(saved.expert_stage_fraction * saved.steps)
    border = share if saved.expert_stage_steps is None else saved.expert_stage_steps
    if step >= border:
        return replace(options, expert_stage_steps=border)
    share = round(options.expert_stage_fraction * options.steps)
    return replace(options, expert_stage_steps=None if share >= step else step)


def same_groups(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> bool:
    """Whether each expert owns the same labels in both; their order within a group means nothing to the network."""
    return [set(owned) for owned in one] == [set(owned) for owned in other]


def learning_rate(stage_step: int, stage_steps: int, options: TrainingOptions) -> float:
    """Polynomial decay (power 0.9) over the ``length`` steps of a stage, after a linear warm-up."""
    warmup = min(1.0, (stage_step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warmup * (1 - stage_step / stage_steps) ** 0.9


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
    """Raises UserError if ``initial`` is a network of other options than its groups and up-sampling."""
    try:
        load_initial_weights(network, initial)
    except ValueError as error:
        raise UserError(
            f"The model to start from has a network of other options: {error}.",
            "Train with the options of that model, or start without it.",
        ) from None


def _optimizer(strategy: Strategy, options: TrainingOptions) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for group in strategy.parameter_groups():
        rate = {"lr": group.factor * options.learning_rate, "factor": group.factor}
        # Norms and biases have one dimension, weights of convolutions five.
        spares = options.decay == "weights"
        spared = [parameter for parameter in group.parameters if spares and parameter.ndim <= 1]
        groups.append({"params": [each for each in group.parameters if not spares or each.ndim > 1], **rate})
        if spared:
            groups.append({"params": spared, "weight_decay": 0.0, **rate})
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay)
