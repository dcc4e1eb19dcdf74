"""Segmentation of a CT in memory: resampling, sliding window, labels, maps, measurements and review."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch

from ..errors import Cancelled, ImageError, summarize_error
from ..imaging.grid import Grid, make_model_grid
from ..imaging.intensity import apply_window
from ..imaging.resampling import resample
from ..imaging.size_limits import require_allowed_size
from ..method.network import DCANet
from ..method.streaming import RequestedOutputs
from ..organs import Organ, Vocabulary
from ..review.builder import ReviewCollector, ReviewResult, add_evidence_options
from ..types import Box, ProgressCallback
from .backends.base import Backend, Task
from .backends.eager import EagerBackend
from .backends.selection import check_backend, choose_backend
from .device import choose_device
from .measurements import OrganMeasurement, measure
from .options import SegmentOptions, require_available
from .planes import LabelConsumer, MapConsumer, PlaneConsumer, iter_planes
from .plausibility import check_plausibility
from .postprocessing import remove_islands
from .process_settings import trim_freed_memory
from .region import Body, extend_planes, find_abdominal_planes, find_body, get_full_region
from .sliding_window import OTHER, Planes, Triple, WindowPrediction, average_planes, extract_center_window

__all__ = ["Model", "ModelMetadata", "Result", "SegmentOptions", "Segmenter"]


@dataclass
class Result:
    """Labels and maps of one CT. Maps that were not requested are None, or missing from ``attention``.

    ``labels`` (uint8): organs on the CT's grid.
    ``measurements``: volume and mean HU of each requested organ.
    ``device``, ``backend``: where the network ran, and what computed it.
    ``attention``: level to expert to float32 image on the model grid; sums to one over the experts.
    ``dominant_expert``: uint8 image on the CT's grid, 1 head, 2 medium, 3 tail; 0 exactly where ``labels`` are 0.
    ``entropy``, ``disagreement``: float32 images, 0 to 1, on the model grid.
    ``review``: the findings, None if they were not requested.
    ``attention_by_organ``: mean attention, level to organ key to expert.
    ``islands_ml``: volume of the islands removed from each organ, by key.
    ``seconds``: time of each phase. ``warnings``: messages for the user.
    """

    labels: sitk.Image
    measurements: tuple[OrganMeasurement, ...]
    device: str
    backend: str = ""
    attention: dict[int, dict[str, sitk.Image]] = field(default_factory=dict)
    dominant_expert: sitk.Image | None = None
    entropy: sitk.Image | None = None
    disagreement: sitk.Image | None = None
    review: ReviewResult | None = None
    attention_by_organ: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    islands_ml: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def organs(self) -> tuple[Organ, ...]:
        """The requested organs."""
        return tuple(measurement.organ for measurement in self.measurements)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume in ml of each requested organ, by key."""
        return {measurement.organ.key: measurement.ml for measurement in self.measurements}


class Stopwatch:
    """Sums seconds by phase; a phase may be entered any number of times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside the ``with`` block to the phase ``name``."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    @contextmanager
    def remainder(self, name: str) -> Iterator[None]:
        """Add to the phase ``name`` the time inside the ``with`` block that its inner phases do not count."""
        counted = sum(self.seconds.values())
        start = perf_counter()
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - counted
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start - inner


def report_progress(progress: ProgressCallback | None, fraction: float, message: str) -> None:
    """Call ``progress``, if given, with ``fraction`` (0 to 1) and ``message``."""
    if progress:
        progress(fraction, message)


# Shares of the progress: nearly all of the time goes into the windows.
_RESAMPLED = 0.03
_WINDOWS_DONE = 0.97


class ModelMetadata(Protocol):
    """What the segmenter needs to know about a trained model."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The organs, with labels 1 to K."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Spacing (x, y, z) of the model grid in mm."""

    @property
    def orientation(self) -> str:
        """Directions of increasing x, y and z index of the model grid, such as RAS."""

    @property
    def hu_window(self) -> tuple[float, float]:
        """The HU that are mapped to 0 and 1."""

    @property
    def anti_aliasing(self) -> bool:
        """Whether a CT is low-pass filtered before it is resampled to a coarser model grid."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """Window size (depth, height, width) in voxels."""

    @property
    def overlap(self) -> float:
        """Default share of a window's side that neighbors have in common."""


class Model(Protocol):
    """A trained model: a ``models.bundle.Bundle``, or any other object with its metadata and network."""

    @property
    def metadata(self) -> ModelMetadata:
        """Input and output of the network."""

    @property
    def weights_sha256(self) -> str | None:
        """Identifies the weights in caches; None disables caching."""

    def network(self, device: str | torch.device = "cpu") -> DCANet:
        """Return the network in evaluation mode on ``device``."""


class Segmenter:
    """Segments CTs with one model, which is loaded once.

    ``device`` and ``half`` are those of ``device.choose_device``. ``backend`` is what computes the network, one
    of ``backends.selection.CHOICES``. ``coarse`` returns the model that looks for the abdomen if the options request
    it; None means the model itself. If a device runs out of memory, the next CT still starts on it: it may be smaller.
    Raises UserError for a device or a backend that cannot be used on this computer.
    """

    def __init__(
        self,
        model: Model,
        device: str = "auto",
        half: bool | None = None,
        backend: str = EagerBackend.name,
        coarse: Callable[[], Model] | None = None,
    ) -> None:
        self._model = model
        self._half = half
        self._coarse = coarse
        self._abdomen_segmenter: Segmenter | None = None
        self.device = choose_device(device, half)
        check_backend(backend, self.device)
        self._backend_name = backend
        self._backend: tuple[RequestedOutputs, Backend] | None = None
        self._networks: dict[torch.device, DCANet] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        """The organs that the model segments, with the labels it writes."""
        return self._model.metadata.vocabulary

    def segment(
        self,
        ct: sitk.Image,
        options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Segment ``ct``, a 3D scalar image in HU (see ``imaging.readers``).

        ``progress(fraction, message)`` is called at each window, and ``cancelled()`` before each. Raises Cancelled if
        it returns True, UserError for options that the model does not support or if the memory is too small, and
        ImageError for a CT that is too large at the model's spacing.
        """
        metadata = self._model.metadata
        kept = options.get_kept_labels(metadata.vocabulary)
        clock = Stopwatch()
        warnings: list[str] = []
        report_progress(progress, 0.0, "Resampling")
        with clock.phase("load network"):
            network = self._networks.get(self.device.torch_device) or self._load_network(self.device.torch_device)
            needed = add_evidence_options(options, network)
            require_available(needed, network.options)
        with clock.phase("resampling"):
            ct_grid = Grid.from_image(ct)
            grid = make_model_grid(ct, metadata.spacing, metadata.orientation)
            require_allowed_size(
                grid.size,
                f"The CT, resampled to the model's spacing of {_format_spacing(metadata.spacing)} mm,",
                f"Check the spacing of the CT, {_format_spacing(ct_grid.spacing)} mm.",
            )
            volume, body = self._prepare_input(ct, grid, options.body_box)
        region = self._select_region(ct, grid, body, options, progress, cancelled, clock, warnings)
        # Frees the rest of the volume, which is not needed.
        volume = volume[region].clone()
        with clock.phase("load network"):
            predict = self._make_window_prediction(volume, network, needed, progress, warnings)
            network = predict.network
            # Reading, resampling and converting allocated blocks of other sizes than the windows will.
            trim_freed_memory()
        if any(length < side for length, side in zip(grid.shape, metadata.patch, strict=True)):
            warnings.append(
                f"At the model's spacing, the CT has {_format_size(grid.shape)} voxels, less than one window ("
                f"{_format_size(metadata.patch)}). It was padded, and organs near its border are less reliable."
            )

        labels = LabelConsumer(ct_grid, grid, metadata.orientation, kept)
        maps = MapConsumer(options, ct_grid, grid, metadata.vocabulary, predict.expert_slots, kept)
        review = None
        consumers: list[PlaneConsumer] = [labels]
        if options.wants_maps:
            consumers.append(maps)
        if options.review:
            owners = network.options["owners"]
            review = ReviewCollector(needed, metadata.vocabulary, owners, ct_grid, grid, metadata.orientation)
            consumers.append(review)
        with clock.remainder("averaging windows"):
            planes = self._predict_planes(volume, region, body, predict, options, progress, cancelled, clock)
            for plane in iter_planes(planes, region, grid.shape, len(metadata.vocabulary) + 1, needed):
                for consumer in consumers:
                    with clock.phase(consumer.phase):
                        consumer.take(plane)

        report_progress(progress, _WINDOWS_DONE, "Finishing")
        label_array = labels.result()
        removed: dict[int, int] = {}
        if not options.keep_islands:
            with clock.phase("islands"):
                removed = remove_islands(label_array, metadata.vocabulary.compact)
        with clock.phase("measuring"):
            hu = sitk.GetArrayViewFromImage(ct)
            measurements = measure(
                label_array, hu, ct_grid.volume_ml_per_voxel, metadata.vocabulary, kept, ct_grid.spacing
            )
            warnings += check_plausibility(label_array, ct_grid, metadata.vocabulary, kept, hu)
        review_result = None
        if review is not None:
            with clock.phase("review"):
                try:
                    review_result = review.result(label_array, measurements)
                # The labels are complete; no error in the review may discard them.
                except Exception as error:
                    warnings.append(f"The review findings are missing: {summarize_error(error)}")
        with clock.phase("maps"):
            finished = maps.result(label_array)
        result = Result(
            labels=ct_grid.make_image(label_array),
            measurements=measurements,
            device=predict.plan.device.description,
            backend=predict.backend,
            attention=finished.attention,
            dominant_expert=finished.dominant_expert,
            entropy=finished.entropy,
            disagreement=finished.disagreement,
            review=review_result,
            attention_by_organ=finished.attention_by_organ,
            islands_ml={
                metadata.vocabulary.by_label[label].key: voxels * ct_grid.volume_ml_per_voxel
                for label, voxels in removed.items()
            },
            seconds=clock.seconds,
            warnings=warnings,
        )
        # Not earlier: the steps after the windows reuse their memory without page faults.
        trim_freed_memory()
        report_progress(progress, 1.0, "Finishing")
        return result

    def _prepare_input(self, ct: sitk.Image, grid: Grid, find: bool) -> tuple[torch.Tensor, Body | None]:
        """Return the windowed CT (depth, height, width) on ``grid``, and the body in it if ``find``.

        Raises ImageError if values are not finite: the network would find nothing, without an error.
        """
        low, high = self._model.metadata.hu_window
        resampled = resample(ct, grid, anti_aliasing=self._model.metadata.anti_aliasing)
        hu = sitk.GetArrayViewFromImage(resampled)
        # A sum is not finite if a value is not, and needs no further memory.
        if not np.isfinite(hu.sum(dtype=np.float64)):
            raise ImageError(
                "The CT has values that are no numbers, or too large for HU.",
                "Export it again from the original DICOM, or replace these values with -1024 HU.",
            )
        body = find_body(hu, grid.spacing) if find else None
        return torch.from_numpy(apply_window(hu, low, high)), body

    def _select_region(
        self,
        ct: sitk.Image,
        grid: Grid,
        body: Body | None,
        options: SegmentOptions,
        progress: ProgressCallback | None,
        cancelled: Callable[[], bool] | None,
        clock: Stopwatch,
        warnings: list[str],
    ) -> Box:
        """Return the region (z, y, x) of ``grid`` to segment: the body, or its part around the abdomen."""
        patch = self._model.metadata.patch
        region = get_full_region(grid.shape) if body is None else body.compute_bounding_box(patch)
        if body is not None and not body.blocks.any():
            # Nothing but air: run no window.
            return slice(0, 0), *region[1:]
        if not options.find_abdomen:
            return region
        with clock.phase("finding the abdomen"):
            abdomen = self._find_abdomen(ct, grid, progress, cancelled)
        if abdomen is None:
            warnings.append("No abdomen was found in this scan, so the whole scan was segmented.")
            return region
        return extend_planes(abdomen, patch[0], grid.shape[0]), *region[1:]

    def _find_abdomen(
        self, ct: sitk.Image, grid: Grid, progress: ProgressCallback | None, cancelled: Callable[[], bool] | None
    ) -> slice | None:
        """Return the planes of ``grid`` around the organs that the coarse model finds, without window overlap."""
        if self._abdomen_segmenter is None:
            model = self._model if self._coarse is None else self._coarse()
            self._abdomen_segmenter = Segmenter(model, str(self.device.torch_device), self._half, self._backend_name)

        def report_coarse_progress(fraction: float, message: str) -> None:
            report_progress(progress, _RESAMPLED * fraction, "Finding the abdomen")

        coarse = self._abdomen_segmenter
        labels = coarse.segment(ct, SegmentOptions(overlap=0.0), report_coarse_progress, cancelled).labels
        return find_abdominal_planes(labels, coarse.vocabulary, grid)

    def _load_network(self, device: torch.device) -> DCANet:
        """Return the network with its weights on ``device``, loading it again if the weights were freed."""
        if device not in self._networks or not self._networks[device].has_weights:
            self._networks[device] = self._model.network(device).eval()
        return self._networks[device]

    def _make_window_prediction(
        self,
        volume: torch.Tensor,
        network: DCANet,
        needed: SegmentOptions,
        progress: ProgressCallback | None,
        warnings: list[str],
    ) -> WindowPrediction:
        def report(message: str) -> None:
            report_progress(progress, 0.0, message)

        predict = WindowPrediction(
            self._load_network,
            needed,
            self.device,
            warnings.append,
            lambda task: self._get_backend(task, volume, report, warnings.append),
            self._model.metadata.patch,
            self._model.weights_sha256,
            network,
        )
        self._networks[self.device.torch_device] = predict.network
        return predict

    def _get_backend(
        self, task: Task, volume: torch.Tensor, report: Callable[[str], None], warn: Callable[[str], None]
    ) -> Backend:
        """Return the backend for ``task``, the one of the last CT if it has the same outputs."""
        if self._backend is None or self._backend[0] != task.wanted:
            if not volume.numel():
                # Nothing but air: no window will be run, and there is none to measure the backends on.
                return EagerBackend(task)
            # Free the old one first: each holds the network's memory for a window.
            self._backend = None
            if not task.network.has_weights:
                task = replace(task, network=self._load_network(task.device.torch_device))
            window_batch = extract_center_window(volume, task.patch)
            self._backend = task.wanted, choose_backend(self._backend_name, task, window_batch, report, warn)
        return self._backend[1]

    def _predict_planes(
        self,
        volume: torch.Tensor,
        region: Box,
        body: Body | None,
        predict: WindowPrediction,
        options: SegmentOptions,
        progress: ProgressCallback | None,
        cancelled: Callable[[], bool] | None,
        clock: Stopwatch,
    ) -> Iterator[tuple[int, Planes]]:
        """Run the network on the windows of ``volume`` (the ``region``) that contain body; yield finished planes."""
        metadata = self._model.metadata

        def timed_predict(windows: torch.Tensor) -> dict[str, torch.Tensor]:
            with clock.phase("network"):
                return predict(windows)

        def on_window(done: int, total: int) -> None:
            if cancelled and cancelled():
                raise Cancelled
            if done == total:
                # The last planes are the most expensive step in memory, and need nothing of this.
                predict.release_memory()
            fraction = _RESAMPLED + (_WINDOWS_DONE - _RESAMPLED) * done / total
            report_progress(progress, fraction, f"Segmenting window {min(done + 1, total)} of {total}")

        def contains_body(position: Triple) -> bool:
            first = [at + side.start for at, side in zip(position, region, strict=True)]
            return body is None or body.touches(first, metadata.patch)

        return average_planes(
            volume,
            metadata.patch,
            timed_predict,
            metadata.overlap if options.overlap is None else options.overlap,
            options.weighting,
            predict.plan.batch,
            on_window,
            contains_body,
            # Only the disagreement and the review use it, and half precision is enough for them.
            half=(OTHER,),
        )


def _format_spacing(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{step:.3g}" for step in spacing)


def _format_size(size: tuple[int, ...] | torch.Size) -> str:
    depth, height, width = size
    return f"{width} x {height} x {depth}"
