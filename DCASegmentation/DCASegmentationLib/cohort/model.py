"""The model of a worker process: loaded once, one case in the network at a time."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk
import torch

from ..bundle.loading import Bundle, default_model
from ..errors import BundleError
from ..inference.allocator import keep_freed_memory
from ..inference.device import is_out_of_memory
from ..inference.options import SegmentOptions
from ..inference.segmenter import Result, Segmenter
from .settings import Settings


class SharedSegmenter(Segmenter):
    """A segmenter that several threads of a process may call: one is in the network, the others read and write."""

    def __init__(self, model: Bundle, device: str, runtime: str) -> None:
        super().__init__(model, device, runtime=runtime, coarse=default_model)
        self.model = model
        self._turn = threading.Lock()

    def segment(
        self,
        ct: sitk.Image,
        options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """As ``Segmenter.segment``, in turn."""
        with self._turn:
            return super().segment(ct, options, progress, cancelled)


class WorkerModel:
    """What this process has loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segmenters: dict[tuple[str, str, str], SharedSegmenter] = {}
        self._turns: dict[int, threading.BoundedSemaphore] = {}
        self.loads = 0

    def segmenter(self, settings: Settings) -> SharedSegmenter:
        """The segmenter for ``settings``, made at the first call. Raises BundleError, and UserError for the device."""
        key = (settings.bundle, settings.device, settings.runtime)
        with self._lock:
            if key not in self._segmenters:
                self._segmenters[key] = self._load(settings)
            return self._segmenters[key]

    def turns(self, at_once: int) -> threading.BoundedSemaphore:
        """Bounds the cases this process holds in memory."""
        with self._lock:
            return self._turns.setdefault(at_once, threading.BoundedSemaphore(at_once))

    def _load(self, settings: Settings) -> SharedSegmenter:
        keep_freed_memory()
        if settings.threads:
            torch.set_num_threads(settings.threads)
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(settings.threads)
        bundle = Bundle.load(Path(settings.bundle))
        if bundle.weights.sha256 != settings.weights:
            raise BundleError(
                f"The model in {settings.bundle} on this worker ({platform.node()}) is another one.",
                "All workers must see the same folder of the model.",
            )
        self.loads += 1
        return SharedSegmenter(bundle, settings.device, settings.runtime)


PROCESS = WorkerModel()


def lacks_device_memory(error: BaseException, segmenter: Segmenter) -> bool:
    """Whether ``error`` says that the model itself does not fit into the memory of the segmenter's device."""
    return is_out_of_memory(error) and segmenter.device.torch_device.type != "cpu"
