"""Backends OpenVINO, for CPUs: in single precision, and in bfloat16 on processors with instructions for it.

The network is compiled once for each model, patch, outputs, precision and processor, and cached.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import warnings
from contextlib import suppress
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import UserError, format_install_command
from ...imaging.writers import new_folder, write_json
from ...json_io import read_json
from ...method.streaming import StreamedOutput
from ...user_folders import cache_folder
from .base import Task, WindowNetwork, get_processor_name, run_one_by_one

_COMPILED, _CONTENTS = "compiled.blob", "contents.json"
# Increase when the conversion changes, so that older cached networks are not used.
_CONVERSION = 5
# Side of the blocks in which instance normalization takes means, in voxels.
_BLOCK = 8


class OpenVINOBackend:
    """Runs the network with OpenVINO in single precision, one window at a time."""

    name = "openvino"
    needs_network = False
    windows_at_once = 1
    # OpenVINO's own default is bfloat16 on CPUs that support it.
    _precision = "f32"

    def __init__(self, task: Task) -> None:
        openvino = load_openvino()
        self._wanted = task.wanted
        self._network = _load_or_compile(task, openvino, self._precision)
        self._request = self._network.create_infer_request()

    def __call__(self, windows: Tensor) -> StreamedOutput:
        """Run the network on ``windows``; see ``base.Backend``."""
        return run_one_by_one(windows, self._run if len(windows) == 1 else self._run_and_copy, self._wanted)

    def _run(self, window: Tensor) -> tuple[Tensor, ...]:
        """Run one window. The outputs lie in OpenVINO's memory, which the next window overwrites."""
        outputs = self._request.infer([np.ascontiguousarray(window.numpy())], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(outputs[output]) for output in self._network.outputs)

    def _run_and_copy(self, window: Tensor) -> tuple[Tensor, ...]:
        return tuple(values.clone() for values in self._run(window))

    def release_memory(self) -> None:
        """Free the memory in which OpenVINO computes windows."""
        self._network.release_memory()


class OpenVINOBfloat16Backend(OpenVINOBackend):
    """Runs the network with OpenVINO in bfloat16, one window at a time. Sums and the last layers stay in float32."""

    name = "openvino-bf16"
    _precision = "bf16"


def supports_bfloat16() -> bool:
    """Whether this processor computes in bfloat16 (AMX or AVX-512 BF16). Raises UserError if OpenVINO is broken."""
    return "BF16" in load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def is_installed() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def load_openvino() -> Any:
    """Import the package ``openvino`` without its telemetry. Raises UserError if it is missing or broken."""
    # On import and at each conversion, OpenVINO reports to its maker through this optional package. Hiding the package
    # ensures that nothing leaves the user's computer.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            f"OpenVINO cannot be used: {error}.", f"Install it: {format_install_command('openvino')}"
        ) from None
    return openvino


def _make_settings(precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        # With pinning, all workers of a cohort would run on the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _load_or_compile(task: Task, openvino: Any, precision: str) -> Any:
    core = openvino.Core()
    settings = _make_settings(precision)
    if task.weights_sha256 is None:
        return core.compile_model(_convert(task, openvino, precision), "CPU", settings)
    key = _make_cache_key(task, openvino, precision)
    folder = cache_folder() / "openvino" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    if (cached := _read_cache(folder, key)) is not None:
        with suppress(RuntimeError):
            return core.import_model(cached, "CPU", settings)
    network = core.compile_model(_convert(task, openvino, precision), "CPU", settings)
    # Without the cache, the network is converted and compiled again at the next start.
    with suppress(OSError, UserError):
        _write_cache(network, folder, key)
    return network


def _make_cache_key(task: Task, openvino: Any, precision: str) -> dict[str, Any]:
    return {
        "precision": precision,
        "weights_sha256": task.weights_sha256,
        # Dilation, owners and stitching do not follow from the weights.
        "network": task.network.options,
        "patch": list(task.patch),
        "wanted": [task.wanted.aggregated, task.wanted.stitched, sorted(task.wanted.attention_levels)],
        "conversion": _CONVERSION,
        # The number of threads is not part of the key: the compiled network does not depend on it.
        "processor": get_processor_name(),
        "openvino": openvino.get_version(),
        "torch": torch.__version__,
    }


def _read_cache(folder: Path, key: dict[str, Any]) -> bytes | None:
    """Read the compiled network from the cache; None if it is not there or damaged."""
    try:
        contents = read_json(folder / _CONTENTS)
        compiled = (folder / _COMPILED).read_bytes()
        is_valid = contents["key"] == key and contents["sha256"] == hashlib.sha256(compiled).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return compiled if is_valid else None


def _write_cache(network: Any, folder: Path, key: dict[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # An existing folder is a damaged one.
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as partial:
        compiled = network.export_model().getbuffer()
        (partial / _COMPILED).write_bytes(compiled)
        write_json({"key": key, "sha256": hashlib.sha256(compiled).hexdigest()}, partial / _CONTENTS)


def _convert(task: Task, openvino: Any, precision: str) -> Any:
    network = deepcopy(task.network)
    # In bfloat16 the means of blocks would be rounded to three digits; OpenVINO's own normalization sums in float32.
    for module in list(network.modules()) if precision == "f32" else ():
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, _BlockwiseInstanceNorm(child))
    whole = WindowNetwork(network, task.wanted).eval()
    example = torch.zeros(1, task.network.options["in_channels"], *task.patch)
    with torch.no_grad(), warnings.catch_warnings():
        # torch warns that tracing is deprecated and fixes branches; OpenVINO converts traced modules most reliably.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(whole, example, check_trace=False)
        return openvino.convert_model(traced, example_input=example, input=[openvino.PartialShape(list(example.shape))])


class _BlockwiseInstanceNorm(nn.Module):
    """Instance normalization that averages the means of blocks.

    OpenVINO's own sums a whole volume in one float32 and loses a digit: five times the error in the probabilities, at
    the same speed.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("scale", norm.weight.detach().reshape(shape).clone())
        self.register_buffer("shift", norm.bias.detach().reshape(shape).clone())
        self.eps = norm.eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalize ``features`` (batch, channel, depth, height, width) over their voxels."""
        mean = _compute_mean(features)
        # OpenVINO writes no volume but the squares: centered features, used twice, would be written and read again.
        factor = self.scale * torch.rsqrt(_compute_mean((features - mean) ** 2) + self.eps)
        return features * factor + (self.shift - mean * factor)


def _compute_mean(features: Tensor) -> Tensor:
    if all(int(side) % _BLOCK == 0 for side in features.shape[2:]):
        features = functional.avg_pool3d(features, (_BLOCK, _BLOCK, _BLOCK))
    return features.mean(dim=(2, 3, 4), keepdim=True)
