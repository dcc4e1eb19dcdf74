"""One run on several processes, as ``torchrun`` starts them: one for each GPU, or for each part of a machine's cores.

Every process draws the whole batch from the same generator and keeps its own share, so a run on n processes sees the
patches that one process would have seen, and its gradient is the mean over them. (Dice over the channels ``present``
and weights by class are means of their own in each process; with the paper's loss nothing differs.)
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


# How long one process may wait for another that prepares data or validates. PyTorch's own limit, 10 or 30 minutes,
# stays for the steps, where a process that does not come has failed.
_PATIENCE = timedelta(days=14)

_Items = TypeVar("_Items", bound=_Sliceable)


# Made along with the group of all processes, and ended with it.
_patient: Any = None


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; the first one writes files and speaks to the user."""

    rank: int = 0
    count: int = 1
    # On the CPU and with patience, for decisions and waiting.
    patient: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: _Items) -> _Items:
        """This process's part of a batch."""
        if len(items) % self.count:
            raise UserError(
                f"A batch of {len(items)} cannot be shared by {self.count} processes.",
                f"Choose a --batch that {self.count} divides.",
            )
        size = len(items) // self.count
        shared: _Items = items[self.rank * size : (self.rank + 1) * size]
        return shared

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """Means over the processes, which all have the same names."""
        if not values:
            return {}
        joined = torch.stack([value.detach().float() for value in values.values()])
        if self.count > 1:
            distributed.all_reduce(joined)
            joined /= self.count
        return dict(zip(values, joined.tolist(), strict=True))

    def agree(self, decision: bool) -> bool:
        """The first process's decision, for all: whether the time is over, say."""
        if self.count == 1:
            return decision
        shared = torch.tensor([decision])
        distributed.broadcast(shared, src=0, group=self.patient)
        return bool(shared)

    def any(self, decision: bool) -> bool:
        """Whether any process has decided so, for all: whether one was asked to end, say."""
        if self.count == 1:
            return decision
        found = torch.tensor([int(decision)])
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self.patient)
        return bool(found)

    def wait(self) -> None:
        """Until all are here, however long the first one prepares data or validates."""
        if self.count > 1:
            distributed.barrier(group=self.patient)

    def wrapped(self, module: nn.Module, device: torch.device) -> nn.Module:
        """``module``, or with several processes one that averages gradients over them."""
        if self.count == 1:
            return module
        # A stage or a part of the step uses some of the weights only.
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def join(device: torch.device) -> Processes:
    """The processes that ``torchrun`` started, or this one alone; on CUDA, ``device`` becomes this process's.

    Repeated calls give the same answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    global _patient
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        _patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return Processes(distributed.get_rank(), distributed.get_world_size(), _patient)


def rank() -> int:
    """This process's number in its group, 0 where it is alone."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes; ``values`` itself where this one is alone.

    For statistics that a strategy keeps in buffers: every process must arrive at the same numbers, because buffers of
    the first process replace those of the others at each forward pass.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def leave() -> None:
    """End the group of processes, where there is one."""
    global _patient
    _patient = None
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """This process's own GPU where ``torchrun`` started one for each; else ``device``."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def without_averaging(module: nn.Module) -> AbstractContextManager[Any]:
    """Gradients stay in this process within: they are averaged along with those of a later part of the step."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
