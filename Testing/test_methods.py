"""Tables 1 and 2 with all methods: rows, cost and output."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from dcaseg.errors import UserError
from dcaseg.evaluation.experiments.definitions import (
    EXPERIMENTS,
    GENERAL,
    IMBALANCE,
    METHODS,
    TABLES,
    equalize_compute,
    make_small_options,
    remove_unsupported_rows,
    require_matching_dataset,
)
from dcaseg.evaluation.experiments.runs import COSTS, Data, Runs
from dcaseg.evaluation.experiments.step_cost import StepCost, compute_step_cost, measure_step_time
from dcaseg.evaluation.experiments.tables import PAPER, format_significant, make_leading_columns, run_experiment
from dcaseg.evaluation.method_table import MethodTable
from dcaseg.evaluation.metrics import ASD, DICE
from dcaseg.evaluation.scores import Scores
from dcaseg.organs import AMOS, SYNAPSE
from dcaseg.training.checkpoints import load_checkpoint
from dcaseg.training.options import StrategyName, TrainingOptions
from dcaseg.training.run_folder import BEST
from strategy_samples import FACTS, GROUPS
from test_strategies import options_for
from test_training import OPTIONS, THREE_BALLS, case_of_balls

COMMON = replace(OPTIONS, steps=2, patch=(16, 16, 32))
BY_KEY = {arm.key: arm for arm in METHODS}


@pytest.fixture
def data() -> Data:
    return Data(
        THREE_BALLS,
        [case_of_balls(1), case_of_balls(2)],
        [case_of_balls(3, labeled=False)],
        [case_of_balls(4)],
        [case_of_balls(5)],
        [case_of_balls(1), case_of_balls(2), case_of_balls(3)],
        "balls",
    )


def test_all_twenty_rows_have_a_strategy():
    assert len(METHODS) == 20 and {arm.group for arm in METHODS} == {"", GENERAL, IMBALANCE}
    strategies = [arm.changes.get("strategy", "dca") for arm in METHODS]
    assert set(strategies) == set(get_args(StrategyName)) - {"plain_experts"}
    assert all(set(rows) == set(BY_KEY) for rows in PAPER.values())
    for preset in (make_small_options(), TrainingOptions(), TrainingOptions.make_paper_preset()):
        for arm in METHODS:
            arm.make_options(preset, 1)
    assert BY_KEY["magicnet"].make_options(make_small_options(), 0).strategy_options == {"cubes": 2}


def test_the_cost_of_a_step_is_the_sum_of_its_passes():
    def cost(name: str) -> StepCost:
        return compute_step_cost(options_for(name, steps=1000), GROUPS, FACTS)

    vnet = cost("vnet")
    assert vnet.passes == 2
    # Relative to the V-Net, which has one forward and backward pass of each labeled patch.
    for name, macs, passes in (("cps", 4, 8), ("urpc", 2, 4), ("basak", 7 / 3, 6), ("ua_mt", 4 + 16 / 6 - 2, 20)):
        found = cost(name)
        assert found.passes == passes, name
        assert found.macs / vnet.macs == pytest.approx(macs, rel=0.06), name
    bcp = cost("bcp")
    # Two mixtures; in the second stage, half of such a short run, also two passes of the teacher.
    assert bcp.passes == pytest.approx(0.5 * 2 + 0.5 * 4)
    assert bcp.macs / vnet.macs == pytest.approx((0.5 * 6 + 0.5 * 8) / 6, rel=0.06)


def test_the_cost_of_a_large_patch_is_scaled_from_a_smaller_one():
    small = compute_step_cost(options_for("vnet", patch=(64, 32, 64), steps=10), GROUPS, FACTS)
    large = compute_step_cost(options_for("vnet", patch=(128, 64, 128), steps=10), GROUPS, FACTS)
    assert large.macs == 8 * small.macs and large.passes == small.passes


def test_equal_compute_adjusts_the_number_of_steps():
    costs = {arm.key: StepCost(float(index + 1), 4.0) for index, arm in enumerate(METHODS)}
    experiment = equalize_compute(TABLES["table1"], 1000, costs)
    for arm in experiment.arms:
        options, cost = arm.make_options(COMMON, 0), costs[arm.key.removesuffix("-equal")]
        steps = 1000 if arm.key == "dca" else options.steps
        assert steps * cost.macs == pytest.approx(1000 * costs["dca"].macs, rel=0.02)
    with pytest.raises(UserError, match="no DCA row"):
        equalize_compute(TABLES["table1"], 1000, {})


@pytest.mark.slow
def test_rows_are_trained_scored_and_written(tmp_path, data):
    few = replace(TABLES["table1"], arms=tuple(BY_KEY[key] for key in ("vnet-full", "cps", "dhc", "dca")))
    runs = Runs(tmp_path, COMMON, data, [0], validate_every=1)
    costs = runs.compute_step_costs(few.arms)
    assert runs.compute_step_costs(few.arms) == costs and (tmp_path / COSTS).exists()
    run_experiment(few, runs, costs, PAPER["table1"])
    header, *rows = list(csv.reader((tmp_path / "table1.csv").open()))
    assert header[:3] == ["Group", "Method", "Avg. Dice"] and header[-1] == "Paper: protocol"
    assert [row[:2] for row in rows] == [
        ["", "V-Net (fully)"],
        ["General", "CPS"],
        ["Imbalance", "DHC"],
        ["Imbalance", "DCA"],
    ]
    by_title = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert by_title["DCA"]["Paper: Dice"] == "73.20±0.3" and by_title["CPS"]["Paper: protocol"] == "DHC split"
    assert by_title["CPS"]["Patches/step"] == "8" and by_title["DHC"]["Steps"] == "2"
    arms = json.loads((tmp_path / "table1.json").read_text())["arms"]
    assert arms["cps"]["gmac_per_step"] > arms["vnet-full"]["gmac_per_step"] > 0
    latex = (tmp_path / "table1.tex").read_text()
    assert r"\rotatebox{90}{Imbalance}" in latex and latex.count("{") == latex.count("}")
    columns = {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line}
    assert columns == {len(header) - 1}

    # Both networks must be those of the best step, not one of the best and one of the last step.
    best = load_checkpoint(tmp_path / "runs" / "cps" / "seed-0" / BEST)
    validated_network = runs.get_trained_strategy(BY_KEY["cps"]).get_validated_network()
    for key, value in validated_network.state_dict().items():
        assert torch.equal(value, best["averaged"][key]), key


def test_a_row_that_does_not_support_the_data_is_rejected_before_training(tmp_path, data):
    labels = np.where(data.labeled[0].labels == 3, 0, data.labeled[0].labels).astype(np.uint8)
    without = replace(data, labeled=[replace(data.labeled[0], labels=labels)])
    few = replace(TABLES["table1"], arms=(BY_KEY["cps"], BY_KEY["dhc"]))
    with pytest.raises(UserError, match="no labeled case has Small"):
        run_experiment(few, Runs(tmp_path, COMMON, without, [0]))
    assert not (tmp_path / "runs").exists()


def test_tables_use_their_own_data():
    require_matching_dataset("table1", SYNAPSE, True)
    require_matching_dataset("table2", AMOS, False)
    with pytest.raises(UserError, match="Use table2"):
        require_matching_dataset("table1", AMOS, True)
    assert len(remove_unsupported_rows(TABLES["table1"], 4, False).arms) == 19
    assert len(remove_unsupported_rows(TABLES["table1"], 4, True).arms) == 20


def test_the_papers_numbers_match_the_slides():
    assert PAPER["table1"]["dca"].dice == (73.20, 0.3) and PAPER["table2"]["dca"].asd == (2.66, None)
    assert PAPER["table1"]["vnet-full"].organs["LAG"] == 29.0 and "LAG" not in PAPER["table1"]["ga"].organs
    for key, row in PAPER["table2"].items():
        consistent = abs(np.mean(list(row.organs.values())) - row.dice[0]) < 0.1
        assert consistent == (key not in ("bcp", "abd", "beta-fft")), key


def scores_of(dice: float, distance: float) -> Scores:
    scores = Scores(THREE_BALLS, (DICE, ASD))
    scores.add("case", {"dice": np.array([dice, dice, 0.0]), "asd": np.full(3, distance)})
    return scores


def test_the_three_best_of_each_column_are_marked():
    rows = {name: [scores_of(*values)] for name, values in {
        "full": (0.9, 0.1), "a": (0.5, 3.0), "b": (0.7, 1.0), "c": (0.7, 2.0), "d": (0.6, 9.0), "e": (0.1, 4.0),
    }.items()}  # fmt: skip
    made = MethodTable(
        THREE_BALLS, rows, groups={"a": "General", "b": "General"}, marked=True, unranked=["full"],
        further={"Steps": {"a": "5"}},
    )  # fmt: skip
    places = made.compute_ranks()
    assert {name: place for (name, column), place in places.items() if column == 0} == {"b": 1, "c": 1, "d": 2, "a": 3}
    assert {name: place for (name, column), place in places.items() if column == 1} == {"b": 1, "c": 2, "a": 3}
    assert not any(column == 4 for _, column in places)
    markdown = made.render("markdown").splitlines()
    assert "| General | b | **46.67** ¹ | **1.00** ¹ | **70.0** ¹" in markdown[4]
    assert "¹" not in markdown[2] and markdown[3].endswith("| 5 |")
    assert "¹" not in made.render("csv") and r"\textbf{\textcolor{red}{46.67}}" in made.render("latex")


def test_a_method_that_finds_only_easy_organs_gets_no_mark_for_its_distance():
    easy, all_found = scores_of(0.3, 1.0), scores_of(0.6, 5.0)
    easy.values["asd"][0][1:] = np.nan
    made = MethodTable(THREE_BALLS, {"easy": [easy], "all": [all_found]}, marked=True)
    assert not any(column == 1 for _, column in made.compute_ranks())
    assert made.compute_ranks()["all", 0] == 1


def test_rows_of_tables_three_and_five():
    def columns(name: str) -> dict[str, list[str]]:
        experiment = EXPERIMENTS[name]
        options = {arm.key: arm.make_options(make_small_options(), 0) for arm in experiment.arms}
        found = make_leading_columns(experiment, options)
        return {title: [cells[arm.key] for arm in experiment.arms] for title, cells in found.items()}

    marks = columns("table3")
    assert marks["3 Experts"][0] == "" and marks["3 Experts"][1:] == ["✓"] * (len(marks["3 Experts"]) - 1)
    assert marks["DFAM"] == [*[""] * (len(marks["DFAM"]) - 1), "✓"] and marks["LGA"][:2] == ["", ""]
    table5 = columns("table5")
    assert table5["n_stages"][0] == "3, 3, 2, 1\n3, 3, 2, 1\n3, 3, 2, 1" and table5["Decoder"][0] == "H\nM\nT"
    assert table5["n_stages"][-1].startswith("2, 2, 1, 1\n") and table5["Dilation"][1] == "\n".join(["1, 1, 1, 1"] * 3)
    assert columns("table1" if "table1" in EXPERIMENTS else "table4") == {}
    made = MethodTable(
        THREE_BALLS, {"β-FFT": [scores_of(0.5, 1.0)]}, leading={"DFAM": {"β-FFT": "✓"}}, colors={1: "red"}
    )
    latex = made.render("latex")
    assert r"$\beta$-FFT & \checkmark & 33.33" in latex and r"\textcolor{red}{large} & middle" in latex
    assert made.make_header()[:3] == ["Method", "DFAM", "Avg. Dice"] and made.format_cells()[0][1] == "✓"


def test_a_row_with_lines_for_each_decoder():
    made = MethodTable(
        THREE_BALLS, {"one": [scores_of(0.5, 1.0)], "two": [scores_of(0.4, 2.0)]}, titles={"one": "V1 & more"},
        leading={"Stages": {"one": "3, 3\n2, 2", "two": "1, 1\n4, 4"}}, caption="What it shows.",
    )  # fmt: skip
    latex = made.render("latex").splitlines()
    assert r"\multirow{2}{*}{V1 \& more} & 3, 3 & \multirow{2}{*}{33.33} & \multirow{2}{*}{1.00}" in latex[7]
    assert latex[8].startswith(" & 2, 2 &  &  & ") and latex[9] == r"\hline" and latex[0] == "% What it shows."
    assert {line.count("&") for line in (latex[7].replace(r"\&", ""), latex[8])} == {6}
    assert made.format_cells()[0][0] == "V1 & more" and "3, 3; 2, 2" in made.render("csv")
    assert "3, 3<br>2, 2" in made.render("markdown") and made.render("markdown").endswith("\n\nWhat it shows.\n")


def test_costs_are_printed_without_exponents():
    values = (1846.2, 849.6, 12.34, 3.646, 0.1322, 2.0, 0.0)
    assert [format_significant(value) for value in values] == ["1846", "850", "12.3", "3.65", "0.132", "2", "0"]


def test_the_time_of_a_step_grows_with_its_passes():
    vnet, cps = (measure_step_time(options_for(name, steps=10), GROUPS, FACTS) for name in ("vnet", "cps"))
    assert cps > 1.5 * vnet > 0


@pytest.mark.slow
def test_the_command_creates_a_table_of_all_methods(dca, tmp_path):
    run = dca(
        "experiment", "table1", "-o", tmp_path, "--people", "2,2,1,1", "--seeds", "0", "--steps", 2, "--filters", 1,
        "--spacing", "10,10,10", "--device", "cpu", "--show-paper-numbers", "--equal", "compute",
    )  # fmt: skip
    assert run.code == 0, run.err
    header, *rows = list(csv.reader((tmp_path / "table1.csv").open()))
    assert len(rows) == 20 and "equal compute" in run.out and "Paper: Dice" in header
    assert "with table1 and table2" in dca("experiment", "table3", "-o", tmp_path, "--show-paper-numbers").err


@pytest.mark.slow
def test_the_command_trains_a_strategy_with_its_own_options(dca, tmp_path):
    arguments = (
        "train",
        "-o",
        tmp_path / "run",
        "--strategy",
        "bcp",
        "--labelled",
        2,
        "--unlabelled",
        2,
        "--validation",
        0,
    )
    small = ("--steps", 2, "--filters", 1, "--patch", "32", "--spacing", "12,12,12", "--device", "cpu")
    wrong = dca(*arguments, *small, "--strategy-option", "blocks=2")
    assert wrong.code == 2 and "no option 'blocks'" in wrong.err and "pseudo_weight" in wrong.err
    assert "Write it like" in dca(*arguments, *small, "--strategy-option", "box").err
    one = dca(*arguments, *small, "--batch", 1)
    assert one.code == 2 and "--batch 2" in one.err
    run = dca(*arguments, *small, "--strategy-option", "box=0.4")
    assert run.code == 0, run.err
    assert dca("train", "-o", tmp_path / "run", "--resume", "--steps", 3, "--device", "cpu").code == 0
