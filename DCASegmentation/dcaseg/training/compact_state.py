"""A compact, quantized checkpoint: a small file from which training continues, although not bit for bit.

It stores weights, their average and the optimizer's moments with as many bits as fit below a size limit. Each array is
scaled by its largest value or, with few bits, each output channel by its own. If Adam's second moments do not fit, only
the means of their rows and columns are stored, as in Adafactor (Shazeer and Stern, ICML 2018).
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import DAMAGED_NPZ, OutputError, UserError, get_reason
from ..imaging.writers import write_file

FORMAT = 1
LIMIT_BYTES = 16 * 2**20

_ABOUT = "about"
# How the keys of averaged weights begin if a strategy validates two networks together.
_MEMBERS = ("networks.0.", "networks.1.")
# Entries of a checkpoint that are stored unchanged. The states of the random generators are left out.
_PLAIN = ("options", "owners", "step", "best", "pending", "scaler", "averaged_updates")


@dataclass(frozen=True)
class Detail:
    """The precision of a compact state, in bits per value; 0 leaves an array out.

    ``weights``; ``average``, the difference between the averaged weights and the weights; ``moments``, Adam's first
    moments. Without the difference, only the averaged weights are stored, and training continues from them.
    ``second_moments``: all values ("whole"), only the means of rows and columns ("means"), or nothing ("none", which
    restarts the optimizer).
    """

    weights: int
    average: int
    moments: int
    second_moments: Literal["whole", "means", "none"] = "means"


# In descending order; the first that fits is used.
_DETAILS = (
    Detail(16, 16, 16, "whole"),
    Detail(16, 16, 8),
    Detail(16, 8, 8),
    Detail(16, 8, 0),
    Detail(16, 0, 0),
    Detail(12, 0, 0),
    Detail(8, 0, 0),
    Detail(8, 0, 0, "none"),
)


def write_compact(
    path: Path, state: dict[str, Any], record: dict[str, Any] | None = None, limit_bytes: int = LIMIT_BYTES
) -> Detail:
    """Write the ``state`` of a checkpoint and the run's ``record`` (plain data) in at most ``limit_bytes``.

    Returns the precision of the file. Raises OutputError if the state does not fit at the lowest precision, or if the
    file cannot be written.
    """
    for detail in _DETAILS:
        arrays = _pack_arrays(*_encode_state(state, record, detail))
        # Compression saves at most half, and is slow, so arrays that are too large are not even tried.
        if sum(array.nbytes for array in arrays.values()) > 2 * limit_bytes:
            continue
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        if stream.tell() <= limit_bytes:
            _write(stream.getvalue(), path)
            return detail
    raise OutputError(
        f"The state of this network does not fit into {limit_bytes / 2**20:g} MiB.",
        "Keep the complete checkpoint instead.",
    )


def read_compact(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Read a file of ``write_compact``: the state in the form of a checkpoint, and the run's record or None.

    Raises UserError if the file is missing, damaged or of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            packed = {name: file[name] for name in file.files}
        about = json.loads(packed.pop(_ABOUT).tobytes().decode())
        if about["format"] != FORMAT:
            raise UserError(
                f"{path} is a state of format {about['format']}, but this version reads format {FORMAT}.",
                "Use the version that wrote it.",
            )
        return _decode_state(_unpack_arrays(packed, about["index"]), about), about["record"]
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.", "Specify a file written by dca train --export-state.") from None
    except DAMAGED_NPZ as error:
        raise UserError(
            f"{path} is not the state of a run, or is damaged ({get_reason(error)}).",
            "Specify a file written by dca train --export-state.",
        ) from error


def is_compact(path: Path) -> bool:
    """Whether ``path`` looks like a file of ``write_compact``. Only its table of contents is checked."""
    try:
        with zipfile.ZipFile(path) as file:
            return f"{_ABOUT}.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _pack_arrays(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> dict[str, np.ndarray]:
    """Concatenate all arrays of a type: there are thousands, and each would add about a hundred bytes to the file."""
    by_type: dict[str, list[np.ndarray]] = {}
    index = []
    for name, array in arrays.items():
        by_type.setdefault(array.dtype.name, []).append(array.ravel())
        index.append([name, array.dtype.name, list(array.shape)])
    packed = {name: np.concatenate(parts) for name, parts in by_type.items()}
    packed[_ABOUT] = np.frombuffer(json.dumps({**about, "index": index}).encode(), np.uint8)
    return packed


def _unpack_arrays(packed: dict[str, np.ndarray], index: list[Any]) -> dict[str, np.ndarray]:
    arrays, offsets = {}, dict.fromkeys(packed, 0)
    for name, dtype, shape in index:
        size = math.prod(shape)
        arrays[name] = packed[dtype][offsets[dtype] : offsets[dtype] + size].reshape(shape)
        offsets[dtype] += size
    return arrays


def _encode_state(
    state: dict[str, Any], record: dict[str, Any] | None, detail: Detail
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays: dict[str, np.ndarray] = {}
    average = state.get("averaged")
    # If only one set of weights fits, it is the better one: the average.
    weights = {f"network/{name}": tensor for name, tensor in state["network"].items()}
    weights |= {f"strategy/{name}": tensor for name, tensor in state.get("strategy", {}).items()}
    stored = dict(weights)
    if average is not None and not detail.average:
        stored |= {_get_weight_key(name): tensor for name, tensor in average.items()}
    for key, tensor in stored.items():
        _encode(arrays, key, tensor, detail.weights)
    if average is not None and detail.average:
        for name, tensor in average.items():
            # The difference is relative to the quantized weights, because the reader adds it to those.
            base = _decode(arrays, _get_weight_key(name))
            difference = tensor.float() - base if tensor.is_floating_point() else tensor
            if tensor.is_floating_point() and torch.equal(tensor, weights[_get_weight_key(name)]):
                difference = torch.zeros_like(base)
            _encode(arrays, f"averaged/{name}", difference, detail.average)
    for index, moments in state["optimizer"]["state"].items():
        if detail.second_moments == "none":
            # The optimizer will be restarted.
            break
        for name, value in moments.items():
            key = f"optimizer/{index}/{name}"
            if value is None:
                continue
            if not isinstance(value, Tensor) or value.ndim == 0:
                arrays[f"{key}:plain"] = np.array(float(value), np.float32)
            elif name == "exp_avg_sq":
                _encode_second(arrays, key, value, detail.second_moments == "whole")
            elif detail.moments:
                _encode(arrays, key, value, detail.moments)
            else:
                arrays[f"{key}:zero"] = np.array(value.shape, np.int32)
    about = {
        "format": FORMAT,
        "record": record,
        "groups": state["optimizer"]["param_groups"],
        "has_average": average is not None,
        "averages_both": average is not None and all(name.startswith(_MEMBERS) for name in average),
        **{name: state[name] for name in _PLAIN if name in state},
    }
    return arrays, about


def _decode_state(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {name: about[name] for name in _PLAIN if name in about}
    keys = sorted({name.rpartition(":")[0] for name in arrays})
    tensors = {key: _decode(arrays, key) for key in keys}
    state["network"] = _select_by_prefix(tensors, "network/")
    state["strategy"] = _select_by_prefix(tensors, "strategy/")
    if about["has_average"]:
        differences = _select_by_prefix(tensors, "averaged/")
        averaged = state["network"]
        if about.get("averages_both"):
            members = zip(_MEMBERS, (averaged, _select_by_prefix(tensors, "strategy/second.")), strict=True)
            averaged = {
                f"{member}{name}": tensor for member, of_member in members for name, tensor in of_member.items()
            }
        state["averaged"] = {
            name: tensor + differences[name] if name in differences and tensor.is_floating_point() else tensor.clone()
            for name, tensor in averaged.items()
        }
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _select_by_prefix(tensors, "optimizer/").items():
        index, _, name = key.partition("/")
        moments.setdefault(int(index), {})[name] = tensor
    state["optimizer"] = {"state": moments, "param_groups": about["groups"]}
    return state


def _get_weight_key(name: str) -> str:
    """The key of the weights whose average is ``name``: those of the network, or of one of two (``MeanOfNetworks``)."""
    first, second = _MEMBERS
    if name.startswith(second):
        return f"strategy/second.{name.removeprefix(second)}"
    return f"network/{name.removeprefix(first)}"


def _select_by_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys start with ``prefix``, by the rest of the key."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _encode(arrays: dict[str, np.ndarray], key: str, tensor: Tensor, bits: int) -> None:
    """Store ``tensor`` under ``key`` with ``bits`` per value; integers and vectors, which are small, unchanged."""
    values = tensor.detach().cpu().contiguous().numpy()
    if values.dtype.kind != "f" or values.ndim <= 1:
        arrays[f"{key}:whole"] = values
        return
    if bits == 16:
        scale = np.float32(np.abs(values).max()) or np.float32(1)
        arrays[f"{key}:half"], arrays[f"{key}:scale"] = (values / scale).astype(np.float16), scale.reshape(1)
        return
    rows = values.reshape(len(values), -1)
    largest = 2 ** (bits - 1) - 1
    scales = np.abs(rows).max(axis=1, keepdims=True).astype(np.float32) / largest
    numbers = np.rint(rows / np.where(scales > 0, scales, 1)).astype(np.int16)
    arrays[f"{key}:scale"], arrays[f"{key}:shape"] = scales, np.array(values.shape, np.int32)
    # Separate low and high bits compress better.
    if bits == 8:
        arrays[f"{key}:byte"] = numbers.astype(np.int8)
    else:
        unsigned = (numbers.ravel() + 2048).astype(np.uint16)
        high = (unsigned >> 8).astype(np.uint8)
        high = np.pad(high, (0, len(high) % 2))
        arrays[f"{key}:low"] = (unsigned & 255).astype(np.uint8)
        arrays[f"{key}:high"] = high[0::2] << 4 | high[1::2]


def _encode_second(arrays: dict[str, np.ndarray], key: str, tensor: Tensor, whole: bool) -> None:
    """Store second moments, which span many orders of magnitude: their roots, or the means of rows and columns."""
    values = tensor.detach().cpu().float()
    if values.ndim <= 1:
        arrays[f"{key}:whole"] = values.numpy()
    elif whole:
        roots = values.sqrt().numpy()
        peak = np.float32(roots.max()) or np.float32(1)
        arrays[f"{key}:roots"], arrays[f"{key}:peak"] = (roots / peak).astype(np.float16), peak.reshape(1)
    else:
        rows = values.reshape(len(values), -1)
        arrays[f"{key}:rows"], arrays[f"{key}:columns"] = rows.mean(1).numpy(), rows.mean(0).sqrt().numpy()
        peak = np.float32(arrays[f"{key}:columns"].max()) or np.float32(1)
        arrays[f"{key}:columns"] = (arrays[f"{key}:columns"] / peak).astype(np.float16)
        arrays[f"{key}:peak"] = np.float32(peak).reshape(1)
        arrays[f"{key}:shape"] = np.array(values.shape, np.int32)


def _decode(arrays: dict[str, np.ndarray], key: str) -> Tensor:
    def part(suffix: str) -> np.ndarray | None:
        return arrays.get(f"{key}:{suffix}")

    for suffix in ("whole", "plain"):
        if (values := part(suffix)) is not None:
            return torch.from_numpy(np.array(values))
    if (shape := part("zero")) is not None:
        return torch.zeros(tuple(int(side) for side in shape))
    if (half := part("half")) is not None:
        return torch.from_numpy(half.astype(np.float32) * arrays[f"{key}:scale"])
    if (roots := part("roots")) is not None:
        return torch.from_numpy((roots.astype(np.float32) * arrays[f"{key}:peak"]) ** 2)
    shape = arrays[f"{key}:shape"]
    if (columns := part("columns")) is not None:
        column_means = (columns.astype(np.float32) * arrays[f"{key}:peak"]) ** 2
        row_means = arrays[f"{key}:rows"]
        values = np.outer(row_means, column_means) / max(float(row_means.mean()), 1e-30)
    else:
        numbers = part("byte")
        if numbers is None:
            low, packed = arrays[f"{key}:low"], arrays[f"{key}:high"]
            high = np.stack([packed >> 4, packed & 15], axis=1).ravel()[: len(low)]
            numbers = (high.astype(np.int32) << 8 | low) - 2048
        scales = arrays[f"{key}:scale"]
        values = numbers.reshape(len(scales), -1).astype(np.float32) * scales
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def _write(content: bytes, path: Path) -> None:
    write_file(path, lambda temporary: temporary.write_bytes(content))
