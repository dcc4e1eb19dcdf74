"""Experiments: every row of the paper's tables can be trained; runs are saved, resumed and tabulated."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dcaseg.errors import UserError
from dcaseg.evaluation.experiments.anatomies import LABELED, TEST, UNLABELED, VALIDATION, make_anatomies_training_set
from dcaseg.evaluation.experiments.definitions import EXPERIMENTS, Arm, Experiment, remove_unsupported_rows
from dcaseg.evaluation.experiments.runs import SCORES, Data, Runs, StitchedExperts, read_scores, score_cases
from dcaseg.evaluation.experiments.tables import load_finished_outcome, make_runs_of, run_experiment, write_tables
from dcaseg.evaluation.metrics import ASD
from dcaseg.organs import AMOS
from test_training import OPTIONS, THREE_BALLS, case_of_balls

COMMON = replace(OPTIONS, steps=2)


@pytest.fixture
def data() -> Data:
    labeled, hidden = [case_of_balls(1), case_of_balls(2)], case_of_balls(3)
    return Data(
        THREE_BALLS, labeled, [case_of_balls(3, labeled=False)], [case_of_balls(4)],
        [case_of_balls(5), case_of_balls(6)], [*labeled, hidden], "balls",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_of_a_table_is_trained_and_tabulated(tmp_path, data, name):
    data = replace(data, validation=(), test=data.test[:1])
    outcome = run_experiment(EXPERIMENTS[name], Runs(tmp_path, COMMON, data, [0]))
    rows = list(csv.reader((tmp_path / f"{name}.csv").open()))
    method = rows[0].index("Method")
    assert [row[method] for row in rows[1:]] == [arm.title for arm in EXPERIMENTS[name].arms]
    assert [title for title in rows[0] if title in ("large", "middle", "small")] == ["large", "middle", "small"]
    if name == "table4":
        assert [row[0] for row in rows[1:]] == [*["67% L"] * 3, *["33% L"] * 3]
        assert r"\textcolor{red}{large} & \textcolor{blue}{middle}" in (tmp_path / "table4.tex").read_text()
    arms = json.loads((tmp_path / f"{name}.json").read_text())["arms"]
    assert all(0 <= arm["dice"] <= 1 for arm in arms.values()) and outcome.groups["head"] == (1,)
    for key, arm in arms.items():
        assert ("dca_minus_this" in arm) == (key not in ("dca", "dca-fewer"))
        assert ("decoder_minus_stitched_experts" in arm) == (key in outcome.stitched)
    assert "dca" in outcome.stitched and "vnet" not in outcome.stitched


@pytest.mark.slow
def test_the_decoders_gain_over_its_experts_is_recorded(tmp_path, data):
    only = Experiment("one", "One", (Arm("dca", "DCA"),))
    runs = Runs(tmp_path, replace(COMMON, steps=20), data, [0])
    outcome = run_experiment(only, runs)
    network = runs.get_trained_strategy(only.arms[0]).network
    experts = score_cases(StitchedExperts(network), runs.common, data.test, data.vocabulary)
    assert outcome.stitched["dca"][0].average_by_case() == pytest.approx(experts.average_by_case(), abs=1e-4)
    summed = json.loads((tmp_path / "one.json").read_text())["arms"]["dca"]["decoder_minus_stitched_experts"]
    assert summed["dice"] == pytest.approx(outcome.scores["dca"][0].mean() - experts.mean(), abs=1e-3)


def test_the_benchmark_on_anatomies_tests_on_people_that_training_never_sees(tmp_path):
    for name in {*LABELED, *UNLABELED, *VALIDATION, *TEST}:
        (tmp_path / name).mkdir()
    cohort, test, description = make_anatomies_training_set(tmp_path)

    def people(sources):
        return {Path(each.folder).name for source in sources for each in source.maps}

    seen = people(cohort.labeled) | people(cohort.unlabeled) | people(cohort.validation)
    assert people(test.labeled) == {"labels_bodyparts3d_male", "labels_spl_atlas"} and not seen & people(test.labeled)
    everyone = [*cohort.labeled, *cohort.unlabeled, *cohort.validation, *test.labeled]
    seeds = [seed for source in everyone for seed in range(source.first_seed, source.first_seed + source.count)]
    assert len(seeds) == len(set(seeds))
    assert "4 labeled CTs of 2 people, 16 unlabeled of 4" in description
    (tmp_path / "labels_spl_atlas").rmdir()
    with pytest.raises(UserError, match="does not contain labels_spl_atlas"):
        make_anatomies_training_set(tmp_path)


@pytest.mark.slow
def test_finished_runs_are_not_repeated_and_interrupted_runs_are_resumed(tmp_path, data, monkeypatch):
    from dcaseg.training.trainer import Trainer

    pair = Experiment("pair", "Two", (Arm("vnet", "V-Net", {"strategy": "vnet"}), Arm("dca", "DCA")))
    steps: list[int] = []
    advance = Trainer._advance

    def counted(trainer: Trainer) -> dict:
        if len(steps) == 3:
            steps.append(-1)
            raise KeyboardInterrupt
        steps.append(trainer.step)
        return advance(trainer)

    monkeypatch.setattr(Trainer, "_advance", counted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(pair, Runs(tmp_path, COMMON, data, [0]))
    run_experiment(pair, Runs(tmp_path, COMMON, data, [0]))
    assert steps == [0, 1, 0, -1, 1]
    again = run_experiment(pair, Runs(tmp_path, COMMON, data, [0]))
    assert len(steps) == 5 and (tmp_path / "runs" / "dca" / "seed-0" / SCORES).exists()
    assert again.scores["dca"][0].cases == ["balls 5", "balls 6"]


def test_other_settings_in_the_same_folder_are_rejected(tmp_path, data):
    only = Experiment("one", "One", (Arm("vnet", "V-Net", {"strategy": "vnet"}),))
    run_experiment(only, Runs(tmp_path, COMMON, data, [0]))
    with pytest.raises(UserError, match="other settings"):
        run_experiment(only, Runs(tmp_path, replace(COMMON, steps=3), data, [0]))
    with pytest.raises(UserError, match="needs labels of the unlabeled"):
        run_experiment(EXPERIMENTS["baselines"], Runs(tmp_path, COMMON, replace(data, all_labeled=()), [0]))


def test_stored_scores_are_read_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / SCORES
    row = [None, *[0.5] * (len(AMOS) - 1)]
    path.write_text(json.dumps({"arm": "DCA", "seed": 0, "steps": 5, "cases": {"a": {"dice": row, "asd": row}}}))
    assert read_scores(path, AMOS).mean(metric=ASD) == 0.5
    for stored, problem in (
        ({}, "cases is missing"),
        ({"cases": [row]}, "cases is a list of 1, not an object"),
        ({"cases": {"a": {"dice": ["high"], "asd": row}}}, r"cases.a.dice\[0\] is 'high', not a number"),
        ({"cases": {"a": {"dice": [0.5], "asd": row}}}, "a score for each of 15 organs"),
    ):
        path.write_text(json.dumps(stored))
        with pytest.raises(UserError, match=problem):
            read_scores(path, AMOS)
    path.write_text(json.dumps({"cases": {}}))
    with pytest.raises(UserError, match="stitched is missing"):
        read_scores(path, AMOS, "stitched")


@pytest.mark.slow
def test_the_command_runs_a_table_on_phantoms(dca, tmp_path):
    run = dca(
        "experiment", "table4", "-o", tmp_path, "--people", "1,1,1,1", "--seeds", "0", "--steps", 1,
        "--filters", 1, "--spacing", "14,14,14", "--device", "cpu",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "LGA" in run.out and (tmp_path / "table4.tex").exists()
    assert dca("experiment", "table9", "-o", tmp_path).code == 2


TWO = (Arm("vnet", "V-Net", {"strategy": "vnet"}), Arm("stitched", "Stitched", {"aggregation": False}))


@pytest.mark.slow
def test_parallel_runs_give_the_same_scores_as_sequential_ones(tmp_path, data):
    messages: list[tuple[float, str]] = []
    runs = Runs(
        *(tmp_path / "parallel", COMMON, data, [0, 1]),
        max_parallel=2,
        progress=lambda fraction, text: messages.append((fraction, text)),
    )
    parallel, sequential = (
        runs.compute_scores(TWO),
        Runs(tmp_path / "sequential", COMMON, data, [0, 1]).compute_scores(TWO),
    )
    for arm in TWO:
        for one, other in zip(parallel[arm.key], sequential[arm.key], strict=True):
            assert one.average_by_case() == other.average_by_case()
    assert messages[-1] == (1.0, "4 of 4 runs, 2 in parallel") and messages == sorted(messages)


@pytest.mark.slow
def test_a_failing_parallel_run_is_reported_and_the_others_are_saved(tmp_path, data):
    runs = Runs(tmp_path, replace(COMMON, steps=40), data, [0], max_parallel=2)
    broken = tmp_path / "runs" / "vnet" / "seed-0"
    broken.mkdir(parents=True)
    (broken / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"last\.pt"):
        runs.compute_scores(TWO)
    assert (tmp_path / "runs" / "stitched" / "seed-0" / "last.pt").exists()


def test_tables_and_figures_made_together_share_their_runs(tmp_path, data, monkeypatch):
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(Runs, "make_missing", lambda _, jobs: made.extend((arm.key, seed) for arm, seed in jobs))
    make_runs_of(["table4", "fig8", "fig2"], Runs(tmp_path, COMMON, data, [3, 4]))
    divisions = ("average", "fixed", "dca")
    assert set(made) == {
        *((key, seed) for key in (*divisions, *(f"{key}-fewer" for key in divisions)) for seed in (3, 4)),
        *((key, 3) for key in ("fusion-average", "fusion-concat", "dca")),
    }


def command_in(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "dcaseg.cli", "experiment", "table4", "-o", str(folder),
        "--people", "1,1,1,1", "--seeds", "0", "--filters", "1", "--spacing", "14,14,14", "--device", "cpu",
        "--at-once", "2", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_parallel_runs_end_and_the_command_resumes_them(tmp_path):
    logs = [tmp_path / "runs" / key / "seed-0" / "log.jsonl" for key in ("average", "fixed")]
    program = subprocess.Popen(command_in(tmp_path), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: all(log.exists() for log in logs), 300)
        # Only the first process is killed, as by the out-of-memory killer. The runs notice it.
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
        wait_until(lambda: all((log.parent / "last.pt").exists() for log in logs), 120)
        wait_until(lambda: not group_exists(program.pid), 120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    steps = [json.loads(log.read_text().splitlines()[-1])["step"] for log in logs]
    assert min(steps) >= 1
    # The same command continues after these steps.
    done = subprocess.Popen(command_in(tmp_path), start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(
            lambda: all(len(log.read_text().splitlines()) > step for log, step in zip(logs, steps, strict=True)), 300
        )
    finally:
        os.killpg(done.pid, signal.SIGKILL)
        done.communicate()


def group_exists(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_failed_run_does_not_stop_the_others(tmp_path, data):
    made: list[int] = []
    runs = Runs(tmp_path, COMMON, data, [0], run_finished=lambda: made.append(1))
    broken = tmp_path / "runs" / "vnet" / "seed-0"
    broken.mkdir(parents=True)
    (broken / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"1 run failed, all others are finished\. V-Net, seed 0: .*last\.pt"):
        runs.compute_scores(TWO)
    assert made == [1] and runs.get_finished_seeds(TWO) == {"stitched": (0,)}
    pair = Experiment("pair", "Two", TWO)
    outcome = load_finished_outcome(pair, runs)
    assert outcome.is_partial and [arm.key for arm in outcome.experiment.arms] == ["stitched"]
    write_tables(outcome, tmp_path)
    assert "1 of 1" in (tmp_path / "pair-partial.csv").read_text()
    assert "some rows or seeds are missing" in (tmp_path / "pair-partial.md").read_text()
    (broken / "last.pt").unlink()
    run_experiment(pair, runs)
    assert not list(tmp_path.glob("pair-partial*")) and "V-Net" in (tmp_path / "pair.csv").read_text()


def test_no_run_means_no_table(tmp_path, data):
    assert load_finished_outcome(EXPERIMENTS["table4"], Runs(tmp_path, COMMON, data, [0])) is None


def test_table4_also_trains_with_fewer_labels(tmp_path, data):
    arms = remove_unsupported_rows(EXPERIMENTS["table4"], 2, True).arms
    assert [arm.key for arm in arms] == ["average", "fixed", "dca", "average-fewer", "fixed-fewer", "dca-fewer"]
    assert len(remove_unsupported_rows(EXPERIMENTS["table4"], 1, True).arms) == 3
    runs = Runs(tmp_path, COMMON, data, [0])
    labeled, unlabeled = runs._select_cases(arms[-1])
    assert [case.name for case in labeled] == ["balls 1"] and [case.name for case in unlabeled] == [
        "balls 3",
        "balls 2",
    ]
    assert all(case.labels is None for case in unlabeled) and runs.label_counts(arms[0]) == (2, 3)


@pytest.mark.slow
def test_the_command_estimates_and_tabulates_finished_runs(dca, tmp_path):
    small = ("--people", "1,1,1,1", "--seeds", "0", "--steps", 1, "--filters", 1, "--spacing", "14,14,14")
    first = dca("experiment", "table5", "-o", tmp_path, *small, "--device", "cpu", "--estimate")
    assert first.code == 0 and "hours if one runs at a time" in first.out, first.err
    assert not (tmp_path / "runs").exists()
    nothing = dca("experiment", "table5", "-o", tmp_path, *small, "--device", "cpu", "--finished-only")
    assert nothing.code == 2 and "No run of table5" in nothing.err
    assert "are for tables" in dca("experiment", "fig2", "-o", tmp_path, *small, "--finished-only").err


@pytest.mark.slow
def test_ctrl_c_saves_all_parallel_runs(tmp_path):
    command = command_in(tmp_path)
    logs = [tmp_path / "runs" / key / "seed-0" / "log.jsonl" for key in ("average", "fixed")]
    # A terminal sends Ctrl+C to all processes of its group.
    program = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: all(log.exists() for log in logs), 120)
        os.killpg(program.pid, signal.SIGINT)
        assert "Traceback" not in program.communicate(timeout=60)[1] and program.returncode == 130
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    assert all((log.parent / "last.pt").exists() for log in logs)


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.1)
