"""Writing and loading of weights, with a check that the file contains exactly the tensors of the network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..errors import BundleError
from ..method.ensemble import create_network
from ..method.network import DCANet
from .metadata import Weights
from .metadata_reader import GET_AGAIN, read_metadata
from .weight_files import open_described
from .weight_headers import BYTES_OF_TYPE, StoredTensor, list_stored_tensors, make_safetensors_header

StoredType = Literal["float16", "float32"]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def write_weights(network: nn.Module, folder: Path, file: str, dtype: StoredType) -> Weights:
    """Store the weights of ``network`` as the safetensors file ``folder / file``; returns its size and SHA-256.

    float16 halves the file and keeps three digits; a tensor with values beyond its range is stored as float32.
    """
    stored = {name: _cast_for_storage(tensor, dtype) for name, tensor in network.state_dict().items()}
    # The widest types first, so that every number is aligned to its size.
    stored = dict(sorted(stored.items(), key=lambda item: (-item[1].element_size(), item[0])))
    table = {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in stored.items()}
    parts = [make_safetensors_header(table), *(_to_bytes(tensor) for tensor in stored.values())]
    digest = hashlib.sha256()
    with (folder / file).open("wb") as stream:
        for part in parts:
            digest.update(part)
            stream.write(part)
    return Weights(file, digest.hexdigest(), sum(map(len, parts)), dtype)


def _cast_for_storage(tensor: Tensor, dtype: StoredType) -> Tensor:
    plain = tensor.detach().cpu().contiguous()
    if not plain.is_floating_point():
        return plain
    stored = plain.to(getattr(torch, dtype))
    return stored if torch.isfinite(stored).all() else plain.float()


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def load_weights(folder: Path, weights: Weights, build: Callable[[], NetworkT]) -> NetworkT:
    """The network returned by ``build`` with the weights of the bundle in ``folder`` (float32, on the CPU).

    The tensors that the file declares are compared with those of the network before any weight is read or the network
    is built. Raises BundleError if the options do not define a network, or if the weight file is missing, is not the
    one described in the metadata, contains more than tensors, or contains other tensors than the network's.
    """
    try:
        with torch.device("meta"):
            planned = build()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"The model's network options are wrong: {error}.", GET_AGAIN) from None
    with open_described(folder, weights) as file:
        table = list_stored_tensors(file, weights.bytes, weights.file)
        _require_fitting(table, planned, weights.file)
        state = {name: _read(file, tensor, name, weights.file) for name, tensor in table.items()}
    network = build()
    network.load_state_dict(state)
    return network


def load_network(folder: Path, metadata_network: Mapping[str, object], weights: Weights) -> DCANet:
    """The network with these options and the weights of the bundle; see ``load_weights``."""
    return load_weights(folder, weights, lambda: create_network(metadata_network))


def with_weights(network: DCANet, bundle: str) -> DCANet:
    """``network`` with the weights of the bundle in the folder ``bundle``. MONAI's configuration calls this function.

    Raises BundleError as ``load_network`` does.
    """
    folder = Path(bundle)
    network.load_state_dict(load_network(folder, network.options, read_metadata(folder).weights).state_dict())
    return network


def _require_fitting(table: Mapping[str, StoredTensor], network: nn.Module, file: str) -> None:
    """Raise BundleError unless the table has exactly the weights of ``network``, with the same shapes and types."""
    expected = network.state_dict()
    missing = [name for name in expected if name not in table]
    surplus = [name for name in table if name not in expected]
    if missing:
        raise BundleError(f"{file} lacks weights of the network: {_format_names(missing)}.", GET_AGAIN)
    if surplus:
        raise BundleError(f"{file} has weights that the network does not have: {_format_names(surplus)}.", GET_AGAIN)
    for name, tensor in expected.items():
        stored = table[name]
        if stored.shape != tuple(tensor.shape):
            found, wanted = (" x ".join(map(str, shape)) for shape in (stored.shape, tensor.shape))
            raise BundleError(f"{file}: {name} has the shape {found}, but the network needs {wanted}.", GET_AGAIN)
        is_number = stored.dtype in ("float16", "float32")
        if stored.dtype not in BYTES_OF_TYPE or is_number != tensor.is_floating_point():
            raise BundleError(f"{file}: {name} has values of type {stored.dtype}.", GET_AGAIN)


def _read(file: BinaryIO, stored: StoredTensor, name: str, path: str) -> Tensor:
    """A tensor from the file; floating-point numbers become float32."""
    content = bytearray(stored.bytes)
    file.seek(stored.offset)
    if file.readinto(content) != len(content):  # type: ignore[attr-defined]
        raise BundleError(f"{path} became shorter while it was read.", GET_AGAIN)
    tensor = torch.frombuffer(content, dtype=getattr(torch, stored.dtype)).reshape(stored.shape)
    if not tensor.is_floating_point():
        return tensor
    if not torch.isfinite(tensor).all():
        raise BundleError(f"{path}: {name} contains values that are not finite.", GET_AGAIN)
    return tensor.float()


def _format_names(names: list[str]) -> str:
    shown = names[0][:100]
    return shown if len(names) == 1 else f"{shown} and {len(names) - 1} more"
