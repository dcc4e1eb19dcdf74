"""Tables of scores: means, deviations, intervals, and the paper's layout."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from dcaseg.evaluation.method_table import MethodTable
from dcaseg.evaluation.metrics import ASD, DICE
from dcaseg.evaluation.scores import Scores
from dcaseg.evaluation.statistics import (
    _t_quantile,
    average_over_seeds,
    compute_bootstrap_interval,
    compute_paired_difference,
)
from dcaseg.organs import SYNAPSE

NAN = float("nan")


def scores_of(dice: list[float], asd: float = 1.0) -> Scores:
    """A case for each value of ``dice``, which all organs have."""
    scores = Scores(SYNAPSE, (DICE, ASD))
    for index, value in enumerate(dice):
        scores.add(f"case {index}", {"dice": np.full(13, value), "asd": np.full(13, asd)})
    return scores


@pytest.fixture
def uneven() -> Scores:
    """Scores in which the spleen counts in the first case only, and the second organ in none."""
    scores = Scores(SYNAPSE)
    for first in (0.8, NAN):
        values = np.full(13, 0.5)
        values[:2] = first, NAN
        scores.add("case", {"dice": values})
    return scores


def test_means_are_over_cases_first_and_ignore_scores_that_do_not_count(uneven):
    by_organ = uneven.average_by_organ()
    assert by_organ["spleen"] == 0.8 and np.isnan(by_organ["right_kidney"])
    assert uneven.mean() == pytest.approx((0.8 + 11 * 0.5) / 12)
    assert uneven.average_by_group({"head": (1,), "rest": (1, 2, 3)}) == pytest.approx({"head": 0.8, "rest": 0.65})
    assert uneven.count_excluded() == 3


def test_seeds_give_a_mean_and_a_deviation():
    mean, deviation = average_over_seeds([scores_of([0.5]), scores_of([0.7])])
    assert (mean, deviation) == pytest.approx((0.6, np.std([0.5, 0.7], ddof=1)))
    assert np.isnan(average_over_seeds([scores_of([0.5])]).deviation)


def test_the_interval_over_cases_covers_the_mean_and_shrinks_with_more_cases():
    few = [0.4, 0.8, 0.6, 0.7, 0.5]
    low, high = compute_bootstrap_interval(scores_of(few))
    assert min(few) <= low < np.mean(few) < high <= max(few)
    narrow = compute_bootstrap_interval(scores_of(few * 16))
    assert narrow[1] - narrow[0] < (high - low) / 2
    assert compute_bootstrap_interval(scores_of([0.5] * 5)) == pytest.approx((0.5, 0.5))


def test_too_few_cases_have_no_interval():
    assert np.isnan(compute_bootstrap_interval(scores_of([0.4, 0.8, 0.6, 0.7]))).all()
    with pytest.raises(ValueError, match="at least one case"):
        compute_bootstrap_interval(scores_of([]))


@pytest.mark.slow
def test_the_interval_of_few_cases_covers_the_mean_as_often_as_it_says():
    """The plain percentile interval of six cases covers it in 84 % of the draws of normal scores."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = compute_bootstrap_interval(scores_of(generator.normal(0.5, 0.1, 6).tolist()), samples=2000)
        covered += low <= 0.5 <= high
    assert covered >= 0.87 * 400


def test_quantiles_of_students_t():
    # Tables of the distribution.
    assert [_t_quantile(0.975, degrees) for degrees in (4, 5, 30)] == pytest.approx([2.776, 2.571, 2.042], abs=2e-3)


def test_the_table_has_the_columns_of_the_papers_first_table():
    table = MethodTable(SYNAPSE, {"V-Net": [scores_of([0.5]), scores_of([0.7])], "DCA": [scores_of([0.75], NAN)]})
    assert (
        table.make_header()[:5] == ["Method", "Avg. Dice", "Avg. ASD", "Sp", "RK"] and table.make_header()[-1] == "LAG"
    )
    rows = table.format_cells()
    assert rows[0][:4] == ["V-Net", "60.00±14.1", "1.00±0.0", "60.0"]
    assert rows[1][:4] == ["DCA", "75.00", "-", "75.0"] and len(rows[1]) == 16


def test_the_table_is_written_as_csv_markdown_and_latex():
    table = MethodTable(SYNAPSE, {"20 % of_it": [scores_of([0.5])]}, order=(6, 12))
    assert list(csv.reader(table.render("csv").splitlines())) == [table.make_header(), *table.format_cells()]
    assert table.render("markdown").splitlines()[2] == "| 20 % of_it | 50.00 | 1.00 | 50.0 | 50.0 |"
    latex = table.render("latex")
    assert r"20 \% of\_it & 50.00 & 1.00 & 50.0 & 50.0 \\" in latex and "& Li & RAG" in latex
    assert latex.count("{") == latex.count("}")


def test_scores_of_other_organs_are_rejected():
    with pytest.raises(ValueError, match="13 organs"):
        Scores(SYNAPSE).add("case", {"dice": np.zeros(15)})


def test_the_command_scores_label_maps(dca, small_bundle, coarse_phantom, tmp_path):
    labels = coarse_phantom / "labels.nii.gz"
    out, table = tmp_path / "scores.csv", tmp_path / "table.md"
    run = dca(
        "evaluate", "--bundle", small_bundle, "--prediction", labels, "--truth", labels,
        "--metrics", "asd,hd95,nsd,asd_voxel", "-o", out, "--table", table,
    )  # fmt: skip
    assert run.code == 0, run.err
    rows = list(csv.DictReader(out.open()))
    assert {row["metric"]: float(row["mean"]) for row in rows if row["case"] == "mean"} == {
        "dice": 1, "asd": 0, "hd95": 0, "nsd": 1, "asd_voxel": 0
    }  # fmt: skip
    assert "| random-weights |" not in table.read_text() and "| Label maps | 100.00 | 0.00 |" in table.read_text()


def test_a_list_is_evaluated_without_its_unannotated_organs(dca, small_bundle, coarse_phantom, tmp_path):
    from dcaseg.organs import AMOS
    from dcaseg.training.datalist import Datalist, Entry, write_datalist

    entry = Entry(coarse_phantom / "ct.nii.gz", coarse_phantom / "labels.nii.gz", unannotated=(6,))
    write_datalist(Datalist(AMOS, (), test=(entry,)), tmp_path / "list.json")
    out = tmp_path / "scores.csv"
    run = dca("evaluate", "--bundle", small_bundle, "--data", tmp_path / "list.json", "-o", out)
    assert run.code == 0, run.err
    row = next(csv.DictReader(out.open()))
    assert row["liver"] == "" and row["spleen"] != ""
    none = dca("evaluate", "--bundle", small_bundle, "--data", tmp_path / "list.json", "--group", "validation")
    assert none.code == 2 and "no labeled case" in none.err


def test_a_paired_difference_is_clear_if_every_case_gains_a_little():
    hard_and_easy = [0.1, 0.5, 0.9, 0.3, 0.7, 0.2]
    ours, theirs = scores_of([dice + 0.02 for dice in hard_and_easy]), scores_of(hard_and_easy)
    gain = compute_paired_difference([ours], [theirs])
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.02, 0.02, 0.02))
    # The intervals of the two means nevertheless overlap.
    assert compute_bootstrap_interval(ours)[0] < compute_bootstrap_interval(theirs)[1]
    mixed = compute_paired_difference([scores_of([0.2, 0.4, 1.0, 0.2, 0.8, 0.1])], [theirs])
    assert mixed.low < 0 < mixed.high and mixed.low < mixed.mean < mixed.high
    assert compute_paired_difference([ours, theirs], [theirs]).mean == pytest.approx(0.01)


def test_an_organ_that_one_seed_invents_counts_for_that_seed_only():
    """The difference is that of the tables' means, also if an organ counts in some runs only."""
    cases = [0.5, 0.6, 0.7, 0.5, 0.6]
    usual, inventing = scores_of(cases), scores_of(cases)
    for row in usual.values["dice"]:
        row[3] = NAN
    for row in inventing.values["dice"]:
        row[3] = 0.0
    found = compute_paired_difference([usual, usual, inventing], [usual, usual, usual])
    expected = average_over_seeds([usual, usual, inventing]).mean - average_over_seeds([usual] * 3).mean
    assert found.mean == pytest.approx(expected) and found.mean > -0.02


def test_a_paired_difference_of_other_cases_is_rejected():
    with pytest.raises(ValueError, match="same cases"):
        compute_paired_difference([scores_of([0.5, 0.6])], [scores_of([0.5])])
