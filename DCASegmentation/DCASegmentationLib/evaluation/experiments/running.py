"""The paper's tables: their runs made or found, their rows written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...imaging.writing import write_json, write_text
from ...organs import Vocabulary
from ..method_table import Format, MethodTable
from ..metrics import ASD
from ..scores import Scores
from ..uncertainty import bootstrap_interval, over_seeds, paired_difference
from .definitions import DCA_KEY, Experiment
from .runs import Runs, rounded


@dataclass(frozen=True)
class Outcome:
    """Scores on the test cases of every seed by the arm's key, and the groups of organs of DCA's own division."""

    experiment: Experiment
    scores: Mapping[str, Sequence[Scores]]
    groups: Mapping[str, Sequence[int]]
    vocabulary: Vocabulary
    stitched: Mapping[str, Sequence[Scores]] = field(default_factory=dict)


def run_experiment(experiment: Experiment, runs: Runs) -> Outcome:
    """Run what is not there yet, score it on the test cases and write the tables into the runs' folder.

    Raises UserError if an arm needs labels that the data do not have.
    """
    scores = runs.scores(experiment.arms)
    found = {arm.key: runs.stitched_scores(arm) for arm in experiment.arms}
    stitched = {key: each for key, each in found.items() if each is not None}
    outcome = Outcome(experiment, scores, runs.groups(), runs.data.vocabulary, stitched)
    write_tables(outcome, runs.folder)
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
    """For each row: mean Dice and its deviation over seeds, the first seed's interval over cases, Dice by group.

    DCA's row minus each other row, and a decoder minus its own stitched experts, have a paired interval over cases.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in outcome.experiment.arms:
        runs = outcome.scores[arm.key]
        spread = over_seeds(runs)
        found[arm.key] = {
            "title": arm.title,
            "dice": rounded(spread.mean),
            "deviation_over_seeds": rounded(spread.deviation),
            "interval_over_cases_of_first_seed": [rounded(end) for end in bootstrap_interval(runs[0])],
            "dice_by_group": {
                name: rounded(over_seeds(runs, labels=list(labels)).mean)
                for name, labels in outcome.groups.items()
                if labels
            },
            "asd_mm": rounded(over_seeds(runs, ASD).mean),
            "asd_not_counted": sum(run.not_counted(ASD) for run in runs),
        }
        if arm.key != DCA_KEY and DCA_KEY in outcome.scores:
            found[arm.key]["dca_minus_this"] = _difference(outcome.scores[DCA_KEY], runs)
        if arm.key in outcome.stitched:
            found[arm.key]["decoder_minus_stitched_experts"] = _difference(runs, outcome.stitched[arm.key])
    return {"experiment": outcome.experiment.title, "arms": found}


def _difference(runs: Sequence[Scores], others: Sequence[Scores]) -> dict[str, Any]:
    difference = paired_difference(runs, others)
    return {
        "dice": rounded(difference.mean),
        "interval_over_cases": [rounded(difference.low), rounded(difference.high)],
    }
