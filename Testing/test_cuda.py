"""On a CUDA GPU: the same organs as on the CPU by every backend, memory that runs out, training in half precision.

Skipped where there is none, as in CI. A computer with one needs pytest and this package alone:
``pytest Testing/test_cuda.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.imaging.label_comparison import compute_dice_by_label
from dcaseg.inference.backends import selection as choosing
from dcaseg.inference.backends.base import Task
from dcaseg.inference.backends.eager import EagerBackend
from dcaseg.inference.backends.selection import make_backend
from dcaseg.inference.device import choose_device, find_devices, make_cpu_device
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.segmenter import Segmenter
from dcaseg.inference.sliding_window import RESULT, WindowPrediction
from dcaseg.method.streaming import RequestedOutputs
from dcaseg.models.bundle import Bundle
from dcaseg.synthesis.phantom.case import generate
from dcaseg.training.trainer import Trainer
from small_model import PATCH, vivid_network
from test_training import OPTIONS, THREE_BALLS, case_of_balls

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SHIPPED = Path(__file__).parents[1] / "DCASegmentation/dcaseg/models/shipped" / "dca-abdomen"
EVERYTHING = SegmentOptions(attention_levels=(1, 4), dominant_expert=True, entropy=True, disagreement=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(choosing.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def ct() -> sitk.Image:
    return generate(600123, spacing=(4.0, 4.0, 5.0)).ct


@pytest.fixture(scope="module")
def on_the_cpu(ct):
    return Segmenter(Bundle.load(SHIPPED), "cpu", backend="eager").segment(ct, EVERYTHING)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.rand(2, 1, *PATCH, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """PyTorch may take 64 MiB of the GPU beyond what it holds."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / whole)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def array_of(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def dice_with(one, other) -> np.ndarray:
    """Dice of the organs that the second holds."""
    labels = array_of(other.labels)
    dice = compute_dice_by_label(array_of(one.labels), labels, 15)
    return dice[[label - 1 for label in np.unique(labels) if label]]


def test_the_gpu_is_found_and_told_with_its_memory():
    name = torch.cuda.get_device_properties(0).name
    assert find_devices()["cuda"].startswith(f"{name}, ")
    assert name in choose_device("auto").description and choose_device("auto").half


@pytest.mark.parametrize("backend", ["auto", "eager", "cuda-half", "compile"])
def test_a_shipped_model_finds_the_same_organs_on_the_gpu(ct, on_the_cpu, backend):
    result = Segmenter(Bundle.load(SHIPPED), "cuda", backend=backend).segment(ct, EVERYTHING)
    assert not result.warnings
    assert result.backend == backend or backend == "auto"
    assert dice_with(result, on_the_cpu).min() > 0.98
    for level, experts in on_the_cpu.attention.items():
        for expert, expected in experts.items():
            difference = array_of(result.attention[level][expert]) - array_of(expected)
            assert np.abs(difference.astype(float)).mean() < 0.01 * max(array_of(expected).max(), 1)
    assert (array_of(result.dominant_expert) == array_of(on_the_cpu.dominant_expert)).mean() > 0.97


def test_in_single_precision_hardly_a_voxel_differs(ct, on_the_cpu):
    result = Segmenter(Bundle.load(SHIPPED), "cuda", half=False, backend="eager").segment(ct)
    assert (array_of(result.labels) == array_of(on_the_cpu.labels)).mean() > 0.9999


@pytest.mark.parametrize(
    "wanted",
    [RequestedOutputs(), RequestedOutputs(True, True, (2, 4)), RequestedOutputs(aggregated=False, stitched=True)],
)
def test_a_captured_graph_gives_each_batch_its_own_answer(windows, wanted):
    device = choose_device("cuda")
    task = Task(vivid_network(5).cuda(), wanted, PATCH, device, "0123")
    captured, eager = make_backend("cuda-half", task), EagerBackend(task)
    for batch in (windows, windows.flip(0), windows[:1]):
        given, expected = captured(batch.cuda()), eager(batch.cuda())
        assert given.attention.keys() == expected.attention.keys()
        for one, other in ((given.aggregated, expected.aggregated), (given.stitched, expected.stitched)):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert (one.argmax(1) == other.argmax(1)).float().mean() > 0.97
        for level, weights in expected.attention.items():
            assert (given.attention[level] - weights).abs().max() < 0.05


def test_memory_that_runs_out_on_the_gpu_is_told_and_the_cpu_goes_on(little_memory):
    windows = torch.rand(2, 1, 96, 96, 96)
    network = vivid_network(5)
    said: list[str] = []
    prediction = WindowPrediction(
        lambda device: vivid_network(5).to(device), SegmentOptions(batch=2), choose_device("cuda"), said.append
    )  # What still fits is computed in half precision, the rest in single.
    given = prediction(windows)[RESULT]
    assert "2 windows at once" in said[0] and "continuing on the CPU" in said[-1]
    expected = WindowPrediction(lambda _: network, SegmentOptions(), make_cpu_device(), print)(windows)[RESULT]
    assert (given.cpu().argmax(1) == expected.argmax(1)).float().mean() > 0.97


def test_a_gpu_that_holds_the_network_but_not_the_sums_still_segments(ct, on_the_cpu, little_memory):
    result = Segmenter(Bundle.load(SHIPPED), "cuda").segment(ct)
    assert dice_with(result, on_the_cpu).min() > 0.98


@pytest.mark.parametrize("half", [True, False])
def test_training_on_the_gpu_learns_what_it_learns_on_the_cpu(tmp_path, half):
    losses = {}
    for device in ("cpu", "cuda"):
        options = replace(OPTIONS, steps=6, expert_stage_fraction=0.0, mixed_precision=half, norm="instance")
        cases = [case_of_balls(1), case_of_balls(2)], [case_of_balls(3, labeled=False)]
        trainer = Trainer(tmp_path / device, options, THREE_BALLS, *cases, [case_of_balls(4)], device)
        trainer.run(validate_every=3)
        lines = [json.loads(line) for line in (tmp_path / device / "log.jsonl").read_text().splitlines()]
        losses[device] = [line["head"] for line in lines]
        assert all("skipped" not in line for line in lines[3:]) and "dice" in lines[-1]
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=2e-2)


def test_a_run_is_stopped_on_the_gpu_and_goes_on_there_or_on_the_cpu(tmp_path):
    def trainer(device: str, steps: int) -> Trainer:
        options = replace(OPTIONS, steps=steps)
        return Trainer(
            tmp_path, options, THREE_BALLS, [case_of_balls(1)], [case_of_balls(3, labeled=False)], (), device
        )

    trainer("cuda", 3).run()
    for device, steps in (("cuda", 5), ("cpu", 7)):
        going_on = trainer(device, steps)
        going_on.resume()
        going_on.run()
        assert going_on.step == steps


def test_the_command_segments_on_the_gpu(dca, tmp_path, coarse_phantom):
    run = dca("segment", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out", "--device", "cuda", "--review")
    assert run.code == 0, run.err
    assert (tmp_path / "out").is_dir() and "CUDA" in run.out + run.err
