"""Selection of a backend: by name, or the one that is fastest on this computer."""

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

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError, format_install_command
from ...imaging.label_comparison import compute_dice_by_label
from ...imaging.writers import write_json
from ...json_io import read_json
from ...method.streaming import StreamedOutput
from ...user_folders import cache_folder
from ..device import Device
from .base import Backend, Task, as_tuple, get_processor_name
from .compiled import CompiledBackend, find_compiler
from .cuda import CudaHalfBackend
from .eager import EagerBackend
from .openvino import OpenVINOBackend, OpenVINOBfloat16Backend, is_installed, supports_bfloat16

BACKENDS: Mapping[str, Callable[[Task], Backend]] = {
    backend.name: backend
    for backend in (EagerBackend, OpenVINOBackend, OpenVINOBfloat16Backend, CompiledBackend, CudaHalfBackend)
}


def get_unavailable_reason(name: str, device: Device) -> tuple[str, str] | None:
    """Return why the backend ``name`` cannot run on ``device``, and what to do about it; None if it can."""
    device_type = device.torch_device.type
    if name in (OpenVINOBackend.name, OpenVINOBfloat16Backend.name):
        if device_type != "cpu":
            return f"The backend {name} needs the CPU, not {device.description}.", "Add --device cpu."
        if not is_installed():
            return "OpenVINO is not installed.", f"Install it: {format_install_command('openvino')}"
        if name == OpenVINOBfloat16Backend.name:
            try:
                supported = supports_bfloat16()
            except UserError as error:
                return error.problem, error.remedy
            if not supported:
                return f"The backend {name} needs a processor with AMX or AVX-512 BF16.", "Choose auto or openvino."
    elif name == CompiledBackend.name:
        if device_type == "mps":
            return "The backend compile needs the CPU or CUDA.", "Choose eager."
        if device_type == "cpu" and find_compiler() is None:
            return "The backend compile needs a C++ compiler.", "Install one (g++, clang++ or Visual C++)."
    elif name == CudaHalfBackend.name and (device_type != "cuda" or not device.half):
        return "The backend cuda-half needs a CUDA GPU in half precision.", "Choose auto or eager."
    return None


def make_backend(name: str, task: Task) -> Backend:
    """Create the backend ``name``, one of ``BACKENDS``, for ``task``. Raises UserError if it cannot run here."""
    if reason := get_unavailable_reason(name, task.device):
        raise UserError(*reason)
    try:
        return BACKENDS[name](task)
    except (RuntimeError, ValueError, OSError) as error:
        message = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"The backend {name} cannot run this model: {message}.", "Choose auto or eager.") from error


AUTO = "auto"
MEASURE = "measure"
CHOICES = (AUTO, MEASURE, *BACKENDS)
VARIABLE = "DCA_BACKEND"
EARLIER_VARIABLE = "DCA_RUNTIME"
"""What DCA_BACKEND was called before; it is still read."""
PRECISION_VARIABLE = "DCA_PRECISION"
PRECISIONS = ("float32", "bfloat16")
"""The values of the environment variable DCA_PRECISION: the lowest precision that ``auto`` may choose on a CPU."""

# Largest accepted difference of a probability from the eager backend's, in single and half precision.
_TOLERANCE_SINGLE = 1e-3
_TOLERANCE_HALF = 0.05
# Agreement with the eager backend's labels that bfloat16 needs in a window: mean Dice and lowest Dice over the organs
# that have enough voxels there, and the mean differences of probabilities and of attention.
_MEAN_DICE = 0.995
_MIN_DICE = 0.98
_MIN_VOXELS = 500
_TOLERANCE_MEAN = 2e-3
_TIMED_RUNS = 2

Log = Callable[[str], None]


def check_backend(name: str, device: Device) -> None:
    """Raise UserError if the backend ``name`` does not exist or cannot run on ``device``, or for a wrong setting."""
    name = _resolve(name)
    _allows_bfloat16()
    if name not in CHOICES:
        raise UserError(f"The backend '{name}' does not exist.", f"Choose one of: {', '.join(CHOICES)}.")
    if name in BACKENDS and (reason := get_unavailable_reason(name, device)):
        raise UserError(*reason)


def choose_backend(name: str, task: Task, windows: Tensor, report_progress: Log, warn: Log) -> Backend:
    """Create the backend ``name`` for ``task``.

    ``auto`` takes the backend that was fastest when this model was measured on this computer. If it was not measured
    yet, the backends that start quickly (all but ``compile``) are measured now on ``windows``, a batch
    (batch, 1, depth, height, width) of the CT, float32. ``measure`` measures all backends again. A backend whose output
    differs from the eager backend's is never chosen. If the eager backend cannot run ``windows``, for example because
    memory runs out, it is returned all the same and nothing is recorded. The environment variable DCA_BACKEND replaces
    ``auto``. Both leave out bfloat16 unless the environment variable DCA_PRECISION is ``bfloat16``; then it is chosen
    only if its labels agree with the eager backend's.

    ``report_progress`` receives the current step, ``warn`` warnings for the user. Raises UserError if the requested
    backend cannot run here.
    """
    name = _resolve(name)
    if name not in (AUTO, MEASURE):
        return make_backend(name, task)
    recorded = _read_choice(task) if name == AUTO else None
    if recorded is not None:
        try:
            return make_backend(recorded, task)
        except UserError as error:
            warn(f"{error.problem} Continuing with PyTorch.")
            return EagerBackend(task)
    left_out = set() if name == MEASURE else {CompiledBackend.name}
    if not _allows_bfloat16():
        left_out.add(OpenVINOBfloat16Backend.name)
    available = [
        each for each in BACKENDS if each not in left_out and get_unavailable_reason(each, task.device) is None
    ]
    if len(available) == 1:
        return EagerBackend(task)
    report_progress("Measuring which backend is fastest (once for this model)")
    fastest, measured = _find_fastest(available, task, windows, warn)
    if measured:
        _write_choice(task, fastest.name, measured)
    return fastest


def _resolve(name: str) -> str:
    if name != AUTO:
        return name
    return os.environ.get(VARIABLE) or os.environ.get(EARLIER_VARIABLE) or AUTO


def _allows_bfloat16() -> bool:
    precision = os.environ.get(PRECISION_VARIABLE) or PRECISIONS[0]
    if precision not in PRECISIONS:
        raise UserError(
            f"{PRECISION_VARIABLE} is '{precision}', which is not a precision.",
            f"Set it to one of: {', '.join(PRECISIONS)}.",
        )
    return precision == "bfloat16"


def _find_fastest(names: list[str], task: Task, windows: Tensor, warn: Log) -> tuple[Backend, dict[str, Any]]:
    """Return the fastest of the backends ``names``, and the measurements; none if not even the eager backend ran."""
    eager: Backend = EagerBackend(task)
    try:
        windows = windows.to(task.device.torch_device)
        seconds, expected = _measure(eager, windows)
    except (RuntimeError, MemoryError):
        # Such as a GPU whose memory other programs use. The first window meets the same error, with its fallbacks.
        return eager, {}
    best = eager
    record: dict[str, Any] = {eager.name: {"seconds_a_window": seconds}}
    for name in names:
        if name == eager.name:
            continue
        try:
            backend = make_backend(name, task)
            own_seconds, output = _measure(backend, windows)
        # On an untested computer a backend may fail in any way; the eager backend has just worked.
        except Exception as error:
            problem = error.problem if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            record[name] = {"failed": problem.splitlines()[0] if problem else "no reason given"}
            continue
        difference = _compute_max_difference(output, expected)
        record[name] = {"seconds_a_window": own_seconds, "difference": difference}
        if name == OpenVINOBfloat16Backend.name:
            problem = _compare_labels(output, expected)
        else:
            tolerance = _TOLERANCE_HALF if task.device.half else _TOLERANCE_SINGLE
            problem = "" if difference <= tolerance else f"differ from PyTorch's (by {difference:.2g})"
        if problem:
            warn(f"The results of the backend {name} {problem}, so it is not used.")
        elif own_seconds < seconds:
            best, seconds = backend, own_seconds
    return best, record


def _measure(backend: Backend, windows: Tensor) -> tuple[float, StreamedOutput]:
    """Return the seconds per window, the better of two runs after a warm-up, and the output."""
    output = backend(windows)
    times = []
    for _ in range(_TIMED_RUNS):
        _synchronize(windows.device)
        start = perf_counter()
        output = backend(windows)
        _synchronize(windows.device)
        times.append((perf_counter() - start) / len(windows))
    return min(times), output


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compute_max_difference(output: StreamedOutput, expected: StreamedOutput) -> float:
    """Return the largest difference of two outputs in a probability or in attention; NaN stays NaN."""
    worst = 0.0
    for values in zip(
        as_tuple(_compute_probabilities(output)), as_tuple(_compute_probabilities(expected)), strict=True
    ):
        worst = max(worst, float((values[0] - values[1]).abs().max()), key=lambda each: (each != each, each))
    return worst


def _compare_labels(output: StreamedOutput, expected: StreamedOutput) -> str:
    """Return whether two outputs differ too much in labels, probabilities or attention, as the end of a message.

    Empty if they do not.
    """
    for ours, theirs in ((output.aggregated, expected.aggregated), (output.stitched, expected.stitched)):
        if ours is None or theirs is None:
            continue
        labels = theirs.argmax(dim=1).numpy()
        n_labels = theirs.shape[1] - 1
        dice = compute_dice_by_label(ours.argmax(dim=1).numpy(), labels, n_labels)
        judged = dice[np.bincount(labels.ravel(), minlength=n_labels + 1)[1:] >= _MIN_VOXELS]
        if not len(judged):
            return "cannot be checked, because the middle of this CT contains no organs"
        if judged.mean() < _MEAN_DICE or judged.min() < _MIN_DICE:
            return f"differ from PyTorch's (mean Dice {judged.mean():.3f}, lowest {judged.min():.3f})"
    values = zip(as_tuple(_compute_probabilities(output)), as_tuple(_compute_probabilities(expected)), strict=True)
    difference = max(float((ours - theirs).abs().mean()) for ours, theirs in values)
    return "" if difference <= _TOLERANCE_MEAN else f"differ from PyTorch's (by {difference:.2g} on average)"


def _compute_probabilities(output: StreamedOutput) -> StreamedOutput:
    both = (output.aggregated, output.stitched)
    aggregated, stitched = (None if logits is None else torch.softmax(logits.float(), dim=1) for logits in both)
    return StreamedOutput(aggregated, stitched, {level: weights.float() for level, weights in output.attention.items()})


def _make_cache_key(task: Task) -> dict[str, Any]:
    device = task.device.torch_device
    return {
        "weights_sha256": task.weights_sha256,
        "patch": list(task.patch),
        "precision": "bfloat16" if _allows_bfloat16() else "float32",
        "machine": [platform.machine(), get_processor_name(), torch.get_num_threads()],
        "device": [device.type, torch.cuda.get_device_name(device) if device.type == "cuda" else "", task.device.half],
        "versions": {name: _get_version(name) for name in ("dca-segmentation", "torch", "openvino")},
    }


def _get_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _get_cache_file(task: Task) -> Path:
    name = hashlib.sha256(json.dumps(_make_cache_key(task), sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "backends" / f"{name}.json"


def _read_choice(task: Task) -> str | None:
    """Return the backend that was fastest for ``task``; None if it was not measured."""
    if task.weights_sha256 is None:
        return None
    try:
        content = read_json(_get_cache_file(task))
        name = content["backend"] if content["key"] == _make_cache_key(task) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in BACKENDS else None


def _write_choice(task: Task, name: str, measured: dict[str, Any]) -> None:
    if task.weights_sha256 is None:
        return
    # Without the record, the backends are measured again at the next start.
    with suppress(OSError, UserError, ValueError):
        path = _get_cache_file(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json({"key": _make_cache_key(task), "backend": name, "measured": measured}, path)
