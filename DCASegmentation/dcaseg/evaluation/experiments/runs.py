"""The runs of a folder of experiments: each made once, resumed where it stopped, scored; several at a time.

Small networks keep neither a GPU nor many cores busy: a GPU waits for the processor that hands it one short kernel
after the other. Runs do not depend on each other, so the numbers are those of runs made in turn.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
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

from ...errors import UserError
from ...imaging.writers import write_json
from ...inference.process_settings import keep_freed_memory
from ...json_io import read_json
from ...method.log_gap import GROUPS, Partition
from ...method.network import DCANet
from ...organs import Vocabulary
from ...training.cases import Case
from ...training.options import TrainingOptions
from ...training.strategies.base import Facts, Strategy, facts_of
from ...training.strategies.registry import require
from ...training.trainer import BEST, CHECKPOINT, Trainer
from ...training.training_set import divide
from ...training.validation import predict
from ...types import ProgressCallback
from ..metrics import ASD, DICE, measure
from ..scores import Scores
from .definitions import Arm
from .step_cost import StepCost, step_cost

_LOOK_EVERY_SECONDS = 0.5


def make_in_parallel(runs: Runs, jobs: Sequence[tuple[Arm, int]], processes: int) -> None:
    """Make the run of each (arm, seed) of ``jobs``, so many at a time as there are ``processes``, in that order.

    What fails stops the others at their next step; all of them are saved and go on when they are asked for again.
    Raises UserError as ``Runs.scores`` does, and where a process was ended from outside.
    """
    spawning = multiprocessing.get_context("spawn")
    shares = spawning.Array("d", len(jobs))
    stop = spawning.Event()
    threads = max(1, torch.get_num_threads() // processes)
    # A function that reports stays here: it belongs to this process's terminal.
    work = _Work(replace(runs, progress=None), shares, stop)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), spawning, _begin, (work, threads))
    try:
        with _deaf_to_ctrl_c():
            waiting: set[Future[None]] = {pool.submit(_make, index, *job) for index, job in enumerate(jobs)}
        while waiting:
            done, waiting = wait(waiting, _LOOK_EVERY_SECONDS, FIRST_COMPLETED)
            for one in done:
                one.result()
            reached = shares[:]
            finished = sum(share >= 1 for share in reached)
            runs.report(sum(reached) / len(jobs), f"{finished} of {len(jobs)} runs, {processes} at once")
    except BrokenProcessPool as error:
        raise UserError(
            "A run's process was ended from outside, perhaps for want of memory.",
            "Call it again to go on, with fewer --at-once.",
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started within never hear Ctrl+C, which the terminal sends to them, too: this one tells them to stop.

    It hears afterwards what came meanwhile. Windows has nothing of the kind.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Stopped(Exception):  # noqa: N818 - not a fault of this run
    """Another run failed, or the user pressed Ctrl+C."""


@dataclass(frozen=True)
class _Work:
    runs: Runs
    # Of each job, and written by the process that makes it.
    shares: SynchronizedArray[float]
    stop: Event

    def make(self, index: int, arm: Arm, seed: int) -> None:
        def report(share: float) -> None:
            if self.stop.is_set():
                raise _Stopped
            # Scoring comes after the last step, and only then is the run done.
            self.shares[index] = 0.99 * share

        report(0.0)
        self.runs.make(arm, seed, report)
        self.shares[index] = 1.0


# A process's own, handed to it once: the cases are in it.
_work: _Work | None = None


def _begin(work: _Work, threads: int) -> None:
    global _work
    _work = work
    torch.set_num_threads(threads)
    keep_freed_memory()


def _make(index: int, arm: Arm, seed: int) -> None:
    assert _work is not None
    _work.make(index, arm, seed)


SCORES = "scores.json"
SETTINGS = "experiment.json"
COSTS = "costs.json"


@dataclass(frozen=True)
class Data:
    """Cases on the model grid. ``all_labelled`` are the labelled and unlabelled ones with labels, or empty where there
    are none for them; ``told`` names them for the record."""

    vocabulary: Vocabulary
    labelled: Sequence[Case]
    unlabelled: Sequence[Case]
    validation: Sequence[Case]
    test: Sequence[Case]
    all_labelled: Sequence[Case]
    told: str


@dataclass(frozen=True)
class Runs:
    """Runs of the same settings (``common``) and ``data`` with several ``seeds`` in one ``folder``, which tables and
    figures share. So many as ``at_once`` are made at the same time.

    Raises UserError if the folder was made with other settings or data.
    """

    folder: Path
    common: TrainingOptions
    data: Data
    seeds: Sequence[int]
    device: str = "cpu"
    validate_every: int = 100
    progress: ProgressCallback | None = None
    max_parallel: int = 1

    def __post_init__(self) -> None:
        _require_settings(self.folder, self.common, self.data)

    def scores(self, arms: Sequence[Arm]) -> dict[str, list[Scores]]:
        """Scores on the test cases of every seed by the arm's key; what is not there yet is run.

        Of each run the weights that validated best are scored, on the model grid. Raises UserError if an arm needs
        labels that the data do not have.
        """
        self.make_missing([(arm, seed) for arm in arms for seed in self.seeds])
        return {
            arm.key: [read_scores(self._run_folder(arm, seed) / SCORES, self.data.vocabulary) for seed in self.seeds]
            for arm in arms
        }

    def stitched_scores(self, arm: Arm) -> list[Scores] | None:
        """Scores of the stitched experts of the arm's runs, in the order of the seeds; None for an arm without an
        aggregation decoder, or where a run is from before they were measured."""
        paths = [self._run_folder(arm, seed) / SCORES for seed in self.seeds]
        if not all(path.exists() and '"stitched"' in path.read_text(encoding="utf-8") for path in paths):
            return None
        return [read_scores(path, self.data.vocabulary, "stitched") for path in paths]

    def make_missing(self, jobs: Sequence[tuple[Arm, int]]) -> None:
        """Make those runs (arm, seed) that are not there yet; arms of the same key are one.

        Raises UserError as ``scores`` does.
        """
        named = {(arm.key, seed): (arm, seed) for arm, seed in jobs}.values()
        jobs = [job for job in named if not (self._run_folder(*job) / SCORES).exists()]
        for arm, seed in jobs:
            self._require_labels(arm)
            require(arm.options(self.common, seed), self.facts(arm))
        if self.max_parallel > 1 and len(jobs) > 1:
            make_in_parallel(self, jobs, self.max_parallel)
            return
        for index, (arm, seed) in enumerate(jobs):

            def report(share: float, index: int = index, arm: Arm = arm, seed: int = seed) -> None:
                self.report((index + share) / len(jobs), f"{arm.title}, seed {seed}")

            self.make(arm, seed, report)

    def trained(self, arm: Arm) -> Strategy:
        """What the run of the first seed came to, with the weights that were scored; it is run where it is not there.

        Raises UserError as ``scores`` does, or where a run's scores are there and its weights are not.
        """
        seed = self.seeds[0]
        run = self._run_folder(arm, seed)
        self.make_missing([(arm, seed)])
        trainer = self._trainer(arm, seed)
        if not (run / BEST).exists():
            trainer.resume()
        _use_scored_weights(trainer)
        return trainer.strategy

    def facts(self, arm: Arm) -> Facts:
        """What the cases hold that the arm learns from."""
        labelled, unlabelled = self._cases(arm)
        return facts_of(labelled, unlabelled, [organ.name for organ in self.data.vocabulary])

    def costs(self, arms: Sequence[Arm]) -> dict[str, StepCost]:
        """What a step of each arm costs, by its key, counted once and kept. Raises UserError as ``scores`` does."""
        path = self.folder / COSTS
        known: dict[str, list[float]] = read_json(path) if path.exists() else {}
        for index, arm in enumerate(arms):
            self._require_labels(arm)
            if arm.key not in known:
                self.report(index / len(arms), f"Cost of a step of {arm.title}")
                cost = step_cost(arm.options(self.common, self.seeds[0]), self.division(), self.facts(arm))
                known[arm.key] = [cost.macs, cost.passes]
        write_json(known, path)
        return {arm.key: StepCost(*known[arm.key]) for arm in arms}

    def division(self) -> Partition:
        """Head, medium and tail as DCA's own division has them, the same for all arms."""
        return divide(self.data.labelled, self.data.vocabulary, self.common.partition)

    def groups(self) -> dict[str, Sequence[int]]:
        """Labels of the groups of ``division`` by their names."""
        return dict(zip(GROUPS, self.division().owners, strict=True))

    def report(self, share: float, message: str) -> None:
        """Tell how far the work is."""
        if self.progress is not None:
            self.progress(share, message)

    def _run_folder(self, arm: Arm, seed: int) -> Path:
        return self.folder / "runs" / arm.key / f"seed-{seed}"

    def _trainer(self, arm: Arm, seed: int) -> Trainer:
        data = self.data
        self._require_labels(arm)
        labelled, unlabelled = self._cases(arm)
        return Trainer(
            self._run_folder(arm, seed), arm.options(self.common, seed), data.vocabulary, labelled, unlabelled,
            data.validation, self.device,
        )  # fmt: skip

    def _cases(self, arm: Arm) -> tuple[Sequence[Case], Sequence[Case]]:
        """The labelled and the unlabelled cases that the arm learns from."""
        return (self.data.all_labelled, ()) if arm.all_labels else (self.data.labelled, self.data.unlabelled)

    def _require_labels(self, arm: Arm) -> None:
        if arm.all_labels and not self.data.all_labelled:
            raise UserError(
                f"'{arm.title}' needs labels of the unlabelled cases, which the data do not have.",
                "Name them in the list, or choose another experiment.",
            )

    def make(self, arm: Arm, seed: int, report: Callable[[float], None]) -> None:
        """Train a run, or go on with it, and score it; ``report`` is told its share of the steps."""
        trainer = self._trainer(arm, seed)
        if (trainer.folder / CHECKPOINT).exists():
            trainer.resume()
        steps = trainer.options.steps
        trainer.run(validate_every=min(self.validate_every, steps), report=lambda line: report(line["step"] / steps))
        _use_scored_weights(trainer)
        network, options = trainer.strategy.network, trainer.options
        scored = {"cases": score_cases(trainer.strategy.answering(), options, self.data.test, self.data.vocabulary)}
        if network.aggregation is not None:
            # What the decoder adds to its own experts is measured on every run.
            stitched = StitchedExperts(network)
            scored["stitched"] = score_cases(stitched, options, self.data.test, self.data.vocabulary)
        content = {name: _cases_to_json(scores) for name, scores in scored.items()}
        write_json({"arm": arm.title, "seed": seed, "steps": trainer.step, **content}, trainer.folder / SCORES)


class StitchedExperts(nn.Module):
    """A network whose answer is that of its stitched experts, without its aggregation decoder."""

    def __init__(self, network: DCANet) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Stitched logits (batch, channel, depth, height, width)."""
        decoded = self.network.decode_experts(self.network.encoder(volume))
        return self.network.stitch([expert.logits for expert in decoded])


def score_cases(network: nn.Module, options: TrainingOptions, cases: Sequence[Case], vocabulary: Vocabulary) -> Scores:
    """Dice and ASD (mm) of a network on ``cases``, on the model grid."""
    scores = Scores(vocabulary, (DICE, ASD))
    for case in cases:
        assert case.labels is not None
        predicted = predict(network, case, options)
        found = measure(predicted, case.labels, case.voxel_size(options.grid), len(vocabulary), (DICE, ASD))
        for values in found.values():
            values[[label - 1 for label in case.unannotated]] = np.nan
        scores.add(case.name, found)
    return scores


def _cases_to_json(scores: Scores) -> dict[str, dict[str, list[float | None]]]:
    return {
        case: {metric.key: [rounded(value, 5) for value in scores.table(metric)[row]] for metric in scores.metrics}
        for row, case in enumerate(scores.cases)
    }


def read_scores(path: Path, vocabulary: Vocabulary, of: str = "cases") -> Scores:
    """What a run left: the scores of its result, or with ``of`` "stitched" those of its stitched experts.

    Raises UserError where the file is damaged or has no such scores.
    """
    try:
        content = read_json(path)
        scores = Scores(vocabulary, (DICE, ASD))
        for case, values in content[of].items():
            scores.add(case, {key: np.array(one, float) for key, one in values.items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Delete it; it is measured again.") from None
    return scores


def rounded(value: float, digits: int = 4) -> float | None:
    """A number for JSON, which knows no NaN."""
    return round(float(value), digits) if np.isfinite(value) else None


def _use_scored_weights(trainer: Trainer) -> None:
    """The weights that validated best; without validation the network stays as the last step left it."""
    trainer.use_best()


def _require_settings(folder: Path, common: TrainingOptions, data: Data) -> None:
    told: dict[str, Any] = {"data": data.told, "test": [case.name for case in data.test]}
    options = common.to_json()
    if math.isinf(options["grad_clip_norm"]):
        options["grad_clip_norm"] = None
    path = folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json({"options": options, **told}, path)
        return
    try:
        before = read_json(path)
        there = dict(before.pop("options"))
        there["grad_clip_norm"] = math.inf if there["grad_clip_norm"] is None else there["grad_clip_norm"]
        # An option that did not exist yet has its default, which changes nothing.
        same = before == told and TrainingOptions.from_json(there) == common
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Choose another folder.") from None
    if not same:
        raise UserError(f"{folder} holds runs with other settings or data.", "Choose another folder.")
