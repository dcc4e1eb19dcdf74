"""What changed since the automatic result: which organs were corrected, and in which findings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from dcaseg.imaging.label_comparison import OrganChange, compare_label_maps
from dcaseg.types import Box
from DCASegmentationLib.scene.case_record import CaseNodes, read_case_nodes
from DCASegmentationLib.scene.review_record import read_state, read_vocabulary
from DCASegmentationLib.scene.segmentation import Layer, get_layers, get_organs_by_segment, has_voxels
from DCASegmentationLib.scene.volumes import find_box_in_grid, get_relative_box, merge_boxes


@dataclass(frozen=True)
class KeptOrgans:
    """What a new run must not change: ``segments`` (organ key by segment ID) and organs (keys) ``removed`` by hand."""

    segments: Mapping[str, str]
    removed: tuple[str, ...] = ()

    @property
    def organs(self) -> tuple[str, ...]:
        """The keys of all organs to keep."""
        return (*self.segments.values(), *self.removed)


NO_KEPT_ORGANS = KeptOrgans({})


def compute_organ_changes(nodes: CaseNodes) -> tuple[OrganChange, ...]:
    """Compare each organ of the vocabulary with the automatic result; empty if this is missing or one has no voxels.

    The comparison uses the CT's voxels, in a box around both; without the CT, it uses the box of the automatic result.
    A segment that overlaps another one counts in full.
    """
    vocabulary = read_vocabulary(nodes.segmentation)
    if nodes.automatic is None or vocabulary is None or not has_voxels(nodes.segmentation):
        return ()
    reference, box = _choose_reference(nodes)
    layers = get_layers(nodes.segmentation, reference)
    whole = merge_boxes(box, *(layer.box for layer in layers))
    before = np.zeros([part.stop - part.start for part in whole], np.uint8)
    before[get_relative_box(box, whole)] = slicer.util.arrayFromVolume(nodes.automatic)
    labels = get_labels_by_segment(nodes)
    found = {
        change.organ.key: change
        for change in compare_label_maps(*_create_images(before, np.zeros_like(before), reference), vocabulary)
    }
    for layer in layers:
        after = np.zeros_like(before)
        after[get_relative_box(layer.box, whole)] = relabel_layer(layer, labels)
        present = {labels[segment_id] for segment_id in layer.segments.values() if segment_id in labels}
        for change in compare_label_maps(*_create_images(before, after, reference), vocabulary):
            if change.organ.label in present:
                found[change.organ.key] = change
    return tuple(found[organ.key] for organ in vocabulary)


def compute_finding_changes(nodes: CaseNodes, now: np.ndarray | None = None) -> dict[int, float]:
    """The findings in which voxels differ from the automatic result: the share of these voxels (0 to 1), by rank.

    ``now`` is what :func:`get_current_labels` returns, which takes a while for a large case; None computes it.
    """
    if nodes.automatic is None or nodes.finding_ranks is None:
        return {}
    automatic, ranks = (slicer.util.arrayFromVolume(node) for node in (nodes.automatic, nodes.finding_ranks))
    inside = ranks > 0
    of_finding = ranks[inside]
    differs = ((get_current_labels(nodes) if now is None else now) != automatic)[inside]
    found, counts = np.unique(of_finding[differs], return_counts=True)
    sizes = np.bincount(of_finding)
    return {rank: count / int(sizes[rank]) for rank, count in zip(found.tolist(), counts.tolist(), strict=True)}


def get_current_labels(nodes: CaseNodes) -> np.ndarray:
    """The current organs as labels (z, y, x) on the voxels of ``nodes.automatic``."""
    assert nodes.automatic is not None
    labels = get_labels_by_segment(nodes)
    now = np.zeros(nodes.automatic.GetImageData().GetDimensions()[::-1], np.uint8)
    for layer in get_layers(nodes.segmentation, nodes.automatic):
        organs = relabel_layer(layer, labels)
        np.copyto(now[layer.box], organs, where=organs > 0)
    return now


def get_labels_by_segment(nodes: CaseNodes) -> dict[str, int]:
    """The label, in the vocabulary of the automatic result, of each segment that this module created."""
    vocabulary = read_vocabulary(nodes.segmentation)
    organs = get_organs_by_segment(nodes.segmentation)
    if vocabulary is None:
        return {}
    return {each: vocabulary.by_key[key].label for each, key in organs.items() if key in vocabulary.by_key}


def relabel_layer(layer: Layer, labels: Mapping[str, int]) -> np.ndarray:
    """A layer's voxels (z, y, x) with the values of ``labels`` (by segment ID), 0 for all other segments."""
    numbers = np.zeros(int(layer.labels.max(initial=0)) + 1, np.uint8)
    for value, segment_id in layer.segments.items():
        if value < len(numbers):
            numbers[value] = labels.get(segment_id, 0)
    return np.asarray(numbers[layer.labels])


def find_kept_organs(segmentation: Any | None, requested: Collection[str] | None = None) -> KeptOrgans:
    """The organs of a vtkMRMLSegmentationNode that a new run must not change, of those ``requested`` (keys; None: all).

    They were corrected, or are completed in Slicer's segment status. Without the automatic result, as in a segmentation
    loaded from a .seg.nrrd file, these are all organs whose status says that someone has worked on them.
    """
    if segmentation is None:
        return NO_KEPT_ORGANS
    nodes = read_case_nodes(segmentation)
    changed = (
        {change.organ.key for change in compute_organ_changes(nodes) if change.changed} if nodes is not None else set()
    )
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    has_automatic = nodes is not None and nodes.automatic is not None
    touched = {logic.Completed} if has_automatic else {logic.InProgress, logic.Completed, logic.Flagged}
    segments = get_organs_by_segment(segmentation)
    content = segmentation.GetSegmentation()
    kept = {
        segment_id: key
        for segment_id, key in segments.items()
        if key in changed or logic.GetSegmentStatus(content.GetSegment(segment_id)) in touched
    }
    removed = (changed | read_state(segmentation).absent) - set(segments.values())
    if requested is not None:
        kept = {segment_id: key for segment_id, key in kept.items() if key in requested}
        removed &= set(requested)
    return KeptOrgans(kept, tuple(sorted(removed)))


def _choose_reference(nodes: CaseNodes) -> tuple[Any, Box]:
    """The volume on whose grid to compare, and the box of the automatic result in it."""
    assert nodes.automatic is not None
    size = nodes.automatic.GetImageData().GetDimensions()
    box = None if nodes.ct is None or nodes.ct.GetImageData() is None else find_box_in_grid(nodes.automatic, nodes.ct)
    if box is not None:
        return nodes.ct, box
    return nodes.automatic, (slice(0, size[2]), slice(0, size[1]), slice(0, size[0]))


def _create_images(before: np.ndarray, after: np.ndarray, reference: Any) -> tuple[sitk.Image, sitk.Image]:
    images = sitk.GetImageFromArray(before), sitk.GetImageFromArray(after)
    for image in images:
        image.SetSpacing(reference.GetSpacing())
    return images
