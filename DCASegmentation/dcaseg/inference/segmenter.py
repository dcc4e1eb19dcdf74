"""A CT in, organs and expert maps out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from ..errors import Cancelled, in_a_line
from ..imaging.grid import Grid, canonical_view, model_grid
from ..imaging.intensity import window
from ..imaging.resampling import resample
from ..method.network import DCANet
from ..method.streaming import RequestedOutputs
from ..organs import Organ, Vocabulary
from ..review.builder import ReviewGathering, ReviewResult, options_with_evidence
from ..types import ProgressCallback
from .backends.base import Backend, Task
from .backends.eager import EagerBackend
from .backends.selection import check_backend, choose_backend
from .device import choose_device
from .label_resampling import GridCanvas, LabelResampler
from .maps import MapsOnModelGrid
from .measurements import OrganMeasurement, measure
from .options import SegmentOptions
from .plausibility import implausible
from .postprocessing import remove_islands
from .process_settings import give_back_freed_memory
from .region import Body, abdominal_planes, at_least, find_body, whole_region
from .sliding_window import (
    COVERED,
    OTHER,
    RESULT,
    Planes,
    Triple,
    WindowPrediction,
    attention_name,
    averaged_planes,
    check_abilities,
    middle_window,
)


@dataclass
class Result:
    """Labels and maps of one CT.

    ``labels`` (uint8) lie on exactly the CT's grid. ``attention`` (level to expert to float32 image, summing to one
    over the experts), ``entropy`` and ``disagreement`` (float32, 0 to 1) lie on the model grid, ``dominant_expert``
    (uint8: 0 background, 1 head, 2 medium, 3 tail) on the CT's, where it is 0 exactly where ``labels`` are; all are
    there if they were asked for.
    ``attention_by_organ`` holds mean attention: level to organ key to expert. ``seconds`` is the time of each phase,
    ``device`` where the network ran, ``runtime`` what ran it.
    ``islands_ml`` is what was taken out of each organ, by key, as too small and too far off to be it.
    ``review`` holds the places to check, None if they were not asked for.
    """

    labels: sitk.Image
    measurements: tuple[OrganMeasurement, ...]
    device: str
    runtime: str = ""
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
        """The organs that were asked for."""
        return tuple(measurement.organ for measurement in self.measurements)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume in ml of every organ that was asked for, by key."""
        return {measurement.organ.key: measurement.ml for measurement in self.measurements}


class Stopwatch:
    """Adds up seconds by phase; a phase may come again and again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block towards ``name``."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    @contextmanager
    def rest(self, name: str) -> Iterator[None]:
        """Count towards ``name`` the time inside the block that no phase within it has counted."""
        counted = sum(self.seconds.values())
        start = perf_counter()
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - counted
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start - inner


__all__ = ["Model", "ModelMetadata", "Result", "SegmentOptions", "Segmenter"]


# Shares of the whole run's progress: nearly all of the time goes into the windows.
_RESAMPLED = 0.03
_WINDOWS_DONE = 0.97


class ModelMetadata(Protocol):
    """What the segmenter must know of a trained model."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Organs, labels 1 to K."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Spacing (x, y, z) of the model grid in mm."""

    @property
    def orientation(self) -> str:
        """Directions of increasing x, y and z index, such as RAS."""

    @property
    def hu_window(self) -> tuple[float, float]:
        """HU that become 0 and 1."""

    @property
    def anti_aliasing(self) -> bool:
        """Whether a CT is filtered on its way to a coarser model grid."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """Window size (depth, height, width) in voxels."""

    @property
    def overlap(self) -> float:
        """Share of a window's side that neighbors have in common, where nothing else is asked for."""


class Model(Protocol):
    """A trained model: a ``bundle.Bundle``, or anything else that can give its network and say what it expects."""

    @property
    def metadata(self) -> ModelMetadata:
        """What the network expects and gives."""

    @property
    def weights_sha256(self) -> str | None:
        """Names the weights, for what may be kept of them from run to run; None where nothing may."""

    def network(self, device: str | torch.device = "cpu") -> DCANet:
        """The network in evaluation mode on ``device``."""


class Segmenter:
    """Runs one model on CT after CT; the network is loaded once.

    ``device`` and ``half`` are those of ``device.choose_device``, ``runtime`` is one of ``runtimes.choosing.CHOICES``:
    what runs the network. ``coarse`` gives the model that looks for the abdomen where the options ask for it; left out,
    it is the model itself. After memory ran out on a device, later runs start there again: the next CT may be smaller.
    Raises UserError for a device or a runtime that this computer lacks.
    """

    def __init__(
        self,
        model: Model,
        device: str = "auto",
        half: bool | None = None,
        runtime: str = EagerBackend.name,
        coarse: Callable[[], Model] | None = None,
    ) -> None:
        self._model = model
        self._half = half
        self._coarse = coarse
        self._finder: Segmenter | None = None
        self.device = choose_device(device, half)
        check_backend(runtime, self.device)
        self._runtime_name = runtime
        self._runtime: tuple[RequestedOutputs, Backend] | None = None
        self._networks: dict[torch.device, DCANet] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        """The organs the model knows, by the labels it writes."""
        return self._model.metadata.vocabulary

    def _network_on(self, device: torch.device) -> DCANet:
        """The network with its weights, loaded again if they were let go of."""
        if device not in self._networks or not self._networks[device].has_weights:
            self._networks[device] = self._model.network(device).eval()
        return self._networks[device]

    def _runtime_for(
        self, task: Task, volume: torch.Tensor, tell: Callable[[str], None], warn: Callable[[str], None]
    ) -> Backend:
        if self._runtime is None or self._runtime[0] != task.wanted:
            # The old one goes first: each holds the network's memory for a window.
            self._runtime = None
            if not task.network.has_weights:
                task = replace(task, network=self._network_on(task.device.torch_device))
            self._runtime = (
                task.wanted,
                choose_backend(self._runtime_name, task, middle_window(volume, task.patch), tell, warn),
            )
        return self._runtime[1]

    def segment(
        self,
        ct: sitk.Image,
        options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Segment ``ct`` (3D scalar, HU; see ``imaging.readers``).

        ``progress(fraction, message)`` is called at each window, ``cancelled`` is asked before each. Raises Cancelled
        when it says so, UserError for options this model cannot meet or memory that does not suffice.
        """
        metadata = self._model.metadata
        kept = options.kept_labels(metadata.vocabulary)
        clock = Stopwatch()
        warnings: list[str] = []
        _tell(progress, 0.0, "Resampling")
        with clock.phase("load network"):
            device = self.device.torch_device
            network = self._networks.get(device) or self._network_on(device)
            needed = options_with_evidence(options, network)
            check_abilities(network, needed)
        with clock.phase("resampling"):
            ct_grid = Grid.of(ct)
            grid = model_grid(ct, metadata.spacing, metadata.orientation)
            volume, body = self._windowed_volume(ct, grid, options.body_box)
        region = whole_region(grid.shape) if body is None else body.region(metadata.patch)
        if body is not None and not body.blocks.any():
            # Nothing but air: no plane is worth a window.
            region = (slice(0, 0), *region[1:])
        elif options.find_abdomen:
            with clock.phase("finding the abdomen"):
                abdomen = self._abdomen(ct, grid, progress, cancelled)
            if abdomen is None:
                warnings.append("No abdomen was found in this scan: all of it was segmented.")
            else:
                region = (at_least(abdomen, metadata.patch[0], grid.shape[0]), *region[1:])
        # The rest is never looked at.
        volume = volume[region].clone()
        with clock.phase("load network"):
            predict = WindowPrediction(
                self._network_on,
                needed,
                self.device,
                warnings.append,
                lambda task: self._runtime_for(task, volume, lambda text: _tell(progress, 0.0, text), warnings.append),
                metadata.patch,
                self._model.weights_sha256,
                network,
            )
            network = self._networks[device] = predict.network
            # Reading, resampling and converting took memory in other sizes than windows will.
            give_back_freed_memory()
        if any(length < side for length, side in zip(grid.shape, metadata.patch, strict=True)):
            warnings.append(
                f"At the model's spacing the CT has {_sides(grid.shape)} voxels, fewer than one window of "
                f"{_sides(metadata.patch)}: it was padded, and organs at its border are less certain."
            )

        label_array = np.zeros(ct.GetSize()[::-1], dtype=np.uint8)
        labels = LabelResampler(canonical_view(label_array, ct_grid, metadata.orientation), ct_grid, grid, kept)
        gathering = None
        if options.review:
            owners = network.options["owners"]
            gathering = ReviewGathering(needed, metadata.vocabulary, owners, ct_grid, grid, metadata.orientation)
        maps = MapsOnModelGrid(
            grid.shape,
            metadata.vocabulary,
            predict.expert_slots,
            sorted(set(options.attention_levels)),
            options.dominant_expert,
            options.entropy,
            options.disagreement,
            kept,
        )

        def timed_predict(windows: torch.Tensor) -> dict[str, torch.Tensor]:
            with clock.phase("network"):
                return predict(windows)

        def on_window(done: int, total: int) -> None:
            if cancelled and cancelled():
                raise Cancelled
            fraction = _RESAMPLED + (_WINDOWS_DONE - _RESAMPLED) * done / total
            _tell(progress, fraction, f"Segmenting window {min(done + 1, total)} of {total}")

        def holds_body(position: Triple) -> bool:
            first = [at + side.start for at, side in zip(position, region, strict=True)]
            return body is None or body.touches(first, metadata.patch)

        size = (grid.shape[1], grid.shape[2])
        canvases = {name: GridCanvas(region, size, certain=name in (RESULT, OTHER)) for name in predict.names}
        background = canvases[RESULT].blank(len(metadata.vocabulary) + 1)
        with clock.rest("averaging windows"):
            for z in range(region[0].start):
                self._take_background(z, background, labels, gathering, clock)
            for z, planes in averaged_planes(
                volume,
                metadata.patch,
                timed_predict,
                metadata.overlap if options.overlap is None else options.overlap,
                options.weighting,
                predict.plan.batch,
                on_window,
                holds_body,
            ):
                self._take_plane(region[0].start + z, planes, canvases, options, needed, labels, maps, gathering, clock)
            for z in range(region[0].stop, grid.shape[0]):
                self._take_background(z, background, labels, gathering, clock)

        _tell(progress, _WINDOWS_DONE, "Finishing")
        predict.rest()
        removed: dict[int, int] = {}
        if not options.keep_islands:
            with clock.phase("islands"):
                removed = remove_islands(label_array)
        with clock.phase("measuring"):
            measurements = measure(
                label_array,
                sitk.GetArrayViewFromImage(ct),
                ct_grid.volume_ml_per_voxel,
                metadata.vocabulary,
                kept,
                ct_grid.spacing,
            )
            hu = sitk.GetArrayViewFromImage(ct)
            warnings += implausible(label_array, ct_grid, metadata.vocabulary, kept, hu)
        review = None
        if gathering is not None:
            with clock.phase("review"):
                try:
                    review = gathering.finish(label_array, measurements)
                # The labels are complete; whatever is wrong with the review must not cost them.
                except Exception as error:
                    warnings.append(f"The findings to review were not made: {in_a_line(error)}")
        with clock.phase("maps"):
            deciders = maps.deciding_expert_on(label_array, grid, ct_grid)
        result = Result(
            labels=ct_grid.image_of(label_array),
            measurements=measurements,
            device=predict.plan.device.description,
            runtime=predict.runtime,
            attention={
                level: {expert: grid.image_of(values) for expert, values in experts.items()}
                for level, experts in maps.attention.items()
            },
            dominant_expert=None if deciders is None else ct_grid.image_of(deciders),
            entropy=grid.image_of(maps.entropy) if maps.entropy is not None else None,
            disagreement=grid.image_of(maps.disagreement) if maps.disagreement is not None else None,
            review=review,
            islands_ml={
                metadata.vocabulary.by_label[label].key: voxels * ct_grid.volume_ml_per_voxel
                for label, voxels in removed.items()
            },
            attention_by_organ=maps.attention_by_organ(),
            seconds=clock.seconds,
            warnings=warnings,
        )
        # Not before: what follows the windows takes the memory that they have left, at no page fault.
        give_back_freed_memory()
        _tell(progress, 1.0, "Finishing")
        return result

    def _abdomen(
        self, ct: sitk.Image, grid: Grid, progress: ProgressCallback | None, cancelled: Callable[[], bool] | None
    ) -> slice | None:
        """Planes of ``grid`` around the organs that the coarse model finds with windows side by side."""
        if self._finder is None:
            model = self._model if self._coarse is None else self._coarse()
            self._finder = Segmenter(model, str(self.device.torch_device), self._half, self._runtime_name)

        def tell(share: float, message: str) -> None:
            _tell(progress, _RESAMPLED * share, "Finding the abdomen")

        labels = self._finder.segment(ct, SegmentOptions(overlap=0.0), tell, cancelled).labels
        return abdominal_planes(labels, self._finder.vocabulary, grid)

    def _windowed_volume(self, ct: sitk.Image, grid: Grid, find: bool) -> tuple[torch.Tensor, Body | None]:
        """The network's input on ``grid``, and where the body is, if it is to be found."""
        low, high = self._model.metadata.hu_window
        resampled = resample(ct, grid, anti_aliasing=self._model.metadata.anti_aliasing)
        hu = sitk.GetArrayViewFromImage(resampled)
        body = find_body(hu, grid.spacing) if find else None
        return torch.from_numpy(window(hu, low, high)), body

    def _take_background(
        self,
        z: int,
        background: NDArray[np.float32],
        labels: LabelResampler,
        gathering: ReviewGathering | None,
        clock: Stopwatch,
    ) -> None:
        """A plane of which nothing was computed: the maps hold 0 there."""
        with clock.phase("labels on the CT's grid"):
            labels.add(z, background)
        if gathering is not None:
            with clock.phase("review"):
                gathering.add_background(z, background)

    def _take_plane(
        self,
        z: int,
        planes: Planes,
        canvases: Mapping[str, GridCanvas],
        options: SegmentOptions,
        needed: SegmentOptions,
        labels: LabelResampler,
        maps: MapsOnModelGrid,
        gathering: ReviewGathering | None,
        clock: Stopwatch,
    ) -> None:
        covered = planes[COVERED][0].cpu().numpy() if COVERED in planes else None

        def paste_region(name: str, values: torch.Tensor) -> NDArray[np.float32]:
            return canvases[name].paste_region(values.cpu().numpy(), covered)

        def probabilities(name: str) -> NDArray[np.float32]:
            return paste_region(
                name, planes[name] if options.average == "probabilities" else torch.softmax(planes[name], dim=0)
            )

        result = probabilities(RESULT)
        with clock.phase("labels on the CT's grid"):
            labels.add(z, result)
        if not needed.wants_maps and gathering is None:
            return
        other = probabilities(OTHER) if needed.disagreement else None
        attention = {
            level: paste_region(attention_name(level), planes[attention_name(level)]) for level in needed.levels_needed
        }
        if options.wants_maps:
            with clock.phase("maps"):
                asked = {level: attention[level] for level in options.levels_needed}
                maps.add(z, result, asked, other)
        if gathering is not None:
            with clock.phase("review"):
                gathering.add(z, result, other, attention[max(attention)] if attention else None)


def _sides(size: tuple[int, ...] | torch.Size) -> str:
    depth, height, width = size
    return f"{width} x {height} x {depth}"


def _tell(progress: ProgressCallback | None, fraction: float, message: str) -> None:
    if progress:
        progress(fraction, message)
