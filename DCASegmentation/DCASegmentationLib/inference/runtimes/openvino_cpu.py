"""OpenVINO on the CPU: the network converted once for each model, patch and set of answers, and kept as a file."""

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

from ...errors import UserError
from ...imaging.writing import new_folder, write_json
from ...method.level_by_level import Answer
from .cache import cache_folder
from .runtime import Task, WindowNetwork, one_by_one

_MODEL, _WEIGHTS, _CONTENTS = "model.xml", "model.bin", "contents.json"
# Goes up when the same weights are to be converted in another way.
_CONVERSION = 2
_BLOCK = 8


class OpenVINORuntime:
    """The network as OpenVINO runs it, in single precision, one window at a time."""

    name = "openvino"
    needs_network = False
    windows_at_once = 1

    def __init__(self, task: Task) -> None:
        openvino = load_openvino()
        self._wanted = task.wanted
        self._network = openvino.Core().compile_model(
            _converted(task, openvino),
            "CPU",
            {
                # By itself it takes bfloat16 where the CPU has it.
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                # Pinned, the workers of a cohort would all sit on the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._request = self._network.create_infer_request()

    def __call__(self, windows: Tensor) -> Answer:
        return one_by_one(windows, self._run if len(windows) == 1 else self._copied, self._wanted)

    def _run(self, window: Tensor) -> tuple[Tensor, ...]:
        """The answer to one window, in OpenVINO's own memory: good until the next window."""
        given = self._request.infer([np.ascontiguousarray(window.numpy())], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(given[output]) for output in self._network.outputs)

    def _copied(self, window: Tensor) -> tuple[Tensor, ...]:
        return tuple(values.clone() for values in self._run(window))

    def rest(self) -> None:
        """Let go of the memory that windows are computed in."""
        self._network.release_memory()


def is_installed() -> bool:
    """Whether there is OpenVINO."""
    return find_spec("openvino") is not None


def load_openvino() -> Any:
    """The package ``openvino``, kept from telling its makers of it. Raises UserError where it is missing or broken."""
    # At its import and at each conversion it would report to an address of its maker through this package, which it
    # can do without; nothing leaves the user's computer here.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            f"OpenVINO cannot be used: {error}.", 'Install it: pip install "dca-segmentation[openvino]"'
        ) from None
    return openvino


def _converted(task: Task, openvino: Any) -> Any:
    if task.weights_sha256 is None:
        return _convert(task, openvino)
    key = _key(task, openvino)
    folder = cache_folder() / "openvino" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    if _is_whole(folder, key):
        with suppress(RuntimeError):
            return openvino.Core().read_model(folder / _MODEL, folder / _WEIGHTS)
    model = _convert(task, openvino)
    # A model that cannot be kept is converted again at the next start.
    with suppress(OSError, UserError):
        _keep(model, folder, key, openvino)
    return model


def _key(task: Task, openvino: Any) -> dict[str, Any]:
    return {
        "weights_sha256": task.weights_sha256,
        # The weights do not tell of dilation, owners and stitching.
        "network": task.network.options,
        "patch": list(task.patch),
        "wanted": [task.wanted.aggregated, task.wanted.stitched, sorted(task.wanted.attention_levels)],
        "conversion": _CONVERSION,
        "openvino": openvino.get_version(),
        "torch": torch.__version__,
    }


def _is_whole(folder: Path, key: dict[str, Any]) -> bool:
    try:
        contents = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        whole = contents["key"] == key and all(
            contents["sha256"][name] == _sha256(folder / name) for name in (_MODEL, _WEIGHTS)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(whole)


def _keep(model: Any, folder: Path, key: dict[str, Any], openvino: Any) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Here only where it is damaged.
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as partial:
        openvino.save_model(model, partial / _MODEL, compress_to_fp16=False)
        checksums = {name: _sha256(partial / name) for name in (_MODEL, _WEIGHTS)}
        write_json({"key": key, "sha256": checksums}, partial / _CONTENTS)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _convert(task: Task, openvino: Any) -> Any:
    network = deepcopy(task.network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, _BlockwiseInstanceNorm(child))
    whole = WindowNetwork(network, task.wanted).eval()
    example = torch.zeros(1, task.network.options["in_channels"], *task.patch)
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing is old, says torch, and which branches it took; OpenVINO takes nothing else as surely.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(whole, example, check_trace=False)
        return openvino.convert_model(traced, example_input=example, input=[openvino.PartialShape(list(example.shape))])


class _BlockwiseInstanceNorm(nn.Module):
    """Instance normalization by means of blocks' means.

    OpenVINO's own adds up a whole volume in one float32, which costs a digit: five times the error in the
    probabilities, at the same speed.
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
        centered = features - _mean(features)
        return centered * (self.scale * torch.rsqrt(_mean(centered * centered) + self.eps)) + self.shift


def _mean(features: Tensor) -> Tensor:
    if all(int(side) % _BLOCK == 0 for side in features.shape[2:]):
        features = functional.avg_pool3d(features, (_BLOCK, _BLOCK, _BLOCK))
    return features.mean(dim=(2, 3, 4), keepdim=True)
