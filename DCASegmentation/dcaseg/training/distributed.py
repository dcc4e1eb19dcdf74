"""Training with several processes started by ``torchrun``: one per GPU, or one per group of CPU cores.

The processes share the patches that a single process would draw, and average their gradients. The result equals that of
one process with the paper's loss. It differs if the loss averages over what is in the batch (Dice of the channels
``present``, class weights), because each process then averages over its own share.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError


class _Sliceable(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


# How long a process may wait for another one that prepares data or validates. During steps PyTorch's own limit of 10
# or 30 minutes applies: a process that takes longer has failed.
_WAITING_TIMEOUT = timedelta(days=14)

_Items = TypeVar("_Items", bound=_Sliceable)


# The process group for waiting; it is created and destroyed together with the default group.
_waiting_group: Any = None


@dataclass(frozen=True)
class Processes:
    """The ``rank`` of this process among ``count`` processes. The first one writes files and messages."""

    rank: int = 0
    count: int = 1
    # A CPU process group with a long timeout, for decisions and waiting.
    waiting_group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def share(self, items: _Items) -> _Items:
        """This process's part of a batch. Raises UserError if the batch cannot be divided evenly."""
        if len(items) % self.count:
            raise UserError(
                f"A batch of {len(items)} cannot be divided among {self.count} processes.",
                f"Choose a --batch that is a multiple of {self.count}.",
            )
        size = len(items) // self.count
        shared: _Items = items[self.rank * size : (self.rank + 1) * size]
        return shared

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """The mean of each value (a scalar tensor) over the processes, which must all have the same names."""
        if not values:
            return {}
        stacked = torch.stack([value.detach().float() for value in values.values()])
        if self.count > 1:
            distributed.all_reduce(stacked)
            stacked /= self.count
        return dict(zip(values, stacked.tolist(), strict=True))

    def broadcast(self, decision: bool) -> bool:
        """The first process's ``decision``, for example whether the time is over."""
        if self.count == 1:
            return decision
        shared = torch.tensor([decision])
        distributed.broadcast(shared, src=0, group=self.waiting_group)
        return bool(shared)

    def any(self, decision: bool) -> bool:
        """Whether ``decision`` is true in any process, for example whether one was interrupted."""
        if self.count == 1:
            return decision
        highest = torch.tensor([int(decision)])
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=self.waiting_group)
        return bool(highest)

    def wait(self) -> None:
        """Wait for all processes, however long the first one prepares data or validates."""
        if self.count > 1:
            distributed.barrier(group=self.waiting_group)

    def wrap_model(self, module: nn.Module, device: torch.device) -> nn.Module:
        """``module``, wrapped to average gradients if there are several processes."""
        if self.count == 1:
            return module
        # A stage, or one loss of a step, uses only some of the weights.
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def join(device: torch.device) -> Processes:
    """Join the processes started by ``torchrun``, or return this single one. On CUDA, ``device`` becomes the current
    one.

    It can be called repeatedly.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    global _waiting_group
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        _waiting_group = distributed.new_group(backend="gloo", timeout=_WAITING_TIMEOUT)
    return Processes(distributed.get_rank(), distributed.get_world_size(), _waiting_group)


def rank() -> int:
    """The rank of this process; 0 if it is the only one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes; ``values`` itself if there is only one.

    For statistics in a strategy's buffers. They must be equal in all processes, because each forward pass overwrites
    the buffers of the other processes with those of the first.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def leave() -> None:
    """Destroy the process group, if there is one."""
    global _waiting_group
    _waiting_group = None
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def get_local_device(device: torch.device) -> torch.device:
    """This process's GPU if ``torchrun`` started the process and ``device`` is CUDA; otherwise ``device``."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def without_averaging(module: nn.Module) -> AbstractContextManager[Any]:
    """A context in which gradients are not averaged over the processes; the step's last backward pass averages all."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
