"""Imports the results of a run into the scene: segmentation, maps, and review."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from dcaseg.errors import OutputError, UserError, get_reason, require_memory
from dcaseg.imaging.itk_environment import no_itk_warnings
from dcaseg.json_io import read_json
from dcaseg.organs import Vocabulary
from dcaseg.review.schema import ALTERNATIVE, FINDING_RANKS, REVIEW, Finding, Review, read_review
from dcaseg.types import Box
from DCASegmentationLib.scene.case_record import MAP_NAMES, CaseNodes, get_recorded_volumes, write_case_nodes
from DCASegmentationLib.scene.ct_export import CT_FILE, Region, pad_to_size
from DCASegmentationLib.scene.finding_status import mark_kept, restore_organs
from DCASegmentationLib.scene.maps import remove_map_files, show_named_map, take_map_files
from DCASegmentationLib.scene.nodes import remove_nodes
from DCASegmentationLib.scene.organ_changes import NO_KEPT_ORGANS, KeptOrgans
from DCASegmentationLib.scene.partial_run import (
    EarlierReview,
    ReviewedResult,
    find_untouched_segments,
    get_requested_organs,
    is_whole,
    merge_labels_outside_region,
    merge_reviews,
)
from DCASegmentationLib.scene.placement import note_grids
from DCASegmentationLib.scene.review_record import (
    Origin,
    ReviewState,
    transform_review,
    write_origin,
    write_review,
    write_state,
)
from DCASegmentationLib.scene.segmentation import (
    add_organs,
    compute_bounding_box,
    find_unique_labels,
    get_layers,
    get_organs_by_segment,
    replace_organs,
    show_segmentation,
    tag_organs,
)
from DCASegmentationLib.scene.subject_hierarchy import (
    add_ct_to_subject_hierarchy,
    add_to_subject_hierarchy,
    place_in_folder,
)
from DCASegmentationLib.scene.volumes import CTPlacement, add_label_volume, merge_boxes, place_under, show_ct


def remove_kept_organs(
    labels: np.ndarray, vocabulary: Vocabulary, segmentation: Any, kept: KeptOrgans, ct_node: Any
) -> np.ndarray:
    """``labels`` (z, y, x) on the CT's grid, set to 0 for the organs ``kept`` and within their current segments."""
    if not kept.organs:
        return labels
    dropped = [vocabulary.by_key[key].label for key in kept.organs if key in vocabulary.by_key]
    fresh = np.where(np.isin(labels, dropped), 0, labels).astype(labels.dtype)
    for layer in get_layers(segmentation, ct_node):
        values = [value for value, segment_id in layer.segments.items() if segment_id in kept.segments]
        if values:
            fresh[layer.box][np.isin(layer.labels, values)] = 0
    return fresh


def show_review(
    nodes: CaseNodes,
    origin: Origin,
    region: Region,
    labels: np.ndarray,
    kept: KeptOrgans = NO_KEPT_ORGANS,
    review: Review | None = None,
    finding_ranks: np.ndarray | None = None,
    alternative: np.ndarray | None = None,
    requested: Collection[str] | None = None,
    earlier: EarlierReview | None = None,
    placement: CTPlacement | None = None,
) -> None:
    """Add the automatic ``labels`` and the review to the scene.

    All arrays (z, y, x) cover ``region`` of the grid of ``nodes.ct``. ``finding_ranks`` holds the rank of the finding
    at each voxel, and ``alternative`` the labels with every suggestion accepted (see ``review.schema``). Without a
    review there is nothing to check. Decisions on an earlier review are removed, except for the organs ``kept`` and
    for what a run limited to ``region`` and the ``requested`` organs (keys; None for all) leaves of the ``earlier``
    review. ``placement`` is where the CT was when it was exported, None if it has not moved since.
    """
    reviewed = ReviewedResult(labels, ranks=finding_ranks, state=ReviewState(absent=set(kept.removed)))
    if review is not None and finding_ranks is not None and alternative is not None:
        # In the CT's own space, before its transform, so that the positions move with the CT.
        placed = transform_review(review, (placement or CTPlacement.from_volume(nodes.ct)).to_own_space(nodes.ct))
        suggestions = dict(_iter_suggestions(review.findings, finding_ranks, alternative))
        reviewed = replace(reviewed, review=placed, suggestions=suggestions)
    vocabulary = origin.get_vocabulary()
    if earlier is not None and vocabulary is not None:
        keys = get_requested_organs(requested, vocabulary)
        if not is_whole(region, nodes.ct) or not keys.issuperset(earlier.vocabulary.by_key):
            reviewed = _pad_review(reviewed, region, nodes.ct)
            reviewed = merge_reviews(reviewed, earlier, vocabulary, keys, region)
            region = Region.from_size(reviewed.labels.shape)
    labels, ranks = reviewed.labels, reviewed.ranks
    inner = (
        compute_bounding_box(labels)
        if ranks is None
        else merge_boxes(compute_bounding_box(labels), compute_bounding_box(ranks))
    )
    box = _shift_box(inner, region)
    name = nodes.segmentation.GetName()
    nodes.automatic = add_label_volume(labels[inner], box, nodes.ct, f"{name}: automatic")
    nodes.finding_ranks = None
    if ranks is not None:
        nodes.finding_ranks = add_label_volume(ranks[inner], box, nodes.ct, f"{name}: findings")
    write_origin(nodes.segmentation, origin)
    write_review(nodes.segmentation, reviewed.review, reviewed.suggestions)
    write_state(nodes.segmentation, reviewed.state)
    note_grids(nodes)
    restore_organs(nodes)
    mark_kept(nodes, kept.organs)


def _pad_review(reviewed: ReviewedResult, region: Region, ct_node: Any) -> ReviewedResult:
    size = ct_node.GetImageData().GetDimensions()[::-1]
    ranks = None if reviewed.ranks is None else pad_to_size(reviewed.ranks, region, size)
    return replace(reviewed, labels=pad_to_size(reviewed.labels, region, size), ranks=ranks)


def _shift_box(box: Box, region: Region) -> Box:
    """A box within the region as a box of the whole grid."""
    z, y, x = (slice(part.start + first, part.stop + first) for part, first in zip(box, region.first, strict=True))
    return z, y, x


def _iter_suggestions(
    review: Collection[Finding], finding_ranks: np.ndarray, alternative: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    for finding in review:
        if finding.alternative is not None:
            first, last = finding.box_voxels
            box = tuple(slice(start, stop + 1) for start, stop in zip(reversed(first), reversed(last), strict=True))
            yield finding.rank, alternative[box][finding_ranks[box] == finding.rank]


_LABELS = "labels"
_REQUEST = "request.json"


class ResultFiles:
    """The results in a result folder, read in small steps because this takes some tenths of a second.

    The maps stay files (see ``scene.maps``). ``ct`` is the CT if the worker was asked for a copy of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ct: sitk.Image | None = None
        self.labels: np.ndarray | None = None
        self.finding_ranks: np.ndarray | None = None
        self.alternative: np.ndarray | None = None
        self.review: Review | None = None
        self.model = ("", "")

    def read(self) -> Iterator[None]:
        """Read the files, yielding after each. Raises UserError if one is missing or damaged."""
        self.labels = _read(self.folder / f"{_LABELS}.nrrd")
        yield
        if (self.folder / CT_FILE).exists():
            self.ct = _read_image(self.folder / CT_FILE)
            yield
        if (self.folder / f"{FINDING_RANKS}.nrrd").exists():
            self.finding_ranks = _read(self.folder / f"{FINDING_RANKS}.nrrd")
            yield
            self.alternative = _read(self.folder / f"{ALTERNATIVE}.nrrd")
            self.review = read_review(self.folder / REVIEW)
            yield
        self.model = _read_model(self.folder / _REQUEST)


def import_result(
    folder: Path,
    ct_node: Any,
    vocabulary: Vocabulary,
    region: Region | None = None,
    segmentation: Any | None = None,
) -> CaseNodes:
    """Read the results in the result folder ``folder`` and show them in one step.

    All maps become volumes at once, and the folder does not change. All files are read before the scene changes. Raises
    UserError if one is missing or damaged. See :class:`ResultFiles` and :func:`show_result`.
    """
    files = ResultFiles(folder)
    for _ in files.read():
        pass
    maps = {name: _read_image(path) for name in MAP_NAMES if (path := folder / f"{name}.nrrd").exists()}
    nodes = show_result(files, ct_node, vocabulary, region, segmentation)
    from_world = CTPlacement.from_volume(ct_node).from_world
    for name, image in maps.items():
        node = show_named_map(image, name)
        place_under(ct_node, node, from_world)
        nodes.set_map(name, node)
    keep_for_review(files, nodes, vocabulary, region)
    place_in_folder(nodes.maps(), nodes.segmentation)
    return nodes


def take_maps(
    files: ResultFiles, nodes: CaseNodes, keepFiles: bool = False, placement: CTPlacement | None = None
) -> None:
    """Keep the map files for this session, for :func:`scene.maps.load_map_volume`. Raises OutputError.

    They are moved out of the result folder, or copied with ``keepFiles``. ``placement`` is where the CT was when it
    was exported, None if it has not moved since.
    """
    try:
        take_map_files(files.folder, nodes, Path(slicer.app.temporaryPath), keepFiles, placement)
    except OSError as error:
        raise OutputError(
            f"The maps of the result could not be saved: {get_reason(error)}.",
            "Free some space in Slicer's temporary folder, then segment the CT again.",
        ) from None


def show_ct_of_result(files: ResultFiles, name: str, patient: str, study: str, warnings: Sequence[str] = ()) -> Any:
    """Add the CT that the worker read to the scene, under its patient and study in the subject hierarchy.

    Returns the vtkMRMLScalarVolumeNode. ``warnings`` are those of the run: if the CT could not be copied, they say why.
    Raises UserError in that case.
    """
    if files.ct is None:
        reason = next((text for text in warnings if text.startswith("An additional file")), "")
        raise UserError(
            f"The CT could not be loaded into the scene. {reason}".strip(),
            "Free some space in Slicer's temporary folder, then segment the CT again.",
        )
    node = show_ct(files.ct, name)
    # The scene has its own copy now.
    files.ct = None
    add_ct_to_subject_hierarchy(node, patient, study)
    return node


def show_result(
    files: ResultFiles,
    ct_node: Any,
    vocabulary: Vocabulary,
    region: Region | None = None,
    segmentation: Any | None = None,
    kept: KeptOrgans = NO_KEPT_ORGANS,
    requested: Collection[str] | None = None,
) -> CaseNodes:
    """Show results, which must have been read already, for the CT that they were computed from.

    ``region`` is the region that :func:`scene.ct_export.export_ct` returned. The organs become a new segmentation named
    after the CT, or replace those that this module put into ``segmentation`` earlier, except the ``kept`` ones. Organs
    that were not ``requested`` (keys or names; None for all of the vocabulary) and all voxels outside the region stay
    as they are. The earlier maps are removed. The segmentation is put under the CT's transform and, in the subject
    hierarchy, under its patient and study.

    Raises UserError, with the scene unchanged, if the results do not match the CT or the vocabulary.
    """
    labels = files.labels
    size = ct_node.GetImageData().GetDimensions()[::-1]
    region = region or Region.from_size(size)
    if labels is None or labels.shape != region.shape or not region.fits(size):
        raise _create_mismatch_error(files.folder)
    labels = pad_to_size(labels, region, size)
    try:
        if segmentation is None:
            name = slicer.mrmlScene.GenerateUniqueName(f"{ct_node.GetName()} organs")
            segmentation = show_segmentation(labels, vocabulary, ct_node, name)
            added = {each: each for each in segmentation.GetSegmentation().GetSegmentIDs()}
        else:
            fresh, stay = _select_labels(labels, vocabulary, ct_node, region, segmentation, kept, requested)
            # Otherwise Slicer would compute all surfaces again at once; the panel computes them step by step.
            segmentation.RemoveClosedSurfaceRepresentation()
            added = replace_organs(segmentation, lambda node: add_organs(node, fresh, vocabulary, ct_node), stay)
    except ValueError:
        raise _create_mismatch_error(files.folder) from None
    tag_organs(segmentation, added)
    remove_nodes(get_recorded_volumes(segmentation))
    remove_map_files(segmentation)
    nodes = CaseNodes(ct_node, segmentation)
    segmentation.SetAndObserveTransformNodeID(ct_node.GetTransformNodeID())
    add_to_subject_hierarchy(ct_node, segmentation)
    write_case_nodes(nodes)
    return nodes


def _select_labels(
    labels: np.ndarray,
    vocabulary: Vocabulary,
    ct_node: Any,
    region: Region,
    segmentation: Any,
    kept: KeptOrgans,
    requested: Collection[str] | None,
) -> tuple[np.ndarray, dict[str, str]]:
    """The organs to put into ``segmentation``, as ``labels`` on the CT's grid, and the segments that stay there."""
    keys = get_requested_organs(requested, vocabulary)
    found = {vocabulary.by_label[label].key for label in find_unique_labels(labels) if label in vocabulary.by_label}
    stay = {**find_untouched_segments(segmentation, ct_node, keys, region, found), **kept.segments}
    if not is_whole(region, ct_node):
        replaced = {each: key for each, key in get_organs_by_segment(segmentation).items() if each not in stay}
        labels = merge_labels_outside_region(labels, segmentation, ct_node, region, replaced, vocabulary)
    return remove_kept_organs(labels, vocabulary, segmentation, replace(kept, segments=stay), ct_node), stay


def keep_for_review(
    files: ResultFiles,
    nodes: CaseNodes,
    vocabulary: Vocabulary,
    region: Region | None = None,
    kept: KeptOrgans = NO_KEPT_ORGANS,
    checksum: str = "",
    requested: Collection[str] | None = None,
    earlier: EarlierReview | None = None,
    placement: CTPlacement | None = None,
) -> None:
    """Add the automatic result and the review findings to the case that :func:`show_result` returned for these files.

    ``checksum`` is the checksum of the exported CT (see ``ct_checksum``). ``requested`` are the keys or names of the
    organs that were segmented (None for all); ``earlier`` is the review that the case had before the run;
    ``placement`` is where the CT was when it was exported, None if it has not moved since.
    """
    assert files.labels is not None
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    origin = Origin(*files.model, vocabulary.name, date, checksum)
    finding_ranks, alternative = files.finding_ranks, files.alternative
    region = region or Region.from_size(files.labels.shape)
    review = files.review
    if review is None or finding_ranks is None or alternative is None:
        review = finding_ranks = alternative = None
    elif finding_ranks.shape != files.labels.shape or alternative.shape != files.labels.shape:
        raise _create_mismatch_error(files.folder)
    found = review, finding_ranks, alternative
    show_review(nodes, origin, region, files.labels, kept, *found, requested, earlier, placement)
    write_case_nodes(nodes)
    place_in_folder(nodes.list_label_maps(), nodes.segmentation)


def _read_model(request: Path) -> tuple[str, str]:
    """The name and checksum of the model, which the worker recorded with its results."""
    try:
        bundle = read_json(request)["bundle"]
        return str(bundle["name"]), str(bundle["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(_read_image(path))


def _read_image(path: Path) -> sitk.Image:
    try:
        # Qt may have set a locale with a decimal comma in Slicer's process.
        with no_itk_warnings():
            return sitk.ReadImage(str(path))
    except RuntimeError as error:
        require_memory(error)
        raise _create_mismatch_error(path.parent) from None


def _create_mismatch_error(folder: Path) -> UserError:
    return UserError(f"The results in {folder} are incomplete or do not belong to this CT.", "Segment the CT again.")
