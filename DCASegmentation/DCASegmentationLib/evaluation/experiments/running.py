"""The paper's tables: their runs made or found, their rows written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...imaging.writing import write_json, write_text
from ...organs import Vocabulary
from ...training.options import TrainingOptions
from ..method_table import Format, MethodTable
from ..metrics import ASD
from ..scores import Scores
from ..uncertainty import bootstrap_interval, over_seeds, paired_difference
from .cost import StepCost
from .definitions import DCA_KEY, Experiment
from .paper_numbers import PaperRow
from .runs import Runs, rounded
from .systems import EQUAL


@dataclass(frozen=True)
class Outcome:
    """Scores on the test cases of every seed by the arm's key, and the groups of organs of DCA's own division."""

    experiment: Experiment
    scores: Mapping[str, Sequence[Scores]]
    groups: Mapping[str, Sequence[int]]
    vocabulary: Vocabulary
    stitched: Mapping[str, Sequence[Scores]] = field(default_factory=dict)
    # By the arm's key; empty where the table does not show costs.
    costs: Mapping[str, StepCost] = field(default_factory=dict)
    options: Mapping[str, TrainingOptions] = field(default_factory=dict)
    # The paper's own rows to show beside, by the arm's key.
    paper: Mapping[str, PaperRow] = field(default_factory=dict)


def run_experiment(
    experiment: Experiment,
    runs: Runs,
    costs: Mapping[str, StepCost] | None = None,
    paper: Mapping[str, PaperRow] | None = None,
) -> Outcome:
    """Run what is not there yet, score it on the test cases and write the tables into the runs' folder.

    ``costs`` of a step, by the arm's key, and the ``paper``'s own rows become columns. Raises UserError if an arm needs
    labels that the data do not have.
    """
    scores = runs.scores(experiment.arms)
    found = {arm.key: runs.stitched_scores(arm) for arm in experiment.arms}
    outcome = Outcome(
        experiment,
        scores,
        runs.groups(),
        runs.data.vocabulary,
        stitched={key: each for key, each in found.items() if each is not None},
        costs=costs or {},
        options={arm.key: arm.options(runs.common, runs.seeds[0]) for arm in experiment.arms},
        paper=paper or {},
    )
    write_tables(outcome, runs.folder)
    return outcome


def write_tables(outcome: Outcome, folder: Path) -> None:
    """The experiment's table as CSV, Markdown and LaTeX in ``folder``, and its summary as JSON."""
    rows = {arm.title: outcome.scores[arm.key] for arm in outcome.experiment.arms}
    arms = outcome.experiment.arms
    grouped = {arm.title: arm.group for arm in arms}
    made = MethodTable(
        outcome.vocabulary,
        rows,
        groups=grouped,
        leading=leading_columns(outcome.experiment, outcome.options),
        colors=_group_colors(outcome.groups) if outcome.experiment.by_group else {},
        further=further_columns(outcome),
        marked=any(grouped.values()),
        unranked=[arm.title for arm in arms if arm.all_labels],
    )
    forms: tuple[tuple[Format, str], ...] = (("csv", "csv"), ("markdown", "md"), ("latex", "tex"))
    for form, extension in forms:
        write_text(made.text(form), folder / f"{outcome.experiment.name}.{extension}")
    write_json(summary(outcome), folder / f"{outcome.experiment.name}.json")


def further_columns(outcome: Outcome) -> dict[str, dict[str, str]]:
    """Cost and the paper's own numbers, by the column's title and the arm's title."""
    columns: dict[str, dict[str, str]] = {}
    for arm in outcome.experiment.arms:
        key = arm.key.removesuffix(EQUAL)
        cost, paper = outcome.costs.get(key), outcome.paper.get(key)
        if cost is not None:
            columns.setdefault("GMAC/step", {})[arm.title] = f"{cost.macs / 1e9:.3g}"
            columns.setdefault("Patches/step", {})[arm.title] = f"{cost.passes:.3g}"
            columns.setdefault("Steps", {})[arm.title] = str(outcome.options[arm.key].steps)
        if paper is not None:
            columns.setdefault("Paper: Dice", {})[arm.title] = _printed(paper.dice)
            columns.setdefault("Paper: ASD (voxels)", {})[arm.title] = _printed(paper.asd)
            columns.setdefault("Paper: protocol", {})[arm.title] = paper.protocol
    return columns


def leading_columns(experiment: Experiment, options: Mapping[str, TrainingOptions]) -> dict[str, dict[str, str]]:
    """What the paper's Tables 3 and 5 show of their rows before the scores, by the column's and the arm's title: check
    marks of components, and stages and dilation of the decoders."""
    columns: dict[str, dict[str, str]] = {}
    for arm in experiment.arms:
        made = options[arm.key]
        if experiment.name == "table3":
            three = made.strategy in ("plain_experts", "dca")
            divided = made.strategy == "dca"
            fused = divided and made.aggregation and made.fusion == "dfam"
            for title, has in (("Baseline", True), ("3 Experts", three), ("LGA", divided), ("DFAM", fused)):
                columns.setdefault(title, {})[arm.title] = "✓" if has else ""
        if experiment.name == "table5":
            for title, values in (("n_stages H, M, T", made.n_stages), ("Dilation H, M, T", made.dilations)):
                written = "; ".join(", ".join(map(str, decoder)) for decoder in values)
                columns.setdefault(title, {})[arm.title] = written
    return columns


def _group_colors(groups: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """LaTeX colors of organs by their group: head, medium, tail."""
    colors = dict(zip(groups, ("red", "blue", "teal"), strict=False))
    return {label: colors[name] for name, labels in groups.items() for label in labels}


def _printed(spread: tuple[float, float | None]) -> str:
    mean, deviation = spread
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f}±{deviation:.1f}"


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
        if outcome.costs:
            cost = outcome.costs[arm.key.removesuffix(EQUAL)]
            found[arm.key] |= {
                "steps": outcome.options[arm.key].steps,
                "gmac_per_step": rounded(cost.macs / 1e9, 3),
                "patches_per_step": rounded(cost.passes, 3),
            }
    return {"experiment": outcome.experiment.title, "arms": found}


def _difference(runs: Sequence[Scores], others: Sequence[Scores]) -> dict[str, Any]:
    difference = paired_difference(runs, others)
    return {
        "dice": rounded(difference.mean),
        "interval_over_cases": [rounded(difference.low), rounded(difference.high)],
    }
