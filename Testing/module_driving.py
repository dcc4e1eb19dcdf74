"""Helpers for tests that operate the panel as a user does and then inspect the scene."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import slicer

from scene_case import small_ct


def add_ct(name: str) -> Any:
    from DCASegmentationLib.scene.volumes import show_ct

    return show_ct(small_ct(), name)


def apply(panel: Any) -> None:
    assert panel.segmentPanel.ui.applyButton.text == "Apply"
    panel.segmentPanel.ui.applyButton.click()


def wait_for_end(panel: Any, fake: Any) -> None:
    fake.wait_for(lambda: not panel.logic.isRunning, 120)


def message(panel: Any) -> str:
    return panel.segmentPanel.ui.messageLabel.text


def segmentations() -> list[Any]:
    scene = slicer.mrmlScene
    return [
        scene.GetNthNodeByClass(i, "vtkMRMLSegmentationNode")
        for i in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))
    ]


def temporary_files() -> list[Path]:
    return list(Path(slicer.app.temporaryPath).iterdir())


def worker_process_id() -> int:
    """The process ID of this process's worker; if there are several, the youngest."""
    found = worker_processes()
    assert found, "no worker is running"
    return max(found, key=lambda pid: found[pid])


def started_worker_process_id(before: dict[int, int], seconds: float = 10.0) -> int:
    """The process ID of a worker not in ``before``; waits, because a forked process first has its parent's name."""
    deadline = time.monotonic() + seconds
    while not (new := worker_processes().keys() - before.keys()):
        assert time.monotonic() < deadline, "no worker was started"
    return new.pop()


def worker_processes() -> dict[int, int]:
    """The process ID and start time of each child of this process that runs a worker, read from /proc."""
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and b"dcaseg.worker" in command:
            found[int(process.name)] = int(fields[19])  # start time
    return found


# Lines that only slicer-core logs on reading a scene: it lacks Slicer's subject hierarchy logic and view presets.
_READ_OUTSIDE_SLICER = (
    "ResolveUnresolvedItems: Failed to process",
    "Failed to merge subject hierarchy nodes",
    "invalid orientation preset name: Reformat",
)


def read_scene(path: Path, fake: Any) -> None:
    """Add the scene of an .mrb file to the scene, and remove the lines that only slicer-core logs about it."""
    slicer.mrmlScene.ReadFromMRB(str(path), False)
    fake.process_events(0.1)
    lines = fake.log.lines
    lines[:] = [line for line in lines if not any(each in line for each in _READ_OUTSIDE_SLICER)]


def node_ids() -> set[str]:
    """The IDs of all nodes in the scene, for checking later that none was added or removed."""
    scene = slicer.mrmlScene
    return {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}
