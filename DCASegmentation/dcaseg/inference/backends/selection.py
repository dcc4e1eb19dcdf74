"""Backends by name, which of them this computer can run, and which is fastest here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError, how_to_install
from ...imaging.writers import write_json
from ...json_io import read_json
from ...method.streaming import Answer
from ...user_folders import cache_folder
from ..device import Device
from .base import Backend, Task, as_tuple, processor
from .compiled import CompiledBackend, compiler
from .cuda import CudaHalfBackend
from .eager import EagerBackend
from .openvino import OpenVINOBackend, is_installed

RUNTIMES: Mapping[str, Callable[[Task], Backend]] = {
    kind.name: kind for kind in (EagerBackend, OpenVINOBackend, CompiledBackend, CudaHalfBackend)
}


def unavailable_reason(name: str, device: Device) -> tuple[str, str] | None:
    """Why runtime ``name`` cannot run on ``device`` and what to do about it; None where nothing speaks against it."""
    kind = device.torch_device.type
    if name == OpenVINOBackend.name:
        if kind != "cpu":
            return f"The runtime openvino is for the CPU, not for {device.description}.", "Add --device cpu."
        if not is_installed():
            return "OpenVINO is not installed.", f"Install it: {how_to_install('openvino')}"
    elif name == CompiledBackend.name:
        if kind == "mps":
            return "The runtime compile is for the CPU and CUDA.", "Choose eager."
        if kind == "cpu" and compiler() is None:
            return "The runtime compile needs a C++ compiler.", "Install one (g++, clang++ or Visual C++)."
    elif name == CudaHalfBackend.name and (kind != "cuda" or not device.half):
        return "The runtime cuda-half is for a CUDA GPU in half precision.", "Choose auto or eager."
    return None


def make_backend(name: str, task: Task) -> Backend:
    """Runtime ``name``, one of ``RUNTIMES``, for ``task``. Raises UserError for what cannot run here."""
    if reason := unavailable_reason(name, task.device):
        raise UserError(*reason)
    try:
        return RUNTIMES[name](task)
    except (RuntimeError, ValueError, OSError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"The runtime {name} cannot run this model: {why}.", "Choose auto or eager.") from error


AUTO = "auto"
MEASURE = "measure"
CHOICES = (AUTO, MEASURE, *RUNTIMES)
VARIABLE = "DCA_RUNTIME"

# Most that a probability may differ from eager's.
_SAME_SINGLE = 1e-3
_SAME_HALF = 0.05
_MEASURED_TWICE = 2

Say = Callable[[str], None]


def check_backend(name: str, device: Device) -> None:
    """Raises UserError for a runtime there is not, or one that cannot run on ``device`` here."""
    name = _named(name)
    if name not in CHOICES:
        raise UserError(f"There is no runtime '{name}'.", f"Choose one of: {', '.join(CHOICES)}.")
    if name in RUNTIMES and (reason := unavailable_reason(name, device)):
        raise UserError(*reason)


def choose_backend(name: str, task: Task, windows: Tensor, tell: Say, warn: Say) -> Backend:
    """The runtime called ``name`` for ``task``.

    ``auto``: the one that was fastest when this model was measured on this computer; if it never was, it is now, on
    ``windows`` (a batch of the CT's, float32), among those that start quickly (all but ``compile``). ``measure``: all
    are measured anew. What differs from eager's answer is never chosen. The environment variable DCA_RUNTIME takes
    the place of ``auto``. ``tell`` takes what is being done, ``warn`` what the user should know. Raises UserError
    where the runtime asked for cannot run here.
    """
    name = _named(name)
    if name not in (AUTO, MEASURE):
        return make_backend(name, task)
    remembered = _read(task) if name == AUTO else None
    if remembered is not None:
        try:
            return make_backend(remembered, task)
        except UserError as error:
            warn(f"{error.problem} Going on with PyTorch.")
            return EagerBackend(task)
    able = [each for each in RUNTIMES if unavailable_reason(each, task.device) is None]
    if name == AUTO and CompiledBackend.name in able:
        able.remove(CompiledBackend.name)
    if len(able) == 1:
        return EagerBackend(task)
    tell("Measuring which runtime is fastest (once for this model)")
    chosen, record = _fastest(able, task, windows.to(task.device.torch_device), warn)
    _remember(task, chosen.name, record)
    return chosen


def _named(name: str) -> str:
    return os.environ.get(VARIABLE) or AUTO if name == AUTO else name


def _fastest(names: list[str], task: Task, windows: Tensor, warn: Say) -> tuple[Backend, dict[str, Any]]:
    eager: Backend = EagerBackend(task)
    seconds, expected = _measured(eager, windows)
    best = eager
    record: dict[str, Any] = {eager.name: {"seconds_a_window": seconds}}
    for name in names:
        if name == eager.name:
            continue
        try:
            runtime = make_backend(name, task)
            taken, given = _measured(runtime, windows)
        # A runtime may fail in any way on a computer it was never tried on; PyTorch itself has just worked.
        except Exception as error:
            problem = error.problem if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            record[name] = {"failed": problem.splitlines()[0] if problem else "no reason given"}
            continue
        difference = _difference(given, expected)
        record[name] = {"seconds_a_window": taken, "difference": difference}
        if not difference <= (_SAME_HALF if task.device.half else _SAME_SINGLE):
            warn(f"The runtime {name} gives other values than PyTorch (by {difference:.2g}) and is not used.")
        elif taken < seconds:
            best, seconds = runtime, taken
    return best, record


def _measured(runtime: Backend, windows: Tensor) -> tuple[float, Answer]:
    """Seconds a window, the better of two runs after a first one, and the answer."""
    given = runtime(windows)
    times = []
    for _ in range(_MEASURED_TWICE):
        _synchronize(windows.device)
        start = perf_counter()
        given = runtime(windows)
        _synchronize(windows.device)
        times.append((perf_counter() - start) / len(windows))
    return min(times), given


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _difference(given: Answer, expected: Answer) -> float:
    """The most that two answers differ in a probability or in attention; NaN stays NaN."""
    worst = 0.0
    for logits in zip(as_tuple(_probable(given)), as_tuple(_probable(expected)), strict=True):
        worst = max(worst, float((logits[0] - logits[1]).abs().max()), key=lambda each: (each != each, each))
    return worst


def _probable(whole: Answer) -> Answer:
    both = (whole.aggregated, whole.stitched)
    aggregated, stitched = (None if logits is None else torch.softmax(logits.float(), dim=1) for logits in both)
    return Answer(aggregated, stitched, {level: weights.float() for level, weights in whole.attention.items()})


def _key(task: Task) -> dict[str, Any]:
    device = task.device.torch_device
    return {
        "weights_sha256": task.weights_sha256,
        "patch": list(task.patch),
        "machine": [platform.machine(), processor(), torch.get_num_threads()],
        "device": [device.type, torch.cuda.get_device_name(device) if device.type == "cuda" else "", task.device.half],
        "versions": {name: _version(name) for name in ("dca-segmentation", "torch", "openvino")},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _file(task: Task) -> Path:
    name = hashlib.sha256(json.dumps(_key(task), sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "runtimes" / f"{name}.json"


def _read(task: Task) -> str | None:
    if task.weights_sha256 is None:
        return None
    try:
        content = read_json(_file(task))
        name = content["runtime"] if content["key"] == _key(task) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in RUNTIMES else None


def _remember(task: Task, name: str, measured: dict[str, Any]) -> None:
    if task.weights_sha256 is None:
        return
    # Where nothing can be kept it is measured again.
    with suppress(OSError, UserError, ValueError):
        path = _file(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json({"key": _key(task), "runtime": name, "measured": measured}, path)
