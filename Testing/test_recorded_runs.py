"""The recorded runs of the benchmark on real anatomies: they can be continued, and the documents show their scores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dcaseg.evaluation.experiments.anatomies import TEST
from dcaseg.evaluation.experiments.definitions import ALL_EXPERIMENTS, METHODS, make_anatomies_options
from dcaseg.evaluation.experiments.runs import SCORES, read_scores
from dcaseg.evaluation.metrics import ASD, DICE
from dcaseg.evaluation.scores import Scores, mean_of_organs
from dcaseg.evaluation.statistics import average_over_seeds, compute_paired_difference
from dcaseg.organs import AMOS
from dcaseg.training.options import TrainingOptions

RECORDED = Path(__file__).parent / "experiments" / "anatomies"
DOCUMENT = Path(__file__).parents[1] / "Resources" / "Docs" / "measurements" / "training.md"
ARMS = {arm.key: arm for experiment in ALL_EXPERIMENTS.values() for arm in experiment.arms}


SEEDS = range(3)


def scores_of(key: str, of: str = "cases") -> dict[int, Scores]:
    """Scores of a row on the test cases by seed; with ``of`` "stitched" those of its stitched experts."""
    paths = {seed: RECORDED / "runs" / key / f"seed-{seed}" / SCORES for seed in SEEDS}
    return {seed: read_scores(path, AMOS, of) for seed, path in paths.items() if path.exists()}


def recorded(key: str) -> dict[int, float]:
    """Mean Dice of a row on the test cases, by seed."""
    return {seed: average_over_seeds([scores], DICE).mean for seed, scores in scores_of(key).items()}


def test_the_recorded_runs_have_todays_options():
    record = json.loads((RECORDED / "experiment.json").read_text(encoding="utf-8"))
    assert TrainingOptions.from_json(record["options"]) == make_anatomies_options(steps=2000)
    assert len(record["test"]) == sum(TEST.values())
    for path in (RECORDED / "runs").iterdir():
        assert path.name in ARMS
        for scores in path.glob(f"*/{SCORES}"):
            assert list(read_scores(scores, AMOS).cases) == record["test"]


def rows_of_the_document(first_cell: str) -> dict[str, list[str]]:
    """The other cells of each row, by the first one, of the table whose header starts with ``first_cell``."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = re.search(rf"^\| {first_cell} \|.*?\n\n", text, re.DOTALL | re.MULTILINE)
    assert table is not None
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].strip().splitlines()[2:]]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.parametrize("key", sorted(path.name for path in (RECORDED / "runs").iterdir()))
def test_the_document_shows_the_recorded_scores(key):
    cells = rows_of_the_document("network, test")[ARMS[key].title]
    scores = recorded(key)
    assert cells[:3] == [f"{scores[seed]:.3f}" if seed in scores else "" for seed in SEEDS]
    assert cells[3] == (f"{np.mean(list(scores.values())):.3f}" if len(scores) == 3 else "")


# Key of the row and of the one that is subtracted; None stands for the stitched experts of the same row.
DIFFERENCES = {
    "DCA: aggregation decoder, minus its stitched experts": ("dca", None),
    "DCA minus DCA, labeled part": ("dca", "labeled-only"),
    "DCA with pseudo-labels of the stitched experts, minus DCA, labeled part": (
        "stitched-pseudo-labels",
        "labeled-only",
    ),
    "DCA minus V-Net, labeled part": ("dca", "vnet"),
    "DCA minus three averaged experts": ("dca", "experts"),
    "DCA minus stitched experts with all 2000 steps": ("dca", "stitched"),
    "DCA minus DCA without DFAM": ("dca", "no-dfam"),
    "DCA minus URPC": ("dca", "urpc"),
    "DCA minus CPS": ("dca", "cps"),
    "DCA minus Adsh": ("dca", "adsh"),
    "DCA minus CLD": ("dca", "cld"),
    "URPC minus V-Net, labeled part": ("urpc", "vnet"),
    "CPS minus V-Net, labeled part": ("cps", "vnet"),
    "V-Net (fully) minus V-Net, labeled part": ("vnet-full", "vnet"),
}


# The test cases of each person, in the order of the columns.
PEOPLE = {"BodyParts3D": slice(0, 3), "SPL atlas": slice(3, 6)}


def format_difference(value: float) -> str:
    """Three decimals; a small negative difference is 0.000, without a sign."""
    return f"{round(value, 3) + 0.0:.3f}"


def difference_cells(title: str) -> list[str]:
    """The cells of a row of the table of differences: mean, interval over CTs, seeds, people."""
    key, other = DIFFERENCES[title]
    runs, others = scores_of(key), scores_of(key, "stitched") if other is None else scores_of(other)
    assert list(runs) == list(others) == list(SEEDS)
    difference = compute_paired_difference(list(runs.values()), list(others.values()))
    by_seed = [average_over_seeds([runs[seed]]).mean - average_over_seeds([others[seed]]).mean for seed in SEEDS]
    tables = [(runs[seed].to_array(), others[seed].to_array()) for seed in SEEDS]
    by_person = [
        np.mean([mean_of_organs(one[rows]) - mean_of_organs(other[rows]) for one, other in tables])
        for rows in PEOPLE.values()
    ]
    return [
        format_difference(difference.mean),
        f"{format_difference(difference.low)} to {format_difference(difference.high)}",
        ", ".join(map(format_difference, by_seed)),
        ", ".join(map(format_difference, by_person)),
    ]


@pytest.mark.parametrize("title", DIFFERENCES)
def test_the_document_shows_the_differences_of_the_recorded_scores(title):
    assert rows_of_the_document("difference")[title] == difference_cells(title)


def test_every_difference_of_the_document_is_compared():
    assert list(rows_of_the_document("difference")) == list(DIFFERENCES)


# The organs of each column of the table of methods; all others are in the last one.
GROUPS = {"adrenal glands": ("right_adrenal_gland", "left_adrenal_gland"), "liver": ("liver",)}


def missed_share(scores: Scores) -> float:
    """The share of the organs in the label maps of which no voxel was found."""
    dice, distance = scores.to_array(DICE), scores.to_array(ASD)
    return float(np.mean(np.isnan(distance[~np.isnan(dice)])))


def cells_of_method(key: str) -> list[str]:
    """The cells of a row of the table of methods, with seed 0: Dice (all, by group), organs missed, cost of a step."""
    scores = scores_of(key)[0]
    groups = [[AMOS.by_key[organ].label for organ in organs] for organs in GROUPS.values()]
    groups.append([label for label in AMOS.by_label if not any(label in group for group in groups)])
    operations, patches = json.loads((RECORDED / "costs.json").read_text(encoding="utf-8"))[key]
    return [
        f"{average_over_seeds([scores], DICE).mean:.3f}",
        *(f"{scores.mean(group):.3f}" for group in groups),
        f"{100 * missed_share(scores):.0f} %",
        f"{operations / 1e9:.1f}",
        f"{patches:g}",
    ]


def table_of_methods() -> list[str]:
    """The rows of the table of methods in the document."""
    return [f"| {arm.title} | {' | '.join(cells_of_method(arm.key))} |" for arm in METHODS if scores_of(arm.key)]


def test_the_document_has_the_table_of_methods():
    shown = rows_of_the_document("method")
    assert [f"| {name} | {' | '.join(cells)} |" for name, cells in shown.items()] == table_of_methods()
