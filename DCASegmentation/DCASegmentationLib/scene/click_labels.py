"""Segments as labels for correction with clicks, and the change of a click written back into the segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.types import Box
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.ct_export import compute_ct_checksum, require_ct
from DCASegmentationLib.scene.finding_status import get_or_add_segment
from DCASegmentationLib.scene.finding_view import FindingVoxels, move_members
from DCASegmentationLib.scene.organ_changes import get_labels_by_segment
from DCASegmentationLib.scene.review_record import CORRECTED, read_origin, read_review, read_state, read_vocabulary
from DCASegmentationLib.scene.segmentation import (
    get_layers,
    get_organs_by_segment,
    iter_layer_images,
    require_target,
)
from DCASegmentationLib.scene.surfaces import without_surfaces
from DCASegmentationLib.scene.volumes import get_ijk_to_ras, get_ijk_to_world

# Grids count as equal if they drift apart by less than this share of a voxel.
_SAME_VOXEL = 0.01


@dataclass(frozen=True)
class Target:
    """What clicks change: the segment ``segment_id``, the missing organ ``key``, or a new segment if both are empty."""

    segment_id: str = ""
    key: str = ""


NEW_SEGMENT = Target()


def list_targets(nodes: CaseNodes) -> dict[Target, str]:
    """Everything that clicks can change, with its name: all segments, missing organs of the model, a new segment."""
    content = nodes.segmentation.GetSegmentation()
    found = {Target(each): content.GetSegment(each).GetName() for each in content.GetSegmentIDs()}
    vocabulary = read_vocabulary(nodes.segmentation)
    present = set(get_organs_by_segment(nodes.segmentation).values())
    for organ in vocabulary or ():
        if organ.key not in present:
            found[Target(key=organ.key)] = _("{organ} (missing)").format(organ=organ.name)
    found[NEW_SEGMENT] = _("New segment")
    return found


def get_organ_target(nodes: CaseNodes, key: str) -> Target:
    """The segment of the organ ``key``, or the missing organ."""
    segments = {organ: segment_id for segment_id, organ in get_organs_by_segment(nodes.segmentation).items()}
    return Target(segments[key]) if key in segments else Target(key=key)


def find_target(nodes: CaseNodes, ras: tuple[float, float, float]) -> Target | None:
    """The visible segment at ``ras`` (mm, world); None if there is none."""
    display = nodes.segmentation.GetDisplayNode()
    if nodes.ct is None or not get_ct_state(nodes):
        return None
    index = np.rint(np.linalg.inv(get_ijk_to_world(nodes.ct)) @ [*ras, 1.0])[2::-1].astype(int)
    for layer in reversed(get_layers(nodes.segmentation, nodes.ct)):
        at = tuple(int(position) - part.start for position, part in zip(index, layer.box, strict=True))
        if any(not 0 <= each < size for each, size in zip(at, layer.labels.shape, strict=True)):
            continue
        segment_id = layer.segments.get(int(layer.labels[at]))
        if segment_id is not None and (display is None or display.GetSegmentVisibility(segment_id)):
            return Target(segment_id)
    return None


@dataclass
class ClickLabels:
    """All segments as labels on the grid of the CT. Where segments overlap, the one in the last layer counts.

    ``voxels`` are (z, y, x). ``segments`` maps labels to segment IDs, ``keys`` to organ keys (also of missing organs),
    ``titles`` to names. ``new`` is the label of the next new segment.
    """

    voxels: np.ndarray
    segments: dict[int, str]
    keys: dict[int, str]
    titles: dict[int, str]
    new: int

    def get_label(self, target: Target) -> int | None:
        """The label of ``target``; None if its segment was deleted or its organ is unknown."""
        if target == NEW_SEGMENT:
            return self.new
        named = self.segments if target.segment_id else self.keys
        wanted = target.segment_id or target.key
        return next((label for label, name in named.items() if name == wanted), None)


def require_correctable(nodes: CaseNodes) -> None:
    """Raises UserError unless clicks can correct the segmentation: its CT is unchanged, and its grid is that of the CT.

    This reads all voxels of the CT if the result states their checksum.
    """
    if nodes.ct is None:
        raise UserError(_("The CT is no longer in the scene."), _("Load the CT and segment it again."))
    require_ct(nodes.ct)
    require_target(nodes.segmentation, nodes.ct)
    get_ijk_to_world(nodes.ct)
    if not _is_on_grid(nodes.segmentation, nodes.ct):
        raise UserError(
            _("{name} is not on the voxel grid of the CT.").format(name=nodes.segmentation.GetName()),
            _("Set its geometry to that of the CT (Segment Editor, Specify geometry), or segment the CT again."),
        )
    origin = read_origin(nodes.segmentation)
    if origin is not None and origin.ct_checksum and origin.ct_checksum != compute_ct_checksum(nodes.ct):
        raise UserError(
            _("The CT is not the one that was segmented: its voxels have changed."),
            _("Segment it again, or use the original CT."),
        )


def _is_on_grid(segmentation: Any, ct: Any) -> bool:
    content, size = segmentation.GetSegmentation(), np.array(ct.GetImageData().GetDimensions())
    for _number, image in iter_layer_images(content):
        to_index, between = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(to_index)
        to_index.Invert()
        vtk.vtkMatrix4x4.Multiply4x4(to_index, get_ijk_to_ras(ct), between)
        matrix = slicer.util.arrayFromVTKMatrix(between)
        drift = np.abs(matrix[:3, :3] - np.eye(3)) @ size + np.abs(matrix[:3, 3] - np.rint(matrix[:3, 3]))
        if drift.max() > _SAME_VOXEL:
            return False
    return True


def create_click_labels(nodes: CaseNodes) -> ClickLabels:
    """All segments of a case as labels: organs of the model with their own labels, then all other segments."""
    content = nodes.segmentation.GetSegmentation()
    vocabulary = read_vocabulary(nodes.segmentation)
    known, organs = get_labels_by_segment(nodes), get_organs_by_segment(nodes.segmentation)
    keys = {organ.label: organ.key for organ in vocabulary or ()}
    titles = {organ.label: organ.name for organ in vocabulary or ()}
    segments: dict[int, str] = {}
    new = max(keys, default=0) + 1
    for segment_id in content.GetSegmentIDs():
        label = known.get(segment_id)
        if label is None or label in segments:
            label, new = new, new + 1
            if segment_id in organs:
                keys[label] = organs[segment_id]
        segments[label] = segment_id
        titles[label] = content.GetSegment(segment_id).GetName()
    titles[new] = _("new segment")
    numbers = {segment_id: label for label, segment_id in segments.items()}
    voxels = np.zeros(nodes.ct.GetImageData().GetDimensions()[::-1], np.uint8 if new <= 255 else np.uint16)
    for layer in get_layers(nodes.segmentation, nodes.ct):
        table = np.zeros(max([int(layer.labels.max(initial=0)), *layer.segments]) + 1, voxels.dtype)
        for value, segment_id in layer.segments.items():
            table[value] = numbers[segment_id]
        found = table[layer.labels]
        np.copyto(voxels[layer.box], found, where=found > 0)
    return ClickLabels(voxels, segments, keys, titles, new)


def get_segmentation_state(nodes: CaseNodes) -> tuple[object, ...]:
    """A value that changes whenever the segments or their voxels change, by whatever tool."""
    content = nodes.segmentation.GetSegmentation()
    layers = [content.GetLayerDataObject(number) for number in range(content.GetNumberOfLayers())]
    segments = ((each, content.GetSegment(each).GetLabelValue()) for each in content.GetSegmentIDs())
    times = (image.GetMTime() if image is not None else 0 for image in layers)
    return (nodes.segmentation.GetTransformNodeID(), *times, *segments)


def get_ct_state(nodes: CaseNodes) -> tuple[object, ...]:
    """A value that changes whenever the voxels or the position of the CT change; empty if it cannot be used."""
    ct = nodes.ct
    if ct is None or ct.GetImageData() is None:
        return ()
    try:
        return (ct.GetID(), ct.GetImageData().GetMTime(), *get_ijk_to_world(ct).ravel().tolist())
    except UserError:
        return ()


def get_accepted_labels(nodes: CaseNodes, labels: ClickLabels) -> set[int]:
    """The labels that clicks must not change: segments with the status Completed, and organs marked as absent.

    An organ that is completed only because its findings were corrected can be corrected further.
    """
    logic, content = slicer.vtkSlicerSegmentationsModuleLogic, nodes.segmentation.GetSegmentation()
    state, review = read_state(nodes.segmentation), read_review(nodes.segmentation)
    findings = review.findings if review is not None else ()
    corrected = {each.organ for each in findings if state.status(each.rank) == CORRECTED} - state.ticked
    found = {label for label, key in labels.keys.items() if label not in labels.segments and key in state.absent}
    for label, segment_id in labels.segments.items():
        segment = content.GetSegment(segment_id)
        is_completed = segment is not None and logic.GetSegmentStatus(segment) == logic.Completed
        if is_completed and labels.keys.get(label) not in corrected:
            found.add(label)
    return found


@dataclass(frozen=True)
class ClickChange:
    """What a stroke changed: labels ``before`` and ``after`` it in ``box`` (z, y, x).

    ``label`` is that of the target, ``adds`` says whether the stroke adds to it. ``strokes`` is the number of strokes
    in the worker's session including this one.
    """

    label: int
    adds: bool
    box: Box
    before: np.ndarray = field(repr=False)
    after: np.ndarray = field(repr=False)
    strokes: int

    @property
    def gained(self) -> int:
        """The number of voxels that the target gained."""
        return int(np.count_nonzero((self.after == self.label) & (self.before != self.label)))

    @property
    def lost(self) -> int:
        """The number of voxels that the target lost."""
        return int(np.count_nonzero((self.before == self.label) & (self.after != self.label)))

    @property
    def voxels_lost(self) -> dict[int, int]:
        """The number of voxels that other segments lost, by label."""
        taken = self.before[(self.after != self.before) & (self.before != self.label) & (self.before != 0)]
        labels, counts = np.unique(taken, return_counts=True)
        return {int(label): int(count) for label, count in zip(labels, counts, strict=True)}


_CLICKS = "DCASegmentation.Clicks"
# What DICOM calls a segment that a user has corrected (0062,0008).
_ALGORITHM, _CORRECTED_ALGORITHM = "DICOM.SegmentAlgorithmType", "SEMIAUTOMATIC"


def write_change(nodes: CaseNodes, labels: ClickLabels, change: ClickChange) -> set[str]:
    """Write the change of one click into the segments, and count the click. Save an undo state first.

    A missing organ or a new segment is added, also to ``labels``. The surfaces are not updated. Returns the IDs of the
    segments whose voxels changed (see ``surfaces.update_surfaces_in_steps``).
    """
    changed = change.before != change.after
    if not changed.any():
        return set()
    modification = nodes.segmentation.StartModify()
    try:
        with without_surfaces(nodes.segmentation):
            segment_id = _get_segment(nodes, labels, change.label)
            hits = [np.flatnonzero(changed.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
            inner = tuple(slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
            z, y, x = (slice(part.start + each.start, part.start + each.stop)
                       for part, each in zip(change.box, inner, strict=True))  # fmt: skip
            voxels = FindingVoxels(nodes.ct, (z, y, x), changed[inner])
            before, after = change.before[changed], change.after[changed]
            touched = {label: labels.segments[label] for label in np.unique([before, after]).tolist() if label}
            now = {each: before == label for label, each in touched.items()}
            wanted = {each: after == label for label, each in touched.items()}
            move_members(nodes, voxels, now, wanted)
        _count(nodes.segmentation.GetSegmentation().GetSegment(segment_id), change.adds)
    finally:
        nodes.segmentation.EndModify(modification)
    return set(touched.values())


def _get_segment(nodes: CaseNodes, labels: ClickLabels, label: int) -> str:
    """The ID of the segment with ``label``, which is added if it does not exist yet."""
    if label not in labels.segments:
        if label in labels.keys:
            labels.segments[label] = get_or_add_segment(nodes, label)
        else:
            content = nodes.segmentation.GetSegmentation()
            labels.segments[label] = str(content.AddEmptySegment())
            labels.titles[label] = content.GetSegment(labels.segments[label]).GetName()
            labels.new = label + 1
            labels.titles[labels.new] = _("new segment")
    return labels.segments[label]


def _count(segment: Any, adds: bool) -> None:
    added, removed = get_click_counts(segment)
    # In a tag, because the Segment Editor's undo restores tags along with the voxels, and files keep them.
    segment.SetTag(_CLICKS, f"{added + adds} {removed + (not adds)}")
    if segment.HasTag(_ALGORITHM):
        segment.SetTag(_ALGORITHM, _CORRECTED_ALGORITHM)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if logic.GetSegmentStatus(segment) == logic.NotStarted:
        # As the Segment Editor does.
        logic.SetSegmentStatus(segment, logic.InProgress)


def get_click_counts(segment: Any) -> tuple[int, int]:
    """The number of clicks that added to a vtkSegment and that removed from it."""
    text = vtk.reference("")
    if not segment.GetTag(_CLICKS, text):
        return 0, 0
    numbers = [int(each) for each in str(text).split() if each.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def get_clicks_by_segment(segmentation: Any) -> Mapping[str, tuple[int, int]]:
    """The clicks (adding, removing) of each segment that was corrected with clicks, by the segment's name."""
    content = segmentation.GetSegmentation()
    found = {}
    for segment_id in content.GetSegmentIDs():
        segment = content.GetSegment(segment_id)
        if any(get_click_counts(segment)):
            found[segment.GetName()] = get_click_counts(segment)
    return found
