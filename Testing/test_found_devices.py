"""The available devices: reported by the worker and shown in the panel before a run."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcaseg.inference.device import choose_device, find_devices, find_missing_devices
from dcaseg.worker.protocol import FoundDevices

GIB = 2**30


def test_every_device_found_can_be_chosen():
    assert list(find_devices())[-1] == "cpu"
    for name in find_devices():
        assert choose_device(name).torch_device.type == name.split(":")[0]


def test_each_device_is_either_found_or_missing():
    assert not set(find_devices()) & set(find_missing_devices())
    assert {"cuda", "mps", "cpu"} <= {*find_devices(), *find_missing_devices()}


def test_each_gpu_is_listed_with_its_memory(monkeypatch):
    cards = [("NVIDIA RTX 3090", 24 * GIB), ("NVIDIA T4", 15 * GIB)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name=cards[index][0], total_memory=cards[index][1]),
    )
    found = find_devices()
    assert (found["cuda"], found["cuda:1"]) == ("NVIDIA RTX 3090, 24 GiB", "NVIDIA T4, 15 GiB")
    assert "cuda" not in find_missing_devices()


@pytest.mark.parametrize(
    ("built", "reason"), [(True, "none found"), (False, "this build of PyTorch does not include it")]
)
def test_the_reason_for_missing_cuda_is_reported(monkeypatch, built, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    assert find_missing_devices()["cuda"] == reason


def titles(panel: Any) -> list[str]:
    selector = panel.segmentPanel.ui.deviceSelector
    return [selector.itemText(index) for index in range(selector.count)]


BARE = ["Automatic", "CUDA", "MPS", "CPU"]


@pytest.fixture
def panel(module_panel, warm_worker) -> Any:
    return module_panel


@pytest.mark.scene
def test_opening_the_list_asks_the_worker_and_the_choice_stays(panel, fake_slicer):
    import slicer

    from DCASegmentationLib.parameters import Device

    assert titles(panel) == BARE
    panel.parameters.device = Device.CPU
    panel.segmentPanel.ui.advancedGroup.collapsed = False
    assert panel.segmentPanel.ui.deviceNoteLabel.text == "Looking for devices..."
    fake_slicer.wait_for(lambda: titles(panel) != BARE, 60)
    shown = dict(zip(BARE, titles(panel), strict=True))
    assert re.fullmatch(r"CPU: (1 thread|\d+ threads)", shown["CPU"])
    assert shown["Automatic"] == f"Automatic: {next(iter(find_devices())).upper()}"
    for name, reason in find_missing_devices().items():
        assert shown[name.upper()] == f"{name.upper()}: {reason}"
    assert panel.parameters.device is Device.CPU
    assert panel.segmentPanel.ui.deviceNoteLabel.text != "Looking for devices..."
    slicer.mrmlScene.Clear(0)
    assert titles(panel) == list(shown.values()), "the next scene binds the list again, which writes bare names"
    assert panel.parameters.device is Device.Automatic


@pytest.mark.scene
def test_without_pytorch_the_list_says_so(panel, fake_slicer):
    fake_slicer.torch.is_installed = False
    panel.segmentPanel.ui.advancedGroup.collapsed = False
    assert "PyTorch is not installed" in panel.segmentPanel.ui.deviceNoteLabel.text
    assert titles(panel) == BARE


@pytest.mark.scene
def test_further_gpus_are_numbered_and_automatic_takes_the_first(panel):
    found = {"cuda": "NVIDIA RTX 3090, 24 GiB", "cuda:1": "NVIDIA T4, 15 GiB", "cpu": "8 threads"}
    panel.segmentPanel.showDevices(FoundDevices("1", found, {"mps": "only on Apple computers"}))
    assert titles(panel) == [
        "Automatic: CUDA",
        "CUDA: NVIDIA RTX 3090, 24 GiB, and 1 more",
        "MPS: only on Apple computers",
        "CPU: 8 threads",
    ]


@pytest.mark.scene
def test_a_worker_that_cannot_start_leaves_the_list_usable(module_panel, fake_slicer, monkeypatch, tmp_path):
    from DCASegmentationLib.worker_client import WorkerProcess

    monkeypatch.setattr(
        "DCASegmentationLib.logic.createWorker",
        lambda: WorkerProcess(str(tmp_path / "no-python"), tmp_path),
    )
    module_panel.segmentPanel.ui.advancedGroup.collapsed = False
    fake_slicer.wait_for(lambda: "could not be determined" in module_panel.segmentPanel.ui.deviceNoteLabel.text)
    assert titles(module_panel) == BARE
