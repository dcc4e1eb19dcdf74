"""Weights from and to a file: no code, nothing missing, nothing surprising."""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import BundleError, require_memory
from ..method.network import DCANet
from .metadata import Weights
from .metadata_reading import GET_AGAIN
from .weight_file import read_checked

StoredType = Literal["float16", "float32"]


def write_weights(network: DCANet, folder: Path, file: str, dtype: StoredType) -> Weights:
    """Store the weights of ``network`` as ``folder / file``; give size and SHA-256 of what was written.

    float16 halves the file and keeps three digits; a tensor with values beyond its range stays float32.
    """
    buffer = io.BytesIO()
    torch.save({name: _stored(tensor, dtype) for name, tensor in network.state_dict().items()}, buffer)
    content = buffer.getvalue()
    (folder / file).write_bytes(content)
    return Weights(file, hashlib.sha256(content).hexdigest(), len(content), dtype)


def _stored(tensor: Tensor, dtype: StoredType) -> Tensor:
    plain = tensor.detach().cpu().contiguous()
    if not plain.is_floating_point():
        return plain
    stored = plain.to(getattr(torch, dtype))
    return stored if torch.isfinite(stored).all() else plain.float()


def read_weights(folder: Path, weights: Weights) -> dict[str, Tensor]:
    """The tensors of a weight file in float32, on the CPU.

    The bytes that are checked are the bytes that are loaded. Raises BundleError for a file that is missing, is not
    the one the metadata describe, holds more than tensors, or cannot be read.
    """
    content = read_checked(folder, weights)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pickled = next((archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")), b"")
    except zipfile.BadZipFile:
        # No file of torch.save; it goes no further, whatever old format torch.load might see in it.
        raise _refusal(content, weights) from None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _refusal(pickled, weights) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        require_memory(error)
        raise _unreadable(weights) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise BundleError(f"{weights.file} is no table of named weights.", GET_AGAIN)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def fill(network: DCANet, state: Mapping[str, Tensor], file: str) -> None:
    """Put ``state`` into ``network``. Raises BundleError unless each weight is there, of its shape, and finite."""
    expected = network.state_dict()
    missing = [name for name in expected if name not in state]
    surplus = [name for name in state if name not in expected]
    if missing:
        raise BundleError(f"{file} lacks weights of the network: {_first(missing)}.", GET_AGAIN)
    if surplus:
        raise BundleError(f"{file} has weights that the network does not have: {_first(surplus)}.", GET_AGAIN)
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            found, wanted = (" x ".join(map(str, shape)) for shape in (state[name].shape, tensor.shape))
            raise BundleError(f"{file}: {name} has the shape {found}, the network needs {wanted}.", GET_AGAIN)
        if not torch.isfinite(state[name]).all():
            raise BundleError(f"{file}: {name} holds values that are not finite.", GET_AGAIN)
    network.load_state_dict(dict(state))


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _refusal(pickled: bytes, weights: Weights) -> BundleError:
    """What to say of a pickle that cannot be loaded as weights: does it name Python objects, or is it just damaged?"""
    try:
        names_objects = any(
            opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") for opcode, _, _ in pickletools.genops(pickled)
        )
    except ValueError:
        names_objects = False
    if not names_objects:
        return _unreadable(weights)
    return BundleError(
        f"{weights.file} holds more than weights: it could run code on this computer. It was not opened.",
        "Do not use this model unless you trust who made it; ask for a file with nothing but weights.",
    )


def _unreadable(weights: Weights) -> BundleError:
    return BundleError(f"{weights.file} cannot be read as PyTorch weights.", GET_AGAIN)
