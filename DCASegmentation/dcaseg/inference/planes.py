"""Finished planes of the model grid, and the consumers that build labels and maps from them.

Sliding-window inference finishes plane after plane of the segmented region. ``iter_planes`` converts them to
probabilities on the whole model grid. The driver (``Segmenter.segment``) passes each ``Plane`` to its consumers, so
probabilities of all channels are never held for more than a few planes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from ..imaging.grid import Grid, get_canonical_view
from ..organs import Vocabulary
from ..types import Box
from .label_resampling import Bytes, FloatArray, LabelResampler
from .maps import MapsOnModelGrid, UInt16Array, normalized_entropy, to_float
from .options import SegmentOptions
from .sliding_window import COVERED, OTHER, RESULT, Planes, get_attention_name


@dataclass(frozen=True)
class Plane:
    """Plane ``z`` of the model grid.

    ``probabilities`` (channel, height, width) are those of the result, ``other`` (same shape) those of the other
    prediction, None if it was not requested. ``attention`` holds (expert, height, width) by level. If no window covers
    the plane, ``computed`` is False, ``probabilities`` are certain background, and there is nothing else. The arrays
    are valid until the next plane but one. What several consumers need is computed once, when it is first used.
    """

    z: int
    probabilities: FloatArray
    other: FloatArray | None = None
    attention: Mapping[int, FloatArray] = field(default_factory=dict)
    computed: bool = True

    @cached_property
    def labels(self) -> Bytes:
        """The most probable label (height, width) of each voxel."""
        return self.probabilities.argmax(axis=0).astype(np.uint8)

    @cached_property
    def entropy(self) -> FloatArray:
        """The entropy (height, width) of ``probabilities``, see ``maps.normalized_entropy``."""
        return normalized_entropy(self.probabilities)

    @cached_property
    def dominant(self) -> Bytes:
        """The attention channel (height, width) with the largest weight at the finest level."""
        return self.attention[max(self.attention)].argmax(axis=0).astype(np.uint8)


class PlaneConsumer(Protocol):
    """Takes all planes in order; a ``result`` method of the class returns what it built from them."""

    @property
    def phase(self) -> str:
        """Name under which its time is counted."""

    def take(self, plane: Plane) -> None:
        """Take the next plane."""


def iter_planes(
    region_planes: Iterable[tuple[int, Planes]],
    region: Box,
    shape: Sequence[int],
    channels: int,
    options: SegmentOptions,
) -> Iterator[Plane]:
    """Yield all planes of a model grid of ``shape`` (depth, height, width), in order.

    ``region_planes`` are those of ``region`` as ``sliding_window.average_planes`` yields them; the first one is plane
    ``region[0].start`` of the grid. ``channels`` counts those of the probabilities. ``options`` are the options that
    ``region_planes`` were computed with.
    """
    size = (shape[1], shape[2])
    names = [RESULT, *([OTHER] if options.disagreement else []), *map(get_attention_name, options.levels_needed)]
    canvases = {name: GridCanvas(region, size, certain=name in (RESULT, OTHER)) for name in names}
    background = canvases[RESULT].make_empty_plane(channels)
    for z in range(region[0].start):
        yield Plane(z, background, computed=False)
    for z, planes in region_planes:
        covered = planes[COVERED][0].cpu().numpy() if COVERED in planes else None
        whole = {}
        for name in names:
            is_logits = name in (RESULT, OTHER) and options.average == "logits"
            values = torch.softmax(planes[name], dim=0) if is_logits else planes[name]
            whole[name] = canvases[name].paste_region(values.cpu().numpy(), covered)
        attention = {level: whole[get_attention_name(level)] for level in options.levels_needed}
        yield Plane(region[0].start + z, whole[RESULT], whole.get(OTHER), attention)
    for z in range(region[0].stop, shape[0]):
        yield Plane(z, background, computed=False)


class GridCanvas:
    """Pastes planes of ``region`` into planes of the whole grid.

    ``size`` is (height, width) of the grid. Voxels that were not computed are 0 in all channels. If ``certain``, they
    are certain background: 1 in the first channel. Two arrays alternate, so a plane is valid until the next but one.
    """

    def __init__(self, region: Box, size: tuple[int, int], certain: bool) -> None:
        self._area = (slice(None), *region[1:])
        self._size = size
        self._is_whole = all(
            side.start == 0 and side.stop == length for side, length in zip(region[1:], size, strict=True)
        )
        self._outside = 1.0 if certain else 0.0
        self._planes: list[FloatArray] = []

    def paste_region(self, values: FloatArray, covered: NDArray[np.bool_] | None) -> FloatArray:
        """Return the plane (channel, height, width) of the whole grid.

        ``values`` (channel, height, width) are those of the region, ``covered`` (height, width) says which of its
        voxels were computed, None for all.
        """
        if self._is_whole and covered is None:
            return values
        if not self._planes:
            self._planes = [self.make_empty_plane(len(values)), self.make_empty_plane(len(values))]
        self._planes.reverse()
        plane = self._planes[0]
        part = plane[self._area]
        part[:] = values
        if covered is not None:
            part[:, ~covered] = 0
            part[0, ~covered] = self._outside
        return plane

    def make_empty_plane(self, channels: int) -> FloatArray:
        """Return a plane (channel, height, width) in which nothing was computed."""
        plane = np.zeros((channels, *self._size), np.float32)
        plane[0] = self._outside
        return plane


class LabelConsumer:
    """Builds the labels on the CT's grid; ``kept`` are the labels to write, None for all.

    ``orientation`` is that of the grid ``model``, such as RAS.
    """

    phase = "labels on the CT's grid"

    def __init__(self, ct: Grid, model: Grid, orientation: str, kept: frozenset[int] | None = None) -> None:
        self._labels = np.zeros(ct.shape, np.uint8)
        self._resampler = LabelResampler(get_canonical_view(self._labels, ct, orientation), ct, model, kept)

    def take(self, plane: Plane) -> None:
        """Take the next plane."""
        self._resampler.add(plane.z, plane.probabilities)

    def result(self) -> Bytes:
        """Return the labels (z, y, x) on the CT's grid; complete once all planes were taken."""
        return self._labels


@dataclass(frozen=True)
class Maps:
    """The requested maps as images, with the mean attention by organ; see ``segmenter.Result`` for each of them."""

    attention: dict[int, dict[str, sitk.Image]]
    dominant_expert: sitk.Image | None
    entropy: sitk.Image | None
    disagreement: sitk.Image | None
    attention_by_organ: dict[int, dict[str, dict[str, float]]]


class MapConsumer:
    """Builds the maps that ``options`` request, on the grid ``model``; arguments as in ``maps.MapsOnModelGrid``."""

    phase = "maps"

    def __init__(
        self,
        options: SegmentOptions,
        ct: Grid,
        model: Grid,
        vocabulary: Vocabulary,
        expert_slots: Sequence[int],
        kept: frozenset[int] | None = None,
    ) -> None:
        self._levels = options.levels_needed
        self._ct, self._model = ct, model
        self._maps = MapsOnModelGrid(
            model.shape,
            vocabulary,
            expert_slots,
            sorted(set(options.attention_levels)),
            options.dominant_expert,
            options.entropy,
            options.disagreement,
            kept,
        )

    def take(self, plane: Plane) -> None:
        """Take the next plane. In planes that were not computed the maps stay 0."""
        if plane.computed:
            self._maps.add(plane, self._levels)

    def result(self, labels: Bytes) -> Maps:
        """Return the maps; ``labels`` (z, y, x) are the final ones on the CT's grid, where the dominant expert lies."""
        dominant = self._maps.resample_dominant_expert(labels, self._model, self._ct)

        def make_image(stored: UInt16Array) -> sitk.Image:
            return self._model.make_image(to_float(stored))

        return Maps(
            attention={
                level: {expert: make_image(stored) for expert, stored in experts.items()}
                for level, experts in self._maps.attention.items()
            },
            dominant_expert=None if dominant is None else self._ct.make_image(dominant),
            entropy=None if self._maps.entropy is None else make_image(self._maps.entropy),
            disagreement=None if self._maps.disagreement is None else make_image(self._maps.disagreement),
            attention_by_organ=self._maps.compute_attention_by_organ(),
        )
