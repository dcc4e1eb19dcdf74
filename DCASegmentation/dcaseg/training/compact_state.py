"""A run's state in a file small enough to keep or to carry: what training goes on from, though not bit for bit.

Weights, their average and the optimizer's moments in as many bits as fit below a limit. Every array is scaled by its
largest value, that of each output channel where few bits are left. Adam's second moments are kept as the means of rows
and columns once the whole does not fit, as Adafactor keeps them (Shazeer and Stern, ICML 2018).
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import OutputError, UserError
from ..temp_paths import partial_name

FORMAT = 1
LIMIT_BYTES = 16 * 2**20

_ABOUT = "about"
# What a checkpoint has besides tensors, and a compact state keeps as it is; the state of random generators it leaves.
_PLAIN = ("options", "owners", "step", "best", "pending", "scaler", "averaged_updates")


@dataclass(frozen=True)
class Detail:
    """Bits of each value: of the weights, of their average's difference from them, and of the first moments; 0 leaves
    a thing out. Without the difference the weights are the average, and training goes on from there."""

    weights: int
    average: int
    moments: int
    second_moments: Literal["whole", "means", "none"] = "means"


# The finest that fits is taken.
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
    """Write the ``state`` of a checkpoint, and the run's ``record`` (plain data), in at most ``limit_bytes``.

    Returns what was kept. Raises OutputError where it does not fit even with the fewest bits, or cannot be written.
    """
    for detail in _DETAILS:
        arrays = _packed(*_arrays(state, record, detail))
        # Half of it at most is won by compression, and much time lost where that is not enough.
        if sum(array.nbytes for array in arrays.values()) > 2 * limit_bytes:
            continue
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        if stream.tell() <= limit_bytes:
            _write(stream.getvalue(), path)
            return detail
    raise OutputError(
        f"The state of this network does not fit into {limit_bytes / 2**20:g} MiB.",
        "Keep the whole checkpoint instead.",
    )


def read_compact(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The state that ``write_compact`` wrote, as a checkpoint has it, and the run's record if there is one.

    Raises UserError for a file that is damaged or none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            packed = {name: file[name] for name in file.files}
        about = json.loads(packed.pop(_ABOUT).tobytes().decode())
        if about["format"] != FORMAT:
            raise UserError(
                f"{path} is a state of format {about['format']}, this version reads {FORMAT}.",
                "Use the version that wrote it.",
            )
        return _state(_unpacked(packed, about["index"]), about), about["record"]
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.", "Name one that dca train --export-state wrote.") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is no state of a run, or damaged ({error}).", "Name one that dca train --export-state wrote."
        ) from error


def is_compact(path: Path) -> bool:
    """Whether ``path`` is a file as ``write_compact`` writes them, judged by its list of contents alone."""
    try:
        with zipfile.ZipFile(path) as file:
            return f"{_ABOUT}.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _packed(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> dict[str, np.ndarray]:
    """All arrays of a type as one: a file has some hundred bytes for each of the thousands that they are."""
    by_type: dict[str, list[np.ndarray]] = {}
    index = []
    for name, array in arrays.items():
        by_type.setdefault(array.dtype.name, []).append(array.ravel())
        index.append([name, array.dtype.name, list(array.shape)])
    packed = {name: np.concatenate(parts) for name, parts in by_type.items()}
    packed[_ABOUT] = np.frombuffer(json.dumps({**about, "index": index}).encode(), np.uint8)
    return packed


def _unpacked(packed: dict[str, np.ndarray], index: list[Any]) -> dict[str, np.ndarray]:
    arrays, reached = {}, dict.fromkeys(packed, 0)
    for name, kind, shape in index:
        size = math.prod(shape)
        arrays[name] = packed[kind][reached[kind] : reached[kind] + size].reshape(shape)
        reached[kind] += size
    return arrays


def _arrays(
    state: dict[str, Any], record: dict[str, Any] | None, detail: Detail
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays: dict[str, np.ndarray] = {}
    average = state.get("averaged")
    # The one set of weights that is kept is the better one.
    kept = average if average is not None and not detail.average else state["network"]
    for name, tensor in kept.items():
        _encode(arrays, f"network/{name}", tensor, detail.weights)
    for name, tensor in state.get("strategy", {}).items():
        _encode(arrays, f"strategy/{name}", tensor, detail.weights)
    if average is not None and detail.average:
        for name, tensor in average.items():
            # What the decoder will add it to are the weights as they are kept.
            base = _decode(arrays, f"network/{name}")
            difference = tensor.float() - base if tensor.is_floating_point() else tensor
            if tensor.is_floating_point() and torch.equal(tensor, state["network"][name]):
                difference = torch.zeros_like(base)
            _encode(arrays, f"averaged/{name}", difference, detail.average)
    for index, moments in state["optimizer"]["state"].items():
        if detail.second_moments == "none":
            # The optimizer starts anew.
            break
        for name, value in moments.items():
            place = f"optimizer/{index}/{name}"
            if value is None:
                continue
            if not isinstance(value, Tensor) or value.ndim == 0:
                arrays[f"{place}:plain"] = np.array(float(value), np.float32)
            elif name == "exp_avg_sq":
                _encode_second(arrays, place, value, detail.second_moments == "whole")
            elif detail.moments:
                _encode(arrays, place, value, detail.moments)
            else:
                arrays[f"{place}:zero"] = np.array(value.shape, np.int32)
    about = {
        "format": FORMAT,
        "record": record,
        "groups": state["optimizer"]["param_groups"],
        "has_average": average is not None,
        **{name: state[name] for name in _PLAIN if name in state},
    }
    return arrays, about


def _state(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {name: about[name] for name in _PLAIN if name in about}
    places = sorted({name.rpartition(":")[0] for name in arrays})
    tensors = {place: _decode(arrays, place) for place in places}
    state["network"] = _below(tensors, "network/")
    state["strategy"] = _below(tensors, "strategy/")
    if about["has_average"]:
        differences = _below(tensors, "averaged/")
        state["averaged"] = {
            name: tensor + differences[name] if name in differences and tensor.is_floating_point() else tensor.clone()
            for name, tensor in state["network"].items()
        }
    moments: dict[int, dict[str, Tensor]] = {}
    for place, tensor in _below(tensors, "optimizer/").items():
        index, _, name = place.partition("/")
        moments.setdefault(int(index), {})[name] = tensor
    state["optimizer"] = {"state": moments, "param_groups": about["groups"]}
    return state


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {place.removeprefix(prefix): tensor for place, tensor in tensors.items() if place.startswith(prefix)}


def _encode(arrays: dict[str, np.ndarray], place: str, tensor: Tensor, bits: int) -> None:
    """Put ``tensor`` under ``place``, in ``bits`` per value; whole numbers and vectors, which are few, as they are."""
    values = tensor.detach().cpu().contiguous().numpy()
    if values.dtype.kind != "f" or values.ndim <= 1:
        arrays[f"{place}:whole"] = values
        return
    if bits == 16:
        scale = np.float32(np.abs(values).max()) or np.float32(1)
        arrays[f"{place}:half"], arrays[f"{place}:scale"] = (values / scale).astype(np.float16), scale.reshape(1)
        return
    rows = values.reshape(len(values), -1)
    largest = 2 ** (bits - 1) - 1
    scales = np.abs(rows).max(axis=1, keepdims=True).astype(np.float32) / largest
    numbers = np.rint(rows / np.where(scales > 0, scales, 1)).astype(np.int16)
    arrays[f"{place}:scale"], arrays[f"{place}:shape"] = scales, np.array(values.shape, np.int32)
    # The bytes of high and low digits apart compress better.
    if bits == 8:
        arrays[f"{place}:byte"] = numbers.astype(np.int8)
    else:
        unsigned = (numbers.ravel() + 2048).astype(np.uint16)
        high = (unsigned >> 8).astype(np.uint8)
        high = np.pad(high, (0, len(high) % 2))
        arrays[f"{place}:low"] = (unsigned & 255).astype(np.uint8)
        arrays[f"{place}:high"] = high[0::2] << 4 | high[1::2]


def _encode_second(arrays: dict[str, np.ndarray], place: str, tensor: Tensor, whole: bool) -> None:
    """Second moments, which span many orders of magnitude: their roots, or the means of rows and columns."""
    values = tensor.detach().cpu().float()
    if values.ndim <= 1:
        arrays[f"{place}:whole"] = values.numpy()
    elif whole:
        roots = values.sqrt().numpy()
        peak = np.float32(roots.max()) or np.float32(1)
        arrays[f"{place}:roots"], arrays[f"{place}:peak"] = (roots / peak).astype(np.float16), peak.reshape(1)
    else:
        rows = values.reshape(len(values), -1)
        arrays[f"{place}:rows"], arrays[f"{place}:columns"] = rows.mean(1).numpy(), rows.mean(0).sqrt().numpy()
        peak = np.float32(arrays[f"{place}:columns"].max()) or np.float32(1)
        arrays[f"{place}:columns"] = (arrays[f"{place}:columns"] / peak).astype(np.float16)
        arrays[f"{place}:peak"] = np.float32(peak).reshape(1)
        arrays[f"{place}:shape"] = np.array(values.shape, np.int32)


def _decode(arrays: dict[str, np.ndarray], place: str) -> Tensor:
    def of(kind: str) -> np.ndarray | None:
        return arrays.get(f"{place}:{kind}")

    for kind in ("whole", "plain"):
        if (found := of(kind)) is not None:
            return torch.from_numpy(np.array(found))
    if (shape := of("zero")) is not None:
        return torch.zeros(tuple(int(side) for side in shape))
    if (half := of("half")) is not None:
        return torch.from_numpy(half.astype(np.float32) * arrays[f"{place}:scale"])
    if (roots := of("roots")) is not None:
        return torch.from_numpy((roots.astype(np.float32) * arrays[f"{place}:peak"]) ** 2)
    shape = arrays[f"{place}:shape"]
    if (columns := of("columns")) is not None:
        of_columns = (columns.astype(np.float32) * arrays[f"{place}:peak"]) ** 2
        of_rows = arrays[f"{place}:rows"]
        values = np.outer(of_rows, of_columns) / max(float(of_rows.mean()), 1e-30)
    else:
        numbers = of("byte")
        if numbers is None:
            low, packed = arrays[f"{place}:low"], arrays[f"{place}:high"]
            high = np.stack([packed >> 4, packed & 15], axis=1).ravel()[: len(low)]
            numbers = (high.astype(np.int32) << 8 | low) - 2048
        scales = arrays[f"{place}:scale"]
        values = numbers.reshape(len(scales), -1).astype(np.float32) * scales
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def _write(content: bytes, path: Path) -> None:
    part = partial_name(path)
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"The state {path} cannot be written ({error.strerror or error}).", "Make room, or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
