"""The training loop in plain PyTorch, the same for every strategy.

Read it from ``Trainer.run`` downward: the loop, one step, validation and log, then checkpoints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError, is_out_of_memory
from ..file_lock import locked
from ..method.log_gap import Partition
from ..method.network import DCANet, load_initial_weights
from ..organs import Vocabulary
from .activation_checkpointing import LEVELS, save_memory
from .cases import Case, read_pseudo_cases, write_pseudo_cases
from .checkpoints import has_checkpoint, load_checkpoint, remove_leftovers, save_checkpoint
from .compact_state import LIMIT_BYTES, Detail, read_compact, write_compact
from .distributed import Processes, join, without_averaging
from .ema import EMA
from .interruption import Interruption
from .mixed_precision import select_autocast_dtype
from .options import TrainingOptions
from .run_folder import BEST, CHECKPOINT, LOCK, append_to_log, trim_log
from .sampling import MixedSampler, PatchSampler, Prefetcher, Sampler, StepPatches, StepSampler
from .strategies.base import Batch, Pool, ScoredNetwork, StepState, Strategy, extract_fingerprint
from .strategies.registry import make_strategy
from .training_set import LabeledVolume, divide
from .validation import ValidationStopped, predict_with_confidence, validate

# The faster memory layout for 3D convolutions, on CPUs too.
_CHANNELS_LAST = torch.channels_last_3d

# The run fails after this many consecutive steps without a finite gradient: it will not learn anything more. A gradient
# scaler that starts too high skips about ten steps.
_SKIPPED_IN_A_ROW = 100

Report = Callable[[dict[str, Any]], None]


class Trainer:
    """One training run in the existing folder ``folder``; the docstring of ``training`` has an example.

    ``labeled``, ``unlabeled`` and ``validation`` are cases on the model grid of ``options.grid``, as
    ``TrainingSet.cases`` returns them. Their labels are 0 (background) and those of ``vocabulary``. ``device`` is a
    torch device. Every patch of a step is drawn from the options' seed and the step number, so a resumed run draws the
    same patches as an uninterrupted one.

    Optional inputs:

    - ``initial``: a trained network whose weights the run starts from.
    - ``groups``: the groups of organs. By default they come from log-gap analysis of the labeled cases.
    - ``sampler``, ``unlabeled_sampler``: draw the patches instead of the samplers of the cases. With a ``sampler``,
      ``labeled`` may be empty if ``groups`` or ``anatomies`` are given.
    - ``anatomies``: label maps that ``sampler`` makes synthetic CTs from. Each counts like a labeled case when organs
      are divided into groups and weighted.

    Under ``torchrun``, each process has a trainer and its share of every batch; the first process writes the files.

    Raises UserError if there are no labeled cases, if a case has no label map or labels outside the ``vocabulary``, if
    the options do not fit the cases, or if ``initial`` is a network with other options.
    """

    def __init__(
        self,
        folder: Path,
        options: TrainingOptions,
        vocabulary: Vocabulary,
        labeled: Sequence[Case],
        unlabeled: Sequence[Case],
        validation: Sequence[Case] = (),
        device: str = "cpu",
        initial: DCANet | None = None,
        groups: Partition | None = None,
        sampler: Sampler | None = None,
        unlabeled_sampler: Sampler | None = None,
        anatomies: Sequence[LabeledVolume] = (),
    ) -> None:
        if not labeled and (sampler is None or (groups is None and not anatomies)):
            raise UserError("There are no labeled cases to train on.", "Specify at least one CT with a label map.")
        _require_label_maps([*labeled, *validation], vocabulary)
        if options.augment and options.grid.scaling != "window":
            raise UserError(
                "Augmentation changes intensities between 0 and 1, but CTs with z-scores are not in this range.",
                "Turn off the option augment.",
            )
        self.folder = folder
        self.options = options
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.processes: Processes = join(self.device)
        self.step = 0
        self.best = -1.0

        volumes: list[LabeledVolume] = [*labeled, *anatomies]
        self.partition = groups if groups is not None else divide(volumes, vocabulary, options.partition)
        torch.manual_seed(options.seed)
        fingerprint = extract_fingerprint(
            volumes, unlabeled, [organ.name for organ in vocabulary], self.processes.count
        )
        self.strategy: Strategy = make_strategy(options, self.partition, fingerprint)
        self.network: DCANet = self.strategy.network
        if initial is not None:
            _start_from(self.network, initial)
        self.strategy.to(self.device)
        self.strategy.to(memory_format=_CHANNELS_LAST)  # type: ignore[call-overload]
        self._validated_network = self.strategy.get_validated_network()
        self.averaged = EMA(self._validated_network, options.ema_decay) if options.ema_decay else None
        self.optimizer = _make_optimizer(self.strategy, options)
        self._model = self.processes.wrap_model(self.strategy, self.device)
        self._low_precision = select_autocast_dtype(self.device) if options.mixed_precision else None
        # Only half precision needs it: bfloat16 has the exponents of single precision.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._low_precision == torch.float16)

        if unlabeled_sampler is None and unlabeled:
            unlabeled_sampler = PatchSampler(unlabeled, options)
        self._unlabeled_sampler = unlabeled_sampler
        self._custom_sampler = sampler
        self._n_labeled_volumes = len(volumes)
        self._sampler = self._make_step_sampler(sampler or PatchSampler(labeled, options))
        self._pool = Pool(
            list(labeled), list(unlabeled), lambda case: predict_with_confidence(self.evaluated_network, case, options)
        )
        self._validation = list(validation)

        self._prefetcher: Prefetcher | None = None
        self._workers = 0
        self._notify: Callable[[str], None] | None = None
        self._skipped = 0
        self._memory_level = 0
        # The log line of a step that has yet to be validated.
        self._pending: dict[str, Any] | None = None
        # False in the middle of a step, when the weights must not be saved.
        self._can_save = True

    @property
    def evaluated_network(self) -> ScoredNetwork:
        """What is validated and scored: one network or several together, averaged (EMA) if the options say so."""
        return self.averaged.network if self.averaged is not None else self._validated_network  # type: ignore[return-value]

    @property
    def validation(self) -> tuple[Case, ...]:
        """The validation cases."""
        return tuple(self._validation)

    # The loop

    def run(
        self,
        minutes: float | None = None,
        save_every: int = 100,
        validate_every: int = 500,
        report: Report | None = None,
        notify: Callable[[str], None] | None = None,
        lock: bool = True,
        workers: int = 0,
    ) -> None:
        """Train for the options' steps or for ``minutes``, with a checkpoint every ``save_every`` steps and at the end.

        Ctrl+C, SIGTERM and SIGHUP end the run after the current step or validation case: a checkpoint is saved, and
        KeyboardInterrupt is raised. A second signal raises it immediately, and the last checkpoint stays as it is.

        ``report`` receives each line of the log: the step, its losses, its seconds and, after a validation, ``dice`` (0
        to 1) as a mean and by organ. ``notify`` receives messages for the user. ``lock`` keeps other processes from
        training in the folder; set it to False if the caller holds the lock. Patches are drawn ahead by
        ``workers`` processes or, with 0, by a thread of this process.

        Raises UserError if the gradient is not finite in a hundred steps in a row; these steps are skipped, so the
        weights are those from before. Raises OutputError if another process trains in the folder or a file cannot be
        written.
        """
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        with self._session(lock, notify, workers) as interruption:
            # A resumed run may have stopped between a step and its validation.
            self._finish_pending(report, interruption)
            while self.step < self.options.steps and not self._should_stop(deadline, interruption):
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
                self._require_progress()

    @contextmanager
    def _session(self, lock: bool, notify: Callable[[str], None] | None, workers: int) -> Iterator[Interruption]:
        """Lock the folder, handle signals and draw patches ahead while the loop runs; save at the end.

        Raises KeyboardInterrupt at the end if a signal stopped the loop.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if lock and self.processes.first:
                stack.enter_context(locked(self.folder / LOCK))
            interruption = stack.enter_context(Interruption(notify if self.processes.first else None))
            if self.processes.first:
                for name in (CHECKPOINT, BEST):
                    remove_leftovers(self.folder / name)
                trim_log(self.folder, self.step - (self._pending is not None))
            self._notify = notify
            self._workers = workers
            self._prefetcher = self._start_prefetching()
            try:
                yield interruption
            finally:
                self._prefetcher.close()
                self._prefetcher = None
                # In the middle of a step there is nothing to save, and after a second Ctrl+C there is no time.
                if self._can_save and not interruption.immediate:
                    self.save()
            if self.processes.any(interruption.requested):
                raise KeyboardInterrupt

    def _should_stop(self, deadline: float | None, interruption: Interruption) -> bool:
        if self.processes.any(interruption.requested):
            return True
        return deadline is not None and self.processes.broadcast(time.monotonic() >= deadline)

    def _require_progress(self) -> None:
        if self._skipped == _SKIPPED_IN_A_ROW:
            raise UserError(
                f"The gradient was not finite in {_SKIPPED_IN_A_ROW} steps in a row, up to step {self.step}. "
                "These steps were skipped.",
                "Check the data (dca dataset check), or start a new run with a smaller --learning-rate.",
            )

    # One step

    def _advance(self) -> dict[str, float]:
        """Take one step; the values to log."""
        step_state = self.strategy.get_step_state(self.step)
        pseudo_cases = self.strategy.select_new_cases(step_state, self._pool)
        if pseudo_cases is not None:
            if self.processes.first:
                write_pseudo_cases(self.folder, self.step, pseudo_cases)
            self._take_new_cases(pseudo_cases)
        batch = self._draw(step_state)

        self._can_save = False
        stage_begins = self.strategy.on_step_start(
            step_state,
            None if self.averaged is None else self.averaged.network,  # type: ignore[arg-type]
        )
        if stage_begins:
            self.optimizer = _make_optimizer(self.strategy, self.options)
            if self.averaged is not None:
                self.averaged.reset(self._validated_network)
        for group in self.optimizer.param_groups:
            # Checkpoints of versions without parameter groups have no factor.
            group["lr"] = group.get("factor", 1.0) * compute_learning_rate(
                step_state.stage_step,
                step_state.stage_steps,
                self.options,
                self.strategy.get_warmup_steps(step_state),
            )
        self.strategy.train()
        self.optimizer.zero_grad(set_to_none=True)
        buffers = self._copy_buffers()
        values = self._backward_with_retry(batch, step_state, buffers, weights_unchanged=not stage_begins)
        if batch.unlabeled is not None:
            values["weight"] = self.strategy.get_unsupervised_weight(step_state)
        self._update(step_state, values)
        if "skipped" in values:
            # A value that is not finite would stay in a strategy's running statistics.
            self._restore_buffers(buffers)
        self.step += 1
        self._can_save = True
        return values

    def _draw(self, step_state: StepState) -> Batch:
        """This process's share of the step's patches, with unlabeled ones if they have a weight in this step."""
        draw = self._sampler.draw if self._prefetcher is None else self._prefetcher.take
        return self._to_device(draw(step_state.step, self.strategy.get_unsupervised_weight(step_state) > 0))

    def _copy_buffers(self) -> list[torch.Tensor]:
        """Copies of the strategy's buffers: norm statistics, and what the strategy counts or averages."""
        return [buffer.clone() for buffer in self.strategy.buffers()]

    def _restore_buffers(self, values: list[torch.Tensor]) -> None:
        for buffer, value in zip(self.strategy.buffers(), values, strict=True):
            buffer.copy_(value)

    def _backward_with_retry(
        self, batch: Batch, step_state: StepState, buffers: list[torch.Tensor], weights_unchanged: bool
    ) -> dict[str, float]:
        """``_backward``, repeated with fewer stored activations if memory runs out, for the rest of the run too.

        ``buffers`` are those from before the step. Raises UserError if memory is still insufficient. The last step can
        then be saved if ``weights_unchanged``.
        """
        while True:
            failure = None
            try:
                return self._backward(batch, step_state)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = next(iter(str(error).splitlines()), type(error).__name__)
            # Outside of the handler, because the traceback keeps the tensors of the failed attempt alive.
            self.optimizer.zero_grad(set_to_none=True)
            self._restore_buffers(buffers)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if self._memory_level == LEVELS or self.processes.count > 1:
                self._can_save = weights_unchanged
                raise UserError(
                    f"There is not enough memory for a step ({failure}).",
                    "Use a smaller --batch, --patch or --filters, or another device.",
                )
            self._memory_level += 1
            save_memory(self.strategy, self._memory_level)
            if self._notify is not None and self._memory_level == 1:
                self._notify(
                    "There is not enough memory for a step. From now on activations are computed twice, which needs "
                    "less memory and more time. The gradient is the same."
                )

    def _backward(self, batch: Batch, step_state: StepState) -> dict[str, float]:
        """Compute the gradients of all losses of the step, one graph after the other; the values to log."""
        names = self.strategy.get_loss_names(step_state, batch)
        values: dict[str, torch.Tensor] = {}
        for name in names:
            with nullcontext() if name == names[-1] else without_averaging(self._model):
                # Before version 2.11, PyTorch caches a weight that is first converted under no_grad without its graph,
                # so a network that first makes pseudo-labels would get no gradient (PyTorch issue 112583).
                with torch.autocast(
                    self.device.type,
                    self._low_precision,
                    enabled=self._low_precision is not None,
                    cache_enabled=False,
                ):
                    loss = self._model(name, batch, step_state)
                # Recomputed activations update the batch statistics a second time, which must be undone.
                buffers = self._copy_buffers() if self._memory_level else None
                self._scaler.scale(loss.total).backward()
                if buffers is not None:
                    self._restore_buffers(buffers)
            values |= loss.values
        return self.processes.mean(values)

    def _update(self, step_state: StepState, values: dict[str, float]) -> None:
        """Take the optimizer's step and what follows from it; skip it if the gradient is not finite."""
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self.strategy.trainable_parameters()), self.options.grad_clip_norm)
        if torch.isfinite(norm):
            self._scaler.step(self.optimizer)
            if self.averaged is not None:
                self.averaged.update(self._validated_network)
            self.strategy.on_step_end(step_state)
            self._skipped = 0
        else:
            values["skipped"] = 1.0
            self._skipped += 1
        self._scaler.update()

    # Patches

    def _make_step_sampler(self, sampler: Sampler) -> StepSampler:
        return StepSampler(sampler, self._unlabeled_sampler, self.options, self.processes.share)

    def _start_prefetching(self) -> Prefetcher:
        return Prefetcher(self._sampler, self._needs_unlabeled, self.options.steps, self._workers, self._notify)

    def _needs_unlabeled(self, step: int) -> bool:
        return self.strategy.get_unsupervised_weight(self.strategy.get_step_state(step)) > 0

    def _take_new_cases(self, cases: Sequence[Case]) -> None:
        """Also draw patches from ``cases``, which replace earlier pseudo-labeled ones. Drops prefetched patches."""
        if self._custom_sampler is None:
            sampler: Sampler = PatchSampler([*self._pool.labeled, *cases], self.options)
        else:
            sampler = self._custom_sampler
            if cases:
                weights = (max(self._n_labeled_volumes, 1), len(cases))
                sampler = MixedSampler([sampler, PatchSampler(cases, self.options)], weights)
        self._sampler = self._make_step_sampler(sampler)
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = self._start_prefetching()

    def _to_device(self, patches: StepPatches) -> Batch:
        labels = patches.labeled.labels
        assert labels is not None
        unlabeled = None if patches.unlabeled is None else self._volumes_to_device(patches.unlabeled.volumes)
        return Batch(
            self._volumes_to_device(patches.labeled.volumes),
            self._array_to_device(labels),
            patches.labeled.unannotated,
            unlabeled,
            None if patches.labeled.ignored is None else self._array_to_device(patches.labeled.ignored),
        )

    def _volumes_to_device(self, volumes: np.ndarray) -> torch.Tensor:
        return self._array_to_device(volumes).to(memory_format=_CHANNELS_LAST)

    def _array_to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.as_tensor(array)
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            # The copy runs while the GPU still computes the previous step.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    # Validation and log

    def _finish_pending(self, report: Report | None, interruption: Interruption) -> None:
        """Validate and log the pending step, if there is one. After an interruption it stays pending for a resume."""
        if self._pending is None:
            return
        line = dict(self._pending)
        stopped = False
        if self.processes.first:
            try:
                line["dice"] = self._validate(interruption)
            except ValidationStopped:
                stopped = True
        if self.processes.any(stopped):
            return
        self._pending = None
        if self.processes.first:
            self._log(line, report)

    def _validate(self, interruption: Interruption) -> dict[str, float]:
        """Mean Dice and Dice of each organ; saves the best checkpoint."""
        scores = validate(self.evaluated_network, self._validation, self.options, stop=lambda: interruption.requested)
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
        rounded = append_to_log(self.folder, line)
        if report is not None:
            report(rounded)

    # Checkpoints

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint into the folder (first process only). Raises OutputError if it cannot be written."""
        if self.processes.first:
            save_checkpoint(self.folder / name, self._make_state())

    def export(self, path: Path, record: dict[str, Any] | None = None, limit_bytes: int = LIMIT_BYTES) -> Detail | None:
        """Write a compact state of at most ``limit_bytes`` to ``path``, to resume on another computer.

        ``record`` describes the run. Only the first process writes; it returns the precision of the file, the others
        return None. Raises OutputError as ``write_compact`` does.
        """
        return write_compact(path, self._make_state(), record, limit_bytes) if self.processes.first else None

    def resume(self, compact: Path | None = None) -> None:
        """Continue from the folder's last checkpoint, or from a ``compact`` file that ``export`` wrote.

        The options may have another number of steps: a finished stage stays finished, and the current stage becomes
        shorter or longer. A run that continues from a compact file is similar, but not bit for bit the same. Raises
        UserError if the checkpoint is missing, damaged, or from a run with other options or groups of organs.
        """
        self._restore(load_checkpoint(self.folder / CHECKPOINT) if compact is None else read_compact(compact)[0])

    def use_best(self) -> None:
        """Load the weights with the best validation score into the strategy and all its networks.

        Without validation, the strategy keeps the weights of the last step.
        """
        if has_checkpoint(self.folder / BEST):
            self._load_weights(load_checkpoint(self.folder / BEST))
            self._validated_network.load_state_dict(self.evaluated_network.state_dict())

    def _make_state(self) -> dict[str, Any]:
        strategy_state = {
            key: value for key, value in self.strategy.state_dict().items() if not key.startswith("network.")
        }
        state: dict[str, Any] = {
            "options": self.options.to_json(),
            "owners": [list(owned) for owned in self.partition.owners],
            "step": self.step,
            "best": self.best,
            "network": self.network.state_dict(),
            "strategy": strategy_state,
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

    def _restore(self, state: dict[str, Any]) -> None:
        saved = TrainingOptions.from_json(state["options"])
        if replace(saved, steps=self.options.steps, expert_stage_steps=self.options.expert_stage_steps) != self.options:
            raise UserError(
                f"The run in {self.folder} was started with other options.",
                "Resume it with the same options, or train in a new folder.",
            )
        if not have_same_groups(state["owners"], self.partition.owners):
            raise UserError(
                f"The run in {self.folder} has other groups of organs, because its labeled cases have changed.",
                "Resume it with the same cases, or train in a new folder.",
            )
        self._load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.best = state["best"]
        self.options = _make_resumed_options(self.options, saved, self.step)
        self.strategy.options = self.options
        self.strategy.resume(self.step, saved, state.get("strategy", {}))
        self._pending = None if state.get("pending") is None else json.loads(state["pending"])
        pseudo_cases = read_pseudo_cases(self.folder, self.step)
        if pseudo_cases:
            self._take_new_cases(pseudo_cases)
        if "torch_generator" in state:
            torch.set_rng_state(state["torch_generator"])
        if self.device.type == "cuda" and "cuda_generator" in state:
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)

    def _load_weights(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        # Checkpoints of older versions do not have the strategy's other networks and buffers.
        self.strategy.load_state_dict(state.get("strategy", {}), strict=False)
        if self.averaged is not None:
            self.averaged.network.load_state_dict(state["averaged"])
            self.averaged.updates = state["averaged_updates"]


def compute_learning_rate(
    stage_step: int, stage_steps: int, options: TrainingOptions, warmup_steps: int | None = None
) -> float:
    """Polynomial decay (power 0.9) over the ``stage_steps`` steps of a stage, after a linear warm-up.

    ``warmup_steps`` replaces those of the ``options``.
    """
    warmup_steps = options.warmup_steps if warmup_steps is None else warmup_steps
    warmup = min(1.0, (stage_step + 1) / warmup_steps) if warmup_steps else 1.0
    return options.learning_rate * warmup * (1 - stage_step / stage_steps) ** 0.9


def have_same_groups(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> bool:
    """Whether each expert owns the same labels in both. The order within a group does not affect the network."""
    return [set(owned) for owned in one] == [set(owned) for owned in other]


def _make_optimizer(strategy: Strategy, options: TrainingOptions) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for group in strategy.get_parameter_groups():
        rate = {"lr": group.factor * options.learning_rate, "factor": group.factor}
        # Norms and biases have one dimension, convolution weights have five.
        weights_only = options.decay == "weights"
        no_decay = [parameter for parameter in group.parameters if weights_only and parameter.ndim <= 1]
        groups.append({"params": [each for each in group.parameters if not weights_only or each.ndim > 1], **rate})
        if no_decay:
            groups.append({"params": no_decay, "weight_decay": 0.0, **rate})
    if options.optimizer == "adamw":
        # One kernel for each parameter instead of a dozen: on a CPU, a quarter of the time.
        return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay)


def _make_resumed_options(options: TrainingOptions, saved: TrainingOptions, step: int) -> TrainingOptions:
    """``options`` of a run that continues at ``step``, perhaps with another number of steps than it was ``saved`` with.

    If the experts' stage is over, it keeps its end. If not, it gets its fraction of the new number of steps, but at
    least the steps already taken.
    """
    stage_end = round(saved.expert_stage_fraction * saved.steps)
    stage_end = stage_end if saved.expert_stage_steps is None else saved.expert_stage_steps
    if step >= stage_end:
        return replace(options, expert_stage_steps=stage_end)
    new_end = round(options.expert_stage_fraction * options.steps)
    return replace(options, expert_stage_steps=None if new_end >= step else step)


def _start_from(network: DCANet, initial: DCANet) -> None:
    """Copy the weights of ``initial``. Raises UserError if it differs in more than its groups and upsampling."""
    try:
        load_initial_weights(network, initial)
    except ValueError as error:
        raise UserError(
            f"The initial model's network has other options: {error}.",
            "Train with the options of that model, or without an initial model.",
        ) from None


def _require_label_maps(cases: Sequence[Case], vocabulary: Vocabulary) -> None:
    missing = next((case.name for case in cases if case.labels is None), None)
    if missing is not None:
        raise UserError(f"{missing} has no label map.", "Add a label map, or list the case under 'unlabelled'.")
    for case in cases:
        highest = 0 if case.labels is None else int(case.labels.max())
        if highest > len(vocabulary):
            raise UserError(
                f"The label map of {case.name} contains label {highest}, but {vocabulary.name} has only labels up to "
                f"{len(vocabulary)}.",
                "Choose the vocabulary of the label map, or add a label_map to the data list.",
            )
