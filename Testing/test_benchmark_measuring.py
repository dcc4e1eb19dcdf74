"""Measuring whole processes, counting replayed windows, and reporting the results."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dcaseg.benchmark import pipelines, runs
from dcaseg.benchmark.inputs import crop_or_pad
from dcaseg.benchmark.memory import LiveTensors, TensorBytes, measure_growth
from dcaseg.benchmark.pipelines import Pipeline, Setting
from dcaseg.benchmark.process_cost import Cost, ProcessFailedError, make_thread_environment, measure_process
from dcaseg.benchmark.rates import Rates
from dcaseg.benchmark.report import Target, evaluate_targets, format_inference_report, plot_inference
from dcaseg.benchmark.runs import Run, Runs, compute_agreements, measure, select_pipelines
from dcaseg.benchmark.window_replay import WindowCosts, Windows, copy_windows
from dcaseg.errors import UserError

MIB = 2**20
HOLDS_AND_WORKS = """
import subprocess, sys, time
block = b"x" * ({mib} * 2**20)
if {children}:
    subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[1]], check=True)
until = time.process_time() + {cpu_s}
while time.process_time() < until:
    pass
time.sleep({rest_s})
"""


def test_memory_and_time_of_a_process_include_its_children():
    pytest.importorskip("psutil")
    child = HOLDS_AND_WORKS.format(mib=60, children=False, cpu_s=0.3, rest_s=0.5)
    parent = HOLDS_AND_WORKS.format(mib=60, children=True, cpu_s=0.3, rest_s=0.0)
    cost = measure_process([sys.executable, "-c", parent, child])
    assert 120 < cost.peak_mib < 220
    assert 0.6 < cost.cpu_s < 2.0
    assert cost.wall_s > 0.8
    alone = measure_process([sys.executable, "-c", child])
    assert 60 < alone.peak_mib < 110


def test_the_output_of_a_failing_program_is_quoted():
    pytest.importorskip("psutil")
    with pytest.raises(ProcessFailedError, match="no such model"):
        measure_process([sys.executable, "-c", "raise SystemExit('no such model')"])


def test_every_library_gets_the_same_threads():
    environment = make_thread_environment(3)
    assert {environment[name] for name in environment if name.endswith("NUM_THREADS")} == {"3"}
    assert environment["PATH"] == os.environ["PATH"]


def test_the_first_windows_are_computed_and_the_rest_are_copies():
    calls = []

    def network(volume):
        calls.append(volume)
        return volume + len(calls)

    windows = Windows(network, 2, copy_windows)
    answers = [windows(torch.zeros(1, 1, 2, 2, 2)) for _ in range(5)]
    assert len(calls) == 2
    assert [answer.unique().tolist() for answer in answers] == [[1], [2], [2], [2], [2]]
    # Callers such as nnU-Net may write into an output.
    answers[2] *= 0
    assert windows(torch.zeros(1, 1, 2, 2, 2)).unique().tolist() == [2]
    assert (windows.costs.total, windows.costs.replayed) == (6, 4)


def test_a_batch_is_computed_as_a_whole_and_replayed_in_part():
    windows = Windows(lambda batch: batch + 1, 3, copy_windows)
    for size in (2, 2, 2, 1):
        assert windows(torch.zeros(size, 1)).tolist() == [[1]] * size
    assert (windows.costs.total, len(windows.costs.cpu_s), windows.costs.replayed) == (7, 4, 3)


def test_without_a_number_every_window_is_computed():
    windows = Windows(lambda volume: volume, None, copy_windows)
    for _ in range(4):
        windows(torch.zeros(1))
    assert windows.costs.replayed == 0
    cost = Cost(9.0, 8.0, 100.0)
    assert windows.costs.extrapolate(cost) == cost


def test_replayed_windows_count_as_the_median_of_the_computed_ones(tmp_path):
    costs = WindowCosts(10, cpu_s=(5.0, 3.0, 4.0), wall_s=(6.0, 6.0, 6.0), replay_cpu_s=0.7, replay_wall_s=0.5)
    costs.write(tmp_path / "windows.json")
    whole = WindowCosts.read(tmp_path / "windows.json").extrapolate(Cost(wall_s=30.0, cpu_s=20.0, peak_mib=500.0))
    assert whole.cpu_s == pytest.approx(20 - 0.7 + 7 * 4)
    assert whole.wall_s == pytest.approx(30 - 0.5 + 7 * 6)
    assert whole.peak_mib == 500


def fake(key, is_peer=False, needs=()):
    return Pipeline(key, key.upper(), lambda out, report: [key], is_peer, needs)


def test_programs_alternate_and_missing_or_failing_ones_are_skipped(monkeypatch):
    order = []

    def run_once(pipeline, number, threads, keep):
        order.append((number, pipeline.key))
        if pipeline.key == "broken":
            raise ProcessFailedError("out of luck")
        return Run(pipeline.key, number, 1.0, 2.0, 3.0, 2.0)

    monkeypatch.setattr(runs, "run_once", run_once)
    monkeypatch.setattr(pipelines, "find_spec", lambda name: None if name == "nnunetv2" else object())
    chosen = [fake("ours"), fake("absent", True, ("nnunetv2",)), fake("broken", True), fake("peer", True)]
    done, kept = Runs([], {}), []
    measure(chosen, 3, 1, done, kept.append, peer_rounds=2)
    assert order == [(1, "ours"), (1, "broken"), (1, "peer"), (2, "ours"), (2, "peer"), (3, "ours")]
    assert kept == done.runs
    assert done.left_out == {"absent": "nnunetv2 is not installed", "broken": "failed: out of luck"}
    # Nothing is measured again.
    measure(chosen, 3, 1, done, kept.append, peer_rounds=2)
    assert len(order) == 6


def writes_labels(key: str, voxels: list[int], replayed: bool = False, reference: str = "") -> Pipeline:
    """A program that writes a label map, and the times of two windows, of which one may have been replayed."""
    program = f"""
import sys
from pathlib import Path
import numpy as np, SimpleITK as sitk
from dcaseg.benchmark.window_replay import WindowCosts
image = sitk.GetImageFromArray(np.array([{voxels}] * 9, np.uint8).reshape(3, 3, -1))
sitk.WriteImage(image, str(Path(sys.argv[1]) / "labels.nii.gz"))
WindowCosts(2, (1.0,) * {1 if replayed else 2}, (1.0,) * {1 if replayed else 2}).write(Path(sys.argv[2]))
"""
    return Pipeline(
        key, key, lambda out, report: [sys.executable, "-c", program, str(out), str(report)], reference=reference
    )


@pytest.mark.slow
def test_labels_of_all_windows_are_kept_and_compared_with_those_of_the_reference(tmp_path):
    pytest.importorskip("psutil")
    kept = tmp_path / "labels"
    ours = writes_labels("ours", [0, 1, 1, 2, 2, 2], reference="plain")
    replayed = writes_labels("replayed", [0, 1, 1, 2, 2, 2], replayed=True, reference="plain")
    plain = writes_labels("plain", [0, 0, 1, 2, 2, 2])
    done = Runs([], {})
    measure([ours, replayed], 1, 1, done, lambda run: None, keep=kept)
    assert done.left_out == {}
    assert compute_agreements([ours, replayed, plain], kept) == {}
    measure([plain], 1, 1, done, lambda run: None, keep=kept)
    # Organ 1: two voxels against one of them, so a Dice of 2/3.
    assert compute_agreements([ours, replayed, plain], kept) == {"ours": (pytest.approx(5 / 6), pytest.approx(2 / 3))}


def test_the_shipped_model_computes_all_windows_and_has_a_reference_with_the_same_weights(tmp_path):
    setting = Setting(tmp_path / "ct.nii.gz", tmp_path, windows=2, our_windows=3)
    by_key = {pipeline.key: pipeline for pipeline in pipelines.list_pipelines(setting)}
    out, report = tmp_path / "out", tmp_path / "windows.json"
    shipped = by_key["shipped"].command(out, report)
    plain = by_key["monai_shipped"].command(out, report)
    assert "--windows" not in shipped
    assert "--windows" not in plain
    bundle = shipped[shipped.index("--bundle") + 1]
    assert plain[plain.index("--model") + 1] == bundle
    assert by_key["shipped"].reference == by_key["shipped_bf16"].reference == "monai_shipped"
    assert by_key["ours"].reference == by_key["ours_equal"].reference == "monai"
    assert by_key["ours_coarse"].reference == ""
    assert "openvino-bf16" in by_key["shipped_bf16"].command(out, report)
    assert {each.reference for each in by_key.values()} <= {"", *by_key}


def test_an_unknown_pipeline_is_rejected():
    with pytest.raises(UserError, match="Unknown pipeline: 'nnunett'"):
        select_pipelines(["nnunett"], [fake("nnunet")])


def some_runs() -> Runs:
    figures = {"ours": (90.0, 1e3), "nnunet": (1000.0, 8e3), "monai": (500.0, 9e3)}
    figures |= {"shipped": (20.0, 9e2), "shipped_maps": (22.0, 1e3)}
    made = [
        Run(key, number, cpu, cpu * factor, mib, cpu, 48 if key == "nnunet" else 0, 2 if key == "nnunet" else 0, 80.0)
        for key, (cpu, mib) in figures.items()
        for number, factor in ((1, 0.5), (2, 3.0), (3, 1.0))
    ]
    return Runs(made, {"totalsegmentator": "nnunetv2 is not installed"})


def test_runs_are_stored_in_a_file_and_their_medians_compared(tmp_path):
    some_runs().write(tmp_path / "runs.csv")
    read = Runs.read(tmp_path / "runs.csv")
    assert read.runs == some_runs().runs
    assert read.compute_median("ours").cpu_s == 90
    assert read.compute_ratio("ours", "nnunet") == pytest.approx(0.09)
    assert read.compute_range("ours") == (45, 270)
    assert Runs(read.get_runs("ours")[:1], {}).compute_range("ours") is None
    assert read.compute_ratio("ours", "totalsegmentator") is None
    (tmp_path / "runs.csv").write_text("nothing\n1\n")
    with pytest.raises(UserError, match="is not a table of runs"):
        Runs.read(tmp_path / "runs.csv")


def test_targets_are_met_missed_or_not_measured():
    assert Target("a", 0.15, 0.12).words == "met"
    assert Target("a", 0.15, 0.18).words == "missed by 20%"
    assert Target("a", 0.85, 0.9, at_least=True).words == "met"
    assert Target("a", 0.85, 0.68, at_least=True).words == "missed by 20%"
    assert Target("a", 0.15, None).words == "not measured"
    targets = {target.name: target for target in evaluate_targets(some_runs(), Rates(88.0, 66.0, 4.2, 275.0))}
    assert targets["CPU time, 1.5 mm, our defaults / nnU-Net"].value == pytest.approx(0.09)
    assert targets["CPU time of the shipped model, with maps and review / without"].words == "met"
    assert targets["the same / MONAI with the same network"].words == "missed by 20%"
    assert targets["network's rate / SGEMM rate"].value == pytest.approx(0.75)
    assert targets["CPU time, 3 mm, our defaults / nnU-Net"].met is None


def test_report_and_plot_show_what_is_extrapolated_and_skipped(tmp_path):
    shown = [fake("ours"), fake("nnunet", True), fake("totalsegmentator", True)]
    done = some_runs()
    facts = {"CT": "512 x 512 x 150"}
    text = format_inference_report(done, shown, evaluate_targets(done, None), None, facts, {"ours": (0.99871, 0.98)})
    assert "| NNUNET | 3 | 2 of 48 | 1000\\* | 500 to 3000 | 1000\\* | 8000 |  |" in text
    assert "| OURS | 3 | all | 90 | 45 to 270 | 90 | 1000 | 0.9987 (0.9800) |" in text
    assert "Agreement: mean Dice" in text
    assert "skipped: nnunetv2 is not installed" in text
    assert "Extrapolated" in text
    everything = replace(done.get_runs("nnunet")[0], windows=48, computed=48)
    whole = format_inference_report(Runs([everything], {}), shown[1:2], [], None, {})
    assert "Extrapolated" not in whole
    assert "Agreement" not in whole
    figure = plot_inference(done, shown, "a CT")
    time, memory = figure.axes
    assert [bar.get_width() for bar in time.patches] == [90, 1000]
    assert [bool(bar.get_hatch()) for bar in time.patches] == [False, True]
    assert [label.get_text() for label in time.get_yticklabels()] == ["OURS", "NNUNET"]
    assert memory.patches[1].get_width() == pytest.approx(8000 / 1024)


def test_growth_is_the_slope_and_lengths_that_do_not_fit_are_skipped():
    measured = []

    def peak_mib(slices):
        measured.append(slices)
        return 1000 + 50.0 * slices

    growth = measure_growth(peak_mib, [450, 75, 150], free_mib=lambda: 20_000.0)
    assert measured == [75, 150]
    assert growth.mib_per_slice == pytest.approx(50)
    assert growth.left_out == {450: "needs about 23 GiB, but only 20 GiB are free"}
    assert measure_growth(peak_mib, [75, 150, 450], lambda: 24_000.0).left_out == {}
    assert measure_growth(peak_mib, [75], lambda: 1.0).mib_per_slice is None


def test_tensors_are_tracked_until_they_are_freed():
    with LiveTensors() as living:
        first = torch.ones(1024, 1024)
        view = first[:10].reshape(-1)
        assert living.held == 4 * MIB
        second = first * 2
        assert living.held == 8 * MIB
        first.add_(1)
        del first
        assert living.held == 8 * MIB, "the view keeps it alive"
        del view
        assert living.held == 4 * MIB
        del second
    assert (living.held, living.peak) == (0, 8 * MIB)


def test_tensors_for_the_backward_pass_count_while_they_are_kept():
    weight = torch.ones(1024, 1024, requires_grad=True)
    with LiveTensors() as living:
        loss = (weight.exp().exp()).sum()
        assert living.held >= 8 * MIB, "both exponentials are kept for the backward pass"
        loss.backward()
    assert living.peak >= 12 * MIB


def test_memory_grows_linearly_with_the_voxels_of_the_patch():
    measured = TensorBytes({32: 2**30 + 32**3 * 100, 48: 2**30 + 48**3 * 100}, steady=2**30)
    assert measured.estimate_gib((96, 96, 96)) == pytest.approx(2 + 96**3 * 100 / 2**30)


def test_the_scan_is_cropped_or_padded_with_air():
    voxels = np.arange(5, dtype=np.int16).reshape(1, 5)
    assert crop_or_pad(voxels, 1, 3).tolist() == [[1, 2, 3]]
    assert crop_or_pad(voxels, 1, 7).tolist() == [[-1024, 0, 1, 2, 3, 4, -1024]]
    assert crop_or_pad(voxels, 0, 2).tolist() == [[0, 1, 2, 3, 4], [-1024] * 5]
