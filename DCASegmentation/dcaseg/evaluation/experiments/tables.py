"""Makes the paper's tables from runs, with the paper's own numbers for reference.

The paper's numbers are not directly comparable with ours or with each other. The two tables mix three protocols, which
differ in the split of the cases, the preprocessing, and the score of an organ that is missing on both sides. ASD is in
voxels of the protocol's grid, and only from the prediction to the label map. In Table 1, all rows except the first lack
the last organ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...imaging.writers import write_json, write_text
from ...method.log_gap import GROUPS
from ...organs import Vocabulary
from ...training.options import TrainingOptions
from ..method_table import Format, MethodTable
from ..metrics import ASD
from ..scores import Scores
from ..statistics import average_over_seeds, compute_bootstrap_interval, compute_paired_difference
from .definitions import ALL_EXPERIMENTS, DCA_KEY, EQUAL, FEWER, Arm, Experiment
from .figures import FIGURES, Also
from .runs import Runs, round_or_none
from .step_cost import StepCost

_PROTOCOLS = {
    "DHC split": (
        "vnet-full",
        "ua-mt",
        "urpc",
        "cps",
        "ss-net",
        "adsh",
        "crest",
        "simis",
        "basak",
        "cld",
        "dhc",
        "a-and-d",
        "skcdf",
    ),
    "GA split": ("co-bionet", "magicnet", "ga"),
    "authors' own port; the mean does not follow from the classes": ("bcp", "abd", "beta-fft"),
    "like the GA split": ("dca",),
}
_PROTOCOL = {key: protocol for protocol, keys in _PROTOCOLS.items() for key in keys}


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper: Dice (percent) and ASD (voxels) as mean and deviation over seeds, and Dice by organ.

    ``organs`` maps abbreviations to Dice. A deviation that the paper does not give is None; an organ that it does not
    give is missing. ``protocol`` is the protocol of the row, as far as it can be determined.
    """

    protocol: str
    dice: tuple[float, float | None]
    asd: tuple[float, float | None]
    organs: dict[str, float]


def _parse_table(organs: tuple[str, ...], text: str, protocols: dict[str, str] | None = None) -> dict[str, PaperRow]:
    rows = {}
    for line in text.strip().splitlines():
        key, dice, asd, values = (field.split() for field in line.split("|"))
        protocol = (protocols or {}).get(key[0], _PROTOCOL[key[0]])
        found = dict(zip(organs, map(float, values), strict=False))
        rows[key[0]] = PaperRow(protocol, _parse_spread(dice), _parse_spread(asd), found)
    return rows


def _parse_spread(fields: list[str]) -> tuple[float, float | None]:
    mean, deviation = fields
    return float(mean), None if deviation == "-" else float(deviation)


TABLE1 = _parse_table(
    ("Sp", "RK", "LK", "Ga", "Es", "Li", "St", "Ao", "IVC", "PSV", "Pa", "RAG", "LAG"),
    """
    vnet-full | 62.09 1.2 | 10.28 3.9 | 84.6 77.2 73.8 73.3 38.2 94.6 68.4 72.1 71.2 58.2 48.5 17.9 29.0
    ua-mt | 20.26 2.2 | 71.67 7.4 | 48.2 31.7 22.2 0.0 0.0 81.2 29.1 23.3 27.5 0.0 0.0 0.0
    urpc | 25.68 5.1 | 72.74 15.5 | 66.7 38.2 56.8 0.0 0.0 85.3 33.9 33.1 14.8 0.0 5.1 0.0
    cps | 33.55 3.7 | 41.21 9.1 | 62.8 55.2 45.4 35.9 0.0 91.1 31.3 41.9 49.2 8.8 14.5 0.0
    ss-net | 35.08 2.8 | 50.81 6.5 | 62.7 67.9 60.9 34.3 0.0 89.9 20.9 61.7 44.8 0.0 8.7 4.2
    co-bionet | 58.83 2.7 | 7.50 5.8 | 82.8 90.0 86.5 11.6 19.5 92.3 47.7 77.5 77.7 51.3 30.3 47.5
    bcp | 50.23 1.5 | 18.45 2.3 | 72.4 58.1 52.7 38.2 12.5 92.3 35.6 48.9 45.2 18.7 22.1 8.4
    magicnet | 60.57 2.5 | 22.48 6.3 | 82.5 91.0 89.5 11.2 0.0 89.4 62.7 77.6 79.0 66.1 47.3 36.8
    abd | 55.67 1.2 | 15.32 1.8 | 76.8 64.3 58.9 42.5 18.9 93.7 41.2 55.4 51.6 24.3 28.7 14.6
    beta-fft | 59.12 0.9 | 12.18 1.1 | 81.2 70.5 65.4 48.7 25.3 95.1 47.8 62.1 58.3 30.9 35.2 21.5
    adsh | 35.29 0.5 | 39.61 4.6 | 55.1 59.6 45.8 52.2 0.0 89.4 32.8 47.6 53.0 8.9 14.4 0.0
    crest | 38.33 3.4 | 22.85 9.0 | 62.1 64.7 53.8 43.8 8.1 85.9 27.2 54.4 47.7 14.4 13.0 18.7
    simis | 40.07 0.6 | 32.98 0.5 | 62.3 69.4 50.7 61.4 0.0 87.0 33.0 59.0 57.2 29.2 11.8 0.0
    basak | 33.24 0.6 | 43.78 2.5 | 57.4 53.8 48.5 46.9 0.0 87.8 28.7 42.3 45.4 6.3 15.0 0.0
    cld | 41.07 1.2 | 32.15 3.3 | 62.0 66.0 59.3 61.5 0.0 89.0 31.7 62.8 49.4 28.6 18.5 0.0
    dhc | 48.61 0.9 | 10.71 2.6 | 62.8 69.5 59.2 66.0 13.2 85.2 36.9 67.9 61.5 37.0 30.9 31.4
    a-and-d | 60.88 0.7 | 2.52 0.4 | 85.2 66.9 67.0 52.7 62.9 89.6 52.1 83.0 74.9 41.8 43.4 44.8
    ga | 68.43 0.5 | 3.11 0.2 | 81.4 92.4 90.8 33.5 53.3 89.1 60.9 79.1 82.1 66.7 48.7 50.3
    skcdf | 64.27 1.4 | 1.45 0.1 | 79.5 72.1 67.6 59.8 60.7 93.3 61.7 85.4 78.5 41.8 50.9 46.4
    dca | 73.20 0.3 | 1.78 0.1 | 82.9 92.8 91.4 64.0 61.4 92.5 67.2 83.9 82.7 68.1 52.2 51.8
    """,
)

TABLE2 = _parse_table(
    ("Sp", "RK", "LK", "Ga", "Es", "Li", "St", "Ao", "IVC", "Pa", "RAG", "LAG", "Du", "Bl", "P/U"),
    """
    vnet-full | 76.50 - | 2.01 - | 92.2 92.2 93.3 65.5 70.3 95.3 82.4 91.4 85.0 74.9 58.6 58.1 65.6 64.4 58.3
    ua-mt | 42.16 - | 15.48 - | 59.8 64.9 64.0 35.3 34.1 77.7 37.8 61.0 46.0 33.3 26.9 12.3 18.1 29.7 31.6
    urpc | 44.93 - | 27.44 - | 67.0 64.2 67.2 36.1 0.0 83.1 45.5 67.4 54.4 46.7 0.0 29.4 35.2 44.5 33.2
    cps | 41.08 - | 20.37 - | 56.1 60.3 59.4 33.3 25.4 73.8 32.4 65.7 52.1 31.1 25.5 6.2 18.4 40.7 35.8
    ss-net | 33.88 - | 54.72 - | 65.4 68.3 69.9 37.8 0.0 75.1 33.2 68.0 56.6 33.5 0.0 0.0 0.0 0.2 0.2
    co-bionet | 48.32 - | 26.04 - | 76.6 82.1 75.1 41.5 38.2 87.9 40.4 75.2 53.7 40.8 4.8 0.0 25.1 64.2 19.2
    bcp | 45.67 - | 28.12 - | 62.3 66.1 62.5 34.8 18.7 79.4 38.2 64.3 49.1 35.6 22.4 15.2 22.8 35.1 32.9
    magicnet | 54.08 - | 29.03 - | 80.0 84.5 86.1 47.9 0.0 85.1 50.7 81.7 69.3 57.2 46.0 0.0 40.8 62.9 19.2
    abd | 50.23 - | 22.45 - | 68.7 70.4 68.2 39.5 25.3 84.2 42.1 69.8 54.7 41.2 28.6 21.8 29.4 42.3 38.7
    beta-fft | 54.89 - | 18.76 - | 74.2 75.8 73.6 45.2 32.1 88.9 48.7 75.4 60.3 47.8 35.2 28.9 36.7 49.5 45.1
    adsh | 40.33 - | 24.53 - | 56.0 63.6 57.3 34.7 25.7 73.9 30.7 65.7 51.9 27.1 20.2 0.0 18.6 43.5 35.9
    crest | 46.55 - | 14.62 - | 66.5 64.2 65.4 36.0 32.2 77.8 43.6 68.5 52.9 40.3 24.7 19.5 26.5 43.9 36.4
    simis | 47.27 - | 11.51 - | 77.4 72.5 68.7 32.1 14.7 86.6 46.3 74.6 54.2 41.6 24.4 17.9 21.9 47.9 28.2
    basak | 38.74 - | 31.76 - | 68.8 59.0 54.2 29.0 0.0 83.7 39.3 61.7 52.1 34.6 0.0 0.0 26.8 45.7 26.2
    cld | 46.10 - | 15.86 - | 67.2 68.5 71.4 41.0 21.0 76.1 42.4 69.8 52.1 37.9 24.7 23.4 22.7 38.1 35.2
    dhc | 49.53 - | 13.89 - | 68.1 69.6 71.1 42.3 37.0 76.8 43.8 70.8 57.4 43.2 27.0 28.7 29.1 41.4 36.7
    a-and-d | 50.03 - | 5.21 - | 73.1 76.0 76.5 29.1 44.9 82.5 49.0 72.8 61.7 48.5 30.2 19.7 36.4 32.9 18.2
    ga | 63.51 - | 4.58 - | 78.9 85.5 87.2 50.0 49.1 86.9 56.2 83.4 70.3 57.4 49.1 40.8 38.3 71.6 47.9
    skcdf | 53.81 - | 5.97 - | 77.1 77.9 71.2 34.1 50.4 88.6 51.6 80.9 58.9 48.8 33.0 30.2 32.2 45.9 26.4
    dca | 69.90 - | 2.66 - | 87.3 87.8 90.6 59.6 63.6 91.3 66.4 87.0 76.7 64.0 55.8 48.5 46.1 72.7 51.1
    """,
    {"a-and-d": "as SKCDF's paper gives it"},
)

PAPER = {"table1": TABLE1, "table2": TABLE2}
"""Rows by the name of the table and the key of the arm."""


@dataclass(frozen=True)
class Outcome:
    """The results of an experiment.

    ``scores`` maps arm keys to the scores on the test cases, one entry for each seed, ``groups`` maps group names to
    the labels of DCA's partition, ``stitched`` maps arm keys to the scores of the stitched experts. ``costs`` maps arm
    keys to the cost of a step, and is empty if the table does not show costs. ``paper`` maps arm keys to the paper's
    rows, ``labeled`` to the number of cases with labels and of all training cases. ``seeds`` is the number of seeds of
    each row, ``data`` a description of the cases. If some runs are missing (``is_partial``), rows have fewer scores,
    and rows without any are left out.
    """

    experiment: Experiment
    scores: Mapping[str, Sequence[Scores]]
    groups: Mapping[str, Sequence[int]]
    vocabulary: Vocabulary
    stitched: Mapping[str, Sequence[Scores]] = field(default_factory=dict)
    costs: Mapping[str, StepCost] = field(default_factory=dict)
    options: Mapping[str, TrainingOptions] = field(default_factory=dict)
    paper: Mapping[str, PaperRow] = field(default_factory=dict)
    labeled: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    seeds: int = 1
    data: str = ""
    is_partial: bool = False

    @property
    def name(self) -> str:
        """The name of the table's files, without extension."""
        return self.experiment.name + (PARTIAL if self.is_partial else "")


PARTIAL = "-partial"
"""Suffix of the name of a table from which runs are missing."""


def run_experiment(
    experiment: Experiment,
    runs: Runs,
    costs: Mapping[str, StepCost] | None = None,
    paper: Mapping[str, PaperRow] | None = None,
) -> Outcome:
    """Make the missing runs, score them on the test cases and write the tables into the folder of ``runs``.

    ``costs`` (of a step) and ``paper`` (the paper's rows), both by arm key, become columns. Raises UserError if an arm
    needs labels that the data do not have.
    """
    runs.make_missing([(arm, seed) for arm in experiment.arms for seed in runs.seeds])
    outcome = load_finished_outcome(experiment, runs, costs, paper)
    assert outcome is not None
    write_tables(outcome, runs.folder)
    return outcome


def load_finished_outcome(
    experiment: Experiment,
    runs: Runs,
    costs: Mapping[str, StepCost] | None = None,
    paper: Mapping[str, PaperRow] | None = None,
) -> Outcome | None:
    """The outcome of the finished runs of ``experiment``, or None if there are none. See ``run_experiment``."""
    finished = runs.get_finished_seeds(experiment.arms)
    if not finished:
        return None
    arms = tuple(arm for arm in experiment.arms if arm.key in finished)
    of_arm = {arm.key: replace(runs, seeds=finished[arm.key]) for arm in arms}
    stitched = {arm.key: of_arm[arm.key].read_stitched_scores(arm) for arm in arms}
    return Outcome(
        replace(experiment, arms=arms),
        {arm.key: of_arm[arm.key].compute_scores([arm])[arm.key] for arm in arms},
        runs.get_groups(),
        runs.data.vocabulary,
        stitched={key: scores for key, scores in stitched.items() if scores is not None},
        costs=costs or {},
        options={arm.key: arm.make_options(runs.common, runs.seeds[0]) for arm in arms},
        paper=paper or {},
        labeled={arm.key: runs.label_counts(arm) for arm in arms},
        seeds=len(runs.seeds),
        data=runs.data.description,
        is_partial=sum(map(len, finished.values())) < len(experiment.arms) * len(runs.seeds),
    )


def write_tables(outcome: Outcome, folder: Path) -> None:
    """Write the experiment's table as CSV, Markdown and LaTeX to ``folder``; a complete one with its summary as JSON.

    A complete table replaces the partial one.
    """
    arms, by_group = outcome.experiment.arms, outcome.experiment.by_group
    table = MethodTable(
        outcome.vocabulary,
        {arm.key: outcome.scores[arm.key] for arm in arms},
        titles={arm.key: arm.title for arm in arms},
        groups={arm.key: format_group_title(arm, outcome) for arm in arms},
        leading=make_leading_columns(outcome.experiment, outcome.options),
        order=tuple(label for labels in outcome.groups.values() for label in labels) if by_group else (),
        colors=_make_group_colors(outcome.groups) if by_group else {},
        further=make_further_columns(outcome),
        marked=any(arm.group for arm in arms),
        unranked=[arm.key for arm in arms if arm.all_labels],
        caption=_format_caption(outcome),
    )
    for form, extension in _FORMS.items():
        write_text(table.render(form), folder / f"{outcome.name}.{extension}")
    if not outcome.is_partial:
        write_json(summarize_outcome(outcome), folder / f"{outcome.name}.json")
        for extension in _FORMS.values():
            (folder / f"{outcome.name}{PARTIAL}.{extension}").unlink(missing_ok=True)


_FORMS: Mapping[Format, str] = {"csv": "csv", "markdown": "md", "latex": "tex"}


def _format_caption(outcome: Outcome) -> str:
    sentences = [f"{outcome.experiment.title}. Data: {outcome.data}."]
    if outcome.is_partial:
        sentences.append("Only finished runs: some rows or seeds are missing.")
    sentences.append("Dice in percent and symmetric ASD in mm, on the model grid.")
    sentences.append("An organ that is missing in the prediction or the label map has no ASD.")
    if outcome.seeds > 1:
        sentences.append(f"Mean ± standard deviation over {outcome.seeds} seeds.")
    if any(arm.group for arm in outcome.experiment.arms):
        sentences.append("The three best values of each column are marked, not counting full supervision.")
    if outcome.experiment.by_group:
        colors = ", ".join(f"{group} {_COLORS[group]}" for group, labels in outcome.groups.items() if labels)
        sentences.append(f"Organs are in the order of their groups ({colors}).")
    if any(arm.labeled_share < 1 for arm in outcome.experiment.arms):
        sentences.append("L is the fraction of training cases with labels.")
    if outcome.paper:
        sentences.append("The paper's ASD is one-sided, and its rows rest on different protocols.")
    return " ".join(sentences)


def format_group_title(arm: Arm, outcome: Outcome) -> str:
    """The group of methods (Tables 1 and 2), or the fraction of labeled cases in a table with several (Table 4)."""
    if arm.group or all(each.labeled_share == 1 for each in outcome.experiment.arms):
        return arm.group
    labeled, cases = outcome.labeled[arm.key]
    return f"{100 * labeled / cases:.2g}% L"


def make_further_columns(outcome: Outcome) -> dict[str, dict[str, str]]:
    """What ASD leaves out, finished seeds of a partial table, cost, and the paper's own numbers.

    They are cells by column title and arm key.
    """
    columns: dict[str, dict[str, str]] = {}
    if any(run.count_excluded(ASD) for runs in outcome.scores.values() for run in runs):
        columns["ASD: organs left out"] = {key: _format_missing_asd(runs) for key, runs in outcome.scores.items()}
    for arm in outcome.experiment.arms:
        key = arm.key.removesuffix(EQUAL)
        cost, paper = outcome.costs.get(key), outcome.paper.get(key)
        if outcome.is_partial:
            columns.setdefault("Seeds", {})[arm.key] = f"{len(outcome.scores[arm.key])} of {outcome.seeds}"
        if cost is not None:
            columns.setdefault("GMAC/step", {})[arm.key] = format_significant(cost.macs / 1e9)
            columns.setdefault("Patches/step", {})[arm.key] = format_significant(cost.passes)
            columns.setdefault("Steps", {})[arm.key] = str(outcome.options[arm.key].steps)
        if paper is not None:
            columns.setdefault("Paper: Dice", {})[arm.key] = _format_spread(paper.dice)
            columns.setdefault("Paper: ASD (voxels)", {})[arm.key] = _format_spread(paper.asd)
            columns.setdefault("Paper: protocol", {})[arm.key] = paper.protocol
    return columns


def _format_missing_asd(runs: Sequence[Scores]) -> str:
    """The percentage of the cases' organs that have no ASD."""
    total = sum(run.to_array(ASD).size for run in runs)
    return f"{100 * sum(run.count_excluded(ASD) for run in runs) / total:.0f} %"


def format_significant(value: float) -> str:
    """``value`` with three significant digits, and without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def make_leading_columns(experiment: Experiment, options: Mapping[str, TrainingOptions]) -> dict[str, dict[str, str]]:
    """The columns before the scores in the paper's Tables 3 and 5, by column title and arm key.

    Table 3 has check marks for components, Table 5 a line with the stages and dilations of each decoder.
    """
    columns: dict[str, dict[str, str]] = {}
    for arm in experiment.arms:
        of_arm = options[arm.key]
        if experiment.name == "table3":
            has_experts = of_arm.strategy in ("plain_experts", "dca")
            has_groups = of_arm.strategy == "dca"
            has_dfam = has_groups and of_arm.aggregation and of_arm.fusion == "dfam"
            for title, has in (("Baseline", True), ("3 Experts", has_experts), ("LGA", has_groups), ("DFAM", has_dfam)):
                columns.setdefault(title, {})[arm.key] = "✓" if has else ""
        if experiment.name == "table5":
            columns.setdefault("Decoder", {})[arm.key] = "\n".join(group[0].upper() for group in GROUPS)
            for title, values in (("n_stages", of_arm.n_stages), ("Dilation", of_arm.dilations)):
                columns.setdefault(title, {})[arm.key] = "\n".join(", ".join(map(str, decoder)) for decoder in values)
    return columns


_COLORS = dict(zip(GROUPS, ("red", "blue", "teal"), strict=True))


def _make_group_colors(groups: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """LaTeX colors by label, one color for each group."""
    return {label: _COLORS[name] for name, labels in groups.items() for label in labels}


def _format_spread(spread: tuple[float, float | None]) -> str:
    mean, deviation = spread
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f}±{deviation:.1f}"


def summarize_outcome(outcome: Outcome) -> dict[str, Any]:
    """The summary for JSON, by arm key: mean Dice, deviation over seeds, interval over cases, Dice by group, cost.

    The interval over cases is that of the first seed. The differences between DCA and each other row, and between a
    decoder and its own stitched experts, have paired intervals over cases.
    """
    arms: dict[str, dict[str, Any]] = {}
    for arm in outcome.experiment.arms:
        runs = outcome.scores[arm.key]
        spread = average_over_seeds(runs)
        arms[arm.key] = {
            "title": arm.title,
            "seeds": len(runs),
            "dice": round_or_none(spread.mean),
            "deviation_over_seeds": round_or_none(spread.deviation),
            "interval_over_cases_of_first_seed": [round_or_none(end) for end in compute_bootstrap_interval(runs[0])],
            "dice_by_group": {
                name: round_or_none(average_over_seeds(runs, labels=list(labels)).mean)
                for name, labels in outcome.groups.items()
                if labels
            },
            "asd_mm": round_or_none(average_over_seeds(runs, ASD).mean),
            "asd_not_counted": sum(run.count_excluded(ASD) for run in runs),
        }
        dca = DCA_KEY if arm.labeled_share == 1 else DCA_KEY + FEWER
        if arm.key != dca and dca in outcome.scores:
            arms[arm.key]["dca_minus_this"] = _compute_difference(outcome.scores[dca], runs)
        if arm.key in outcome.labeled:
            arms[arm.key]["labeled_cases"], arms[arm.key]["training_cases"] = outcome.labeled[arm.key]
        if arm.key in outcome.stitched:
            arms[arm.key]["decoder_minus_stitched_experts"] = _compute_difference(runs, outcome.stitched[arm.key])
        if outcome.costs:
            cost = outcome.costs[arm.key.removesuffix(EQUAL)]
            arms[arm.key] |= {
                "steps": outcome.options[arm.key].steps,
                "gmac_per_step": round_or_none(cost.macs / 1e9, 3),
                "patches_per_step": round_or_none(cost.passes, 3),
            }
    return {"experiment": outcome.experiment.title, "arms": arms}


def _compute_difference(runs: Sequence[Scores], others: Sequence[Scores]) -> dict[str, Any]:
    difference = compute_paired_difference(runs, others)
    return {
        "dice": round_or_none(difference.mean),
        "interval_over_cases": [round_or_none(difference.low), round_or_none(difference.high)],
    }


def make_runs_of(
    names: Iterable[str],
    runs: Runs,
    experiments: Mapping[str, Experiment] = ALL_EXPERIMENTS,
    also: Also | None = None,
) -> None:
    """Make the missing runs of the tables (in ``experiments``) and figures ``names``, all in one queue.

    With a queue for each table, part of the computer would be idle during its last runs. Raises UserError if a run
    needs labels that the data do not have.
    """
    jobs = []
    for name in names:
        arms = experiments[name].arms if name in experiments else FIGURES[name].arms(runs, also or Also())
        every_seed = name in experiments or FIGURES[name].every_seed
        jobs += [(arm, seed) for seed in (runs.seeds if every_seed else runs.seeds[:1]) for arm in arms]
    runs.make_missing(jobs)
