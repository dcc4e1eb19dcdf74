"""Runs of an experiment, one after the other: each resumed where it stopped, none done twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...imaging.writing import write_json, write_text
from ...method.log_gap import GROUPS
from ...method.partition import Partition
from ...organs import Vocabulary
from ...training.cases import Case
from ...training.checkpoint import load_checkpoint
from ...training.options import TrainingOptions
from ...training.strategies.strategy import Strategy
from ...training.trainer import BEST, CHECKPOINT, Trainer
from ...training.validation import predict
from ..method_table import Format, MethodTable
from ..metrics import ASD, DICE, measure
from ..scores import Scores
from ..uncertainty import bootstrap_interval, over_seeds
from .definitions import Arm, Experiment

SCORES = "scores.json"
SETTINGS = "experiment.json"

Progress = Callable[[float, str], None]


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
class Outcome:
    """Scores on the test cases of every seed by the arm's key, and the groups of organs of DCA's own division."""

    experiment: Experiment
    scores: Mapping[str, Sequence[Scores]]
    groups: Mapping[str, Sequence[int]]
    vocabulary: Vocabulary


def run_experiment(
    experiment: Experiment,
    common: TrainingOptions,
    data: Data,
    folder: Path,
    seeds: Sequence[int],
    device: str = "cpu",
    validate_every: int = 100,
    progress: Progress | None = None,
) -> Outcome:
    """Run what is not there yet in ``folder`` (shared by experiments of the same settings), score it on the test cases
    on the model grid, and write the tables.

    Of each run the weights that validated best are scored. Raises UserError if the folder was made with other settings
    or data, or if an arm needs labels that the data do not have.
    """
    _require_settings(folder, common, data)
    jobs = [(arm, seed) for arm in experiment.arms for seed in seeds]
    scores: dict[str, list[Scores]] = {arm.key: [] for arm in experiment.arms}
    for index, (arm, seed) in enumerate(jobs):

        def report(share: float, index: int = index, arm: Arm = arm, seed: int = seed) -> None:
            if progress is not None:
                progress((index + share) / len(jobs), f"{arm.title}, seed {seed}")

        run = folder / "runs" / arm.key / f"seed-{seed}"
        if not (run / SCORES).exists():
            _run(arm, seed, common, data, run, device, validate_every, report)
        scores[arm.key].append(read_scores(run / SCORES, data.vocabulary))
    groups = _groups(common, data, folder, device)
    outcome = Outcome(experiment, scores, groups, data.vocabulary)
    write_tables(outcome, folder)
    return outcome


def write_tables(outcome: Outcome, folder: Path) -> None:
    """The experiment's table as CSV, Markdown and LaTeX in ``folder``, and its summary as JSON."""
    rows = {arm.title: outcome.scores[arm.key] for arm in outcome.experiment.arms}
    made = MethodTable(outcome.vocabulary, rows)
    forms: tuple[tuple[Format, str], ...] = (("csv", "csv"), ("markdown", "md"), ("latex", "tex"))
    for form, extension in forms:
        write_text(made.text(form), folder / f"{outcome.experiment.name}.{extension}")
    write_json(summary(outcome), folder / f"{outcome.experiment.name}.json")


def summary(outcome: Outcome) -> dict[str, Any]:
    """For each row: mean Dice and its deviation over seeds, the first seed's interval over cases, Dice by group."""
    found = {}
    for arm in outcome.experiment.arms:
        runs = outcome.scores[arm.key]
        spread = over_seeds(runs)
        found[arm.key] = {
            "title": arm.title,
            "dice": _rounded(spread.mean),
            "deviation_over_seeds": _rounded(spread.deviation),
            "interval_over_cases_of_first_seed": [_rounded(end) for end in bootstrap_interval(runs[0])],
            "dice_by_group": {
                name: _rounded(over_seeds(runs, labels=list(labels)).mean)
                for name, labels in outcome.groups.items()
                if labels
            },
            "asd_mm": _rounded(over_seeds(runs, ASD).mean),
            "asd_not_counted": sum(run.not_counted(ASD) for run in runs),
        }
    return {"experiment": outcome.experiment.title, "arms": found}


def score_cases(strategy: Strategy, cases: Sequence[Case], vocabulary: Vocabulary) -> Scores:
    """Dice and ASD (mm) of a strategy's network on ``cases``, on the model grid."""
    options = strategy.options
    x, y, z = options.grid.spacing
    scores = Scores(vocabulary, (DICE, ASD))
    for case in cases:
        assert case.labels is not None
        found = measure(predict(strategy.network, case, options), case.labels, (z, y, x), len(vocabulary), (DICE, ASD))
        for values in found.values():
            values[[label - 1 for label in case.unknown]] = np.nan
        scores.add(case.name, found)
    return scores


def read_scores(path: Path, vocabulary: Vocabulary) -> Scores:
    """What a run left. Raises UserError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = Scores(vocabulary, (DICE, ASD))
        for case, values in content["cases"].items():
            scores.add(case, {key: np.array(one, float) for key, one in values.items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}).", "Delete it; it is measured again.") from None
    return scores


def _run(
    arm: Arm,
    seed: int,
    common: TrainingOptions,
    data: Data,
    run: Path,
    device: str,
    validate_every: int,
    report: Callable[[float], None],
) -> None:
    if arm.all_labels and not data.all_labelled:
        raise UserError(
            f"'{arm.title}' needs labels of the unlabelled cases, which the data do not have.",
            "Name them in the list, or choose another experiment.",
        )
    options = arm.options(common, seed)
    labelled, unlabelled = (data.all_labelled, ()) if arm.all_labels else (data.labelled, data.unlabelled)
    trainer = Trainer(run, options, data.vocabulary, labelled, unlabelled, data.validation, device)
    if (run / CHECKPOINT).exists():
        trainer.resume()
    trainer.run(
        validate_every=min(validate_every, options.steps), report=lambda line: report(line["step"] / options.steps)
    )
    if (run / BEST).exists():
        best = load_checkpoint(run / BEST)
        trainer.network.load_state_dict(best["averaged"] if options.averaging else best["network"])
    scores = score_cases(trainer.strategy, data.test, data.vocabulary)
    cases = {
        case: {metric.key: [_rounded(value, 5) for value in scores.table(metric)[row]] for metric in scores.metrics}
        for row, case in enumerate(scores.cases)
    }
    write_json({"arm": arm.title, "seed": seed, "steps": trainer.step, "cases": cases}, run / SCORES)


def _groups(common: TrainingOptions, data: Data, folder: Path, device: str) -> dict[str, Sequence[int]]:
    """Head, medium and tail as DCA's own division has them, the same for all arms."""
    division: Partition = Trainer(folder, common, data.vocabulary, data.labelled, (), (), device).partition
    return dict(zip(GROUPS, division.owners, strict=True))


def _require_settings(folder: Path, common: TrainingOptions, data: Data) -> None:
    told = {"options": common.to_json(), "data": data.told, "test": [case.name for case in data.test]}
    # As it will be read: lists for tuples.
    told = json.loads(json.dumps(told).replace("Infinity", "null"))
    path = folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(told, path)
    elif json.loads(path.read_text(encoding="utf-8")) != told:
        raise UserError(f"{folder} holds runs with other settings or data.", "Choose another folder.")


def _rounded(value: float, digits: int = 4) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None
