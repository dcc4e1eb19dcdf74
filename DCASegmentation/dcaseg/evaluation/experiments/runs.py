"""Makes the runs in a folder of experiments: each is trained once, resumed if interrupted, and scored.

If a run fails, the others are still made, because an experiment may take days. Several runs can be made in parallel,
since small networks do not keep a GPU or many cores busy. The runs are independent, so the results do not depend on it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import OutputError, UserError, get_reason
from ...imaging.writers import write_json
from ...inference.process_settings import keep_freed_memory
from ...json_io import DataError, load, read_json
from ...method.log_gap import GROUPS, Partition
from ...method.network import DCANet
from ...organs import Vocabulary
from ...training.cases import Case
from ...training.options import TrainingOptions
from ...training.run_folder import BEST, CHECKPOINT
from ...training.strategies.base import DatasetFingerprint, Strategy, extract_fingerprint
from ...training.strategies.registry import require
from ...training.trainer import Trainer
from ...training.training_set import divide
from ...training.validation import predict
from ...types import ProgressCallback
from ..metrics import ASD, DICE, measure
from ..scores import Scores
from .definitions import Arm, count_labeled
from .step_cost import StepCost, compute_step_cost, measure_step_time

_POLL_SECONDS = 0.5


def make_in_parallel(runs: Runs, jobs: Sequence[tuple[Arm, int]], processes: int) -> None:
    """Make the run of each (arm, seed) of ``jobs``, in this order, with ``processes`` at a time.

    If this process is stopped or killed, the runs stop at their next step. All of them are saved and can be resumed.
    Raises UserError like ``Runs.make_missing``, and if a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    fractions = context.Array("d", len(jobs))
    stop = context.Event()
    threads = max(1, torch.get_num_threads() // processes)
    # The progress callback stays in this process, which owns the terminal.
    work = _Work(replace(runs, progress=None, run_finished=None), fractions, stop)
    failures = _Failures()
    pool = ProcessPoolExecutor(min(processes, len(jobs)), context, _init_process, (work, threads))
    try:
        with _sigint_blocked():
            waiting: dict[Future[None], tuple[Arm, int]] = {
                pool.submit(_run_job, index, *job): job for index, job in enumerate(jobs)
            }
        while waiting:
            for future in wait(waiting, _POLL_SECONDS, FIRST_COMPLETED).done:
                with failures.of(*waiting.pop(future)):
                    future.result()
                    runs.on_run_finished()
            current = fractions[:]
            finished = sum(fraction >= 1 for fraction in current)
            runs.report(sum(current) / len(jobs), f"{finished} of {len(jobs)} runs, {processes} in parallel")
    except BrokenProcessPool as error:
        raise UserError(
            "The process of a run was killed, perhaps because memory ran out.",
            "Run the command again to resume, with a smaller --max-parallel.",
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    failures.raise_if_any()


class _Failures:
    """The runs that failed because of their cases or options. Any other error ends the experiment at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, UserError]] = []

    @contextmanager
    def of(self, arm: Arm, seed: int) -> Iterator[None]:
        """A context in which a UserError is that of this run."""
        try:
            yield
        except OutputError:
            raise
        except UserError as error:
            self._found.append((f"{arm.title}, seed {seed}", error))

    def raise_if_any(self) -> None:
        """Raise a UserError that names all failed runs."""
        if not self._found:
            return
        problems = "; ".join(f"{run}: {error.problem.rstrip('.')}" for run, error in self._found)
        count = f"{len(self._found)} run{'s' if len(self._found) > 1 else ''}"
        raise UserError(f"{count} failed, all others are finished. {problems}.", self._found[0][1].remedy)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in the processes that are started within, since this process tells them when to stop.

    A terminal sends Ctrl+C to all of them. A SIGINT to this process is delivered afterwards. Does nothing on Windows.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Stopped(Exception):  # noqa: N818 - not an error of this run
    """Another run failed, or the user pressed Ctrl+C."""


@dataclass(frozen=True)
class _Work:
    runs: Runs
    # The progress of each job from 0 to 1, written by the process that makes it.
    fractions: SynchronizedArray[float]
    stop: Event

    def make(self, index: int, arm: Arm, seed: int) -> None:
        """Make the run of ``arm`` with ``seed``, job number ``index``. Raises _Stopped if the others were stopped."""

        def report(fraction: float) -> None:
            if self.stop.is_set():
                raise _Stopped
            # The last part is for scoring, which follows the last step.
            self.fractions[index] = 0.99 * fraction

        report(0.0)
        self.runs.make(arm, seed, report)
        self.fractions[index] = 1.0


# Sent to each process once, since it contains the cases.
_work: _Work | None = None


def _init_process(work: _Work, threads: int) -> None:
    global _work
    _work = work
    torch.set_num_threads(threads)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


# Set if the process that started this one is gone, without having told it to stop.
_orphaned = threading.Event()


def _end_with_parent() -> None:
    """Wait until the parent process ends, then let this one end, too: the run saves a checkpoint after its step.

    An orphaned run would keep its folder locked, so the experiment could not be resumed.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)


def _run_job(index: int, arm: Arm, seed: int) -> None:
    assert _work is not None
    try:
        _work.make(index, arm, seed)
    finally:
        if _orphaned.is_set():
            # The executor's loop would wait for the next job forever.
            os._exit(1)


SCORES = "scores.json"
SETTINGS = "experiment.json"
COSTS = "costs.json"
_VALIDATE_EVERY = "validate_every"


@dataclass(frozen=True)
class Data:
    """Cases on the model grid.

    ``all_labeled`` are the labeled and the unlabeled cases with labels, or empty if the latter have none.
    ``description`` describes the data and is recorded with the runs.
    """

    vocabulary: Vocabulary
    labeled: Sequence[Case]
    unlabeled: Sequence[Case]
    validation: Sequence[Case]
    test: Sequence[Case]
    all_labeled: Sequence[Case]
    description: str


@dataclass(frozen=True)
class Runs:
    """The runs in ``folder`` with the same options (``common``), ``data`` and ``seeds``, shared by tables and figures.

    Up to ``max_parallel`` runs are made at a time. ``run_finished`` is called after each run that was made. Raises
    UserError if the folder contains runs with other settings or data.
    """

    folder: Path
    common: TrainingOptions
    data: Data
    seeds: Sequence[int]
    device: str = "cpu"
    validate_every: int = 100
    progress: ProgressCallback | None = None
    max_parallel: int = 1
    run_finished: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        _require_settings(self.folder, self.common, self.data, self.validate_every)

    def compute_scores(self, arms: Sequence[Arm]) -> dict[str, list[Scores]]:
        """Scores on the test cases by arm key, one entry for each seed. Makes the missing runs.

        The weights with the best validation score of each run are scored on the model grid. Raises UserError if an arm
        needs labels that the data do not have.
        """
        self.make_missing([(arm, seed) for arm in arms for seed in self.seeds])
        return {
            arm.key: [read_scores(self._run_folder(arm, seed) / SCORES, self.data.vocabulary) for seed in self.seeds]
            for arm in arms
        }

    def get_finished_seeds(self, arms: Sequence[Arm]) -> dict[str, tuple[int, ...]]:
        """The seeds of the finished runs by arm key, without the arms that have none."""
        seeds = {
            arm.key: tuple(seed for seed in self.seeds if (self._run_folder(arm, seed) / SCORES).exists())
            for arm in arms
        }
        return {key: of_arm for key, of_arm in seeds.items() if of_arm}

    def read_stitched_scores(self, arm: Arm) -> list[Scores] | None:
        """Scores of the stitched experts of the arm's runs, one entry for each seed.

        None for an arm without an aggregation decoder, or if a run was made before these scores were recorded.
        """
        paths = [self._run_folder(arm, seed) / SCORES for seed in self.seeds]
        if not all(path.exists() and '"stitched"' in path.read_text(encoding="utf-8") for path in paths):
            return None
        return [read_scores(path, self.data.vocabulary, "stitched") for path in paths]

    def make_missing(self, jobs: Sequence[tuple[Arm, int]]) -> None:
        """Make the runs (arm, seed) that do not exist yet. Arms with the same key share a run.

        Raises UserError before the first run if a method does not support the data or the options, and after the last
        one if runs failed.
        """
        # The first arm of a key counts, because its title appears in the progress.
        unique = {(arm.key, seed): (arm, seed) for arm, seed in reversed(jobs)}
        unique = {(arm.key, seed): unique[arm.key, seed] for arm, seed in jobs}
        jobs = [job for job in unique.values() if not (self._run_folder(*job) / SCORES).exists()]
        for arm, seed in jobs:
            self._require_labels(arm)
            options = arm.make_options(self.common, seed)
            require(options, self.get_fingerprint(arm))
            divide(self._select_cases(arm)[0], self.data.vocabulary, options.partition)
        if self.max_parallel > 1 and len(jobs) > 1:
            make_in_parallel(self, jobs, self.max_parallel)
            return
        failures = _Failures()
        for index, (arm, seed) in enumerate(jobs):

            def report(fraction: float, index: int = index, arm: Arm = arm, seed: int = seed) -> None:
                self.report((index + fraction) / len(jobs), f"{arm.title}, seed {seed}")

            with failures.of(arm, seed):
                self.make(arm, seed, report)
                self.on_run_finished()
        failures.raise_if_any()

    def get_trained_strategy(self, arm: Arm) -> Strategy:
        """The trained strategy of the run with the first seed, with the scored weights. Makes the run if necessary.

        Raises UserError like ``compute_scores``, or if a run has scores but no weights.
        """
        seed = self.seeds[0]
        run = self._run_folder(arm, seed)
        self.make_missing([(arm, seed)])
        trainer = self._make_trainer(arm, seed)
        if not (run / BEST).exists():
            trainer.resume()
        _use_scored_weights(trainer)
        return trainer.strategy

    def get_fingerprint(self, arm: Arm) -> DatasetFingerprint:
        """The fingerprint of the cases that the arm trains on."""
        labeled, unlabeled = self._select_cases(arm)
        return extract_fingerprint(labeled, unlabeled, [organ.name for organ in self.data.vocabulary])

    def label_counts(self, arm: Arm) -> tuple[int, int]:
        """The number of cases that the arm trains on with labels, and of all its training cases."""
        labeled, unlabeled = self._select_cases(arm)
        return len(labeled), len(labeled) + len(unlabeled)

    def compute_step_costs(self, arms: Sequence[Arm]) -> dict[str, StepCost]:
        """The cost of a step by arm key, counted once and saved. Raises UserError like ``compute_scores``."""
        path = self.folder / COSTS
        known = _read_costs(path) if path.exists() else {}
        for index, arm in enumerate(arms):
            self._require_labels(arm)
            if arm.key not in known:
                self.report(index / len(arms), f"Cost of a step of {arm.title}")
                known[arm.key] = compute_step_cost(
                    arm.make_options(self.common, self.seeds[0]), self.compute_partition(), self.get_fingerprint(arm)
                )
        write_json({key: [cost.macs, cost.passes] for key, cost in known.items()}, path)
        return {arm.key: known[arm.key] for arm in arms}

    def measure_step_times(self, arms: Sequence[Arm]) -> dict[str, float]:
        """The time of a step by arm key, measured now (see ``measure_step_time``).

        Raises UserError like ``compute_scores``.
        """
        found = {}
        for index, arm in enumerate(arms):
            self._require_labels(arm)
            self.report(index / len(arms), f"Time of a step of {arm.title}")
            options = arm.make_options(self.common, self.seeds[0])
            found[arm.key] = measure_step_time(
                options, self.compute_partition(), self.get_fingerprint(arm), self.device
            )
        return found

    def compute_partition(self) -> Partition:
        """DCA's partition into head, medium and tail organs, the same for all arms."""
        return divide(self.data.labeled, self.data.vocabulary, self.common.partition)

    def get_groups(self) -> dict[str, Sequence[int]]:
        """Labels by group name, from ``compute_partition``."""
        return dict(zip(GROUPS, self.compute_partition().owners, strict=True))

    def on_run_finished(self) -> None:
        """Call ``run_finished``."""
        if self.run_finished is not None:
            self.run_finished()

    def report(self, fraction: float, message: str) -> None:
        """Report progress from 0 to 1."""
        if self.progress is not None:
            self.progress(fraction, message)

    def _run_folder(self, arm: Arm, seed: int) -> Path:
        return self.folder / "runs" / arm.key / f"seed-{seed}"

    def _make_trainer(self, arm: Arm, seed: int) -> Trainer:
        data = self.data
        self._require_labels(arm)
        labeled, unlabeled = self._select_cases(arm)
        return Trainer(
            self._run_folder(arm, seed), arm.make_options(self.common, seed), data.vocabulary, labeled, unlabeled,
            data.validation, self.device,
        )  # fmt: skip

    def _select_cases(self, arm: Arm) -> tuple[Sequence[Case], Sequence[Case]]:
        """The labeled and the unlabeled cases that the arm trains on."""
        if arm.all_labels:
            return self.data.all_labeled, ()
        count = count_labeled(arm, len(self.data.labeled))
        without_labels = [replace(case, labels=None, unannotated=()) for case in self.data.labeled[count:]]
        return self.data.labeled[:count], [*self.data.unlabeled, *without_labels]

    def _require_labels(self, arm: Arm) -> None:
        if arm.all_labels and not self.data.all_labeled:
            raise UserError(
                f"'{arm.title}' needs labels of the unlabeled cases, which the data do not have.",
                "Add the labels to the list, or choose another experiment.",
            )

    def make(self, arm: Arm, seed: int, report: Callable[[float], None]) -> None:
        """Train or resume a run and score it. ``report`` receives the fraction of finished steps."""
        trainer = self._make_trainer(arm, seed)
        if (trainer.folder / CHECKPOINT).exists():
            trainer.resume()
        steps = trainer.options.steps
        # Runs with fewer or more steps (equal compute) choose from equally many checkpoints.
        every = max(1, round(self.validate_every * steps / self.common.steps))
        trainer.run(validate_every=min(every, steps), report=lambda line: report(line["step"] / steps))
        _use_scored_weights(trainer)
        network, options = trainer.strategy.network, trainer.options
        scored = {
            "cases": score_cases(
                trainer.strategy.get_validated_network(), options, self.data.test, self.data.vocabulary
            )
        }
        if network.aggregation is not None:
            # To measure what the aggregation decoder adds to its own experts.
            stitched = StitchedExperts(network)
            scored["stitched"] = score_cases(stitched, options, self.data.test, self.data.vocabulary)
        content = {name: _cases_to_json(scores) for name, scores in scored.items()}
        write_json({"arm": arm.title, "seed": seed, "steps": trainer.step, **content}, trainer.folder / SCORES)


class StitchedExperts(nn.Module):
    """A network that returns the logits of its stitched experts, without its aggregation decoder."""

    def __init__(self, network: DCANet) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Stitched logits (batch, channel, depth, height, width) of ``volume`` (batch, 1, depth, height, width)."""
        decoded = self.network.decode_experts(self.network.encoder(volume))
        return self.network.stitch([expert.logits for expert in decoded])


def score_cases(network: nn.Module, options: TrainingOptions, cases: Sequence[Case], vocabulary: Vocabulary) -> Scores:
    """Dice and ASD (mm) of ``network`` on ``cases``, on the model grid. Unannotated organs do not count."""
    scores = Scores(vocabulary, (DICE, ASD))
    for case in cases:
        assert case.labels is not None
        predicted = predict(network, case, options)
        found = measure(predicted, case.labels, case.get_voxel_size(options.grid), len(vocabulary), (DICE, ASD))
        for values in found.values():
            values[[label - 1 for label in case.unannotated]] = np.nan
        scores.add(case.name, found)
    return scores


def _cases_to_json(scores: Scores) -> dict[str, dict[str, list[float | None]]]:
    return {
        case: {
            metric.key: [round_or_none(value, 5) for value in scores.to_array(metric)[row]] for metric in scores.metrics
        }
        for row, case in enumerate(scores.cases)
    }


_ByCase = Mapping[str, Mapping[str, tuple[float | None, ...]]]


@dataclass(frozen=True)
class _StoredScores:
    """The scores in the file of a run, by case and metric: one for each organ, None if it does not count."""

    cases: _ByCase
    stitched: _ByCase | None = None


def read_scores(path: Path, vocabulary: Vocabulary, of: str = "cases") -> Scores:
    """Read the scores of a run: those of its result, or with ``of`` "stitched" those of its stitched experts.

    Raises UserError if the file is damaged or has no such scores.
    """
    try:
        by_case: _ByCase | None = getattr(load(_StoredScores, read_json(path), ignore_unknown=True), of)
        if by_case is None:
            raise DataError(of, "is missing")
        scores = Scores(vocabulary, (DICE, ASD))
        for case, values in by_case.items():
            scores.add(case, {key: np.array(of_metric, float) for key, of_metric in values.items()})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({get_reason(error)}).", "Delete it; the next run measures it again."
        ) from None
    return scores


def _read_costs(path: Path) -> dict[str, StepCost]:
    try:
        return {key: StepCost(*map(float, cost)) for key, cost in read_json(path).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({get_reason(error)}).", "Delete it; the next run counts again."
        ) from None


def round_or_none(value: float, digits: int = 6) -> float | None:
    """A rounded number for JSON; None for NaN and infinity. By default, twice as many digits as tables show."""
    return round(float(value), digits) if np.isfinite(value) else None


def _use_scored_weights(trainer: Trainer) -> None:
    """Load the weights with the best validation score; without validation, keep those of the last step."""
    trainer.use_best()


def _require_settings(folder: Path, common: TrainingOptions, data: Data, validate_every: int) -> None:
    about: dict[str, Any] = {"data": data.description, "test": [case.name for case in data.test]}
    # The best of these checkpoints is scored, so more of them give a better score.
    about[_VALIDATE_EVERY] = validate_every
    path = folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json({"options": common.to_json(), **about}, path)
        return
    try:
        # Folders of earlier versions do not record it.
        recorded = {_VALIDATE_EVERY: validate_every, **read_json(path)}
        earlier = recorded.pop("options")
        # Options that did not exist at that time get their defaults, which do not change results.
        same = recorded == about and TrainingOptions.from_json(earlier) == common
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({get_reason(error)}).", "Choose another folder.") from None
    if not same:
        raise UserError(f"{folder} contains runs with other settings or data.", "Choose another folder.")
