"""The two ways between the scene and a job folder: the CT out, the results in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from DCASegmentationLib.errors import OutputError, UserError
from DCASegmentationLib.imaging.itk_warnings import no_itk_warnings
from DCASegmentationLib.json_reading import read_json
from DCASegmentationLib.organs import Vocabulary
from DCASegmentationLib.review_file import ALTERNATIVE, PLACES, REVIEW, Review, read_review
from DCASegmentationLib.scene.case_record import LEVELS, CaseNodes, recall, remember
from DCASegmentationLib.scene.hierarchy import place_beside
from DCASegmentationLib.scene.maps import show_attention, show_deciding_expert, show_map
from DCASegmentationLib.scene.nrrd_writing import write_nrrd
from DCASegmentationLib.scene.organ_changes import NOTHING_KEPT, Kept
from DCASegmentationLib.scene.region import Region, in_whole_grid, region_of_interest
from DCASegmentationLib.scene.review_import import show_review, without_kept
from DCASegmentationLib.scene.review_record import Origin
from DCASegmentationLib.scene.segmentation import add_organs, show_segmentation
from DCASegmentationLib.scene.target import remove_nodes, replace_organs, tag_organs
from DCASegmentationLib.scene.transforms import index_to_world, under_transform_of

CT_FILE = "ct.nrrd"
_LABELS = "labels.nrrd"
_REQUEST = "request.json"
_ORTHOGONAL = 1e-3
# Files of a job that hold one map each: file name, title of its legend. All are values from 0 to 1.
_MAPS = {
    "entropy": ("Uncertainty (entropy)", "Uncertainty"),
    "disagreement": ("Disagreement", "Disagreement of decoders"),
}
_EXPERTS = ("head", "medium", "tail")


def require_ct(node: Any) -> None:
    """Raises UserError unless ``node`` is a scalar volume with voxels: no label map, no vectors, no other node."""
    if node is None:
        raise UserError("No CT is chosen.", "Choose the CT to segment.")
    name = node.GetName()
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise UserError(f"{name} is a label map, not a CT.", "Choose the CT that it belongs to.")
    # Subclasses hold vectors, tensors or sequences of values.
    if node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise UserError(f"{name} is no scalar volume ({node.GetNodeTagName()}).", "Choose a CT volume.")
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise UserError(f"{name} holds no voxels.", "Load the CT again, or choose another one.")
    if image.GetNumberOfScalarComponents() != 1:
        raise UserError(f"{name} has several values per voxel.", "Choose a CT with one value per voxel.")
    if min(image.GetDimensions()) < 2:
        raise UserError(f"{name} is a single slice.", "Choose the whole CT volume.")


def export_ct(node: Any, folder: Path, roi_node: Any | None = None) -> tuple[Path, Region]:
    """Write a CT as ``folder / "ct.nrrd"``, as it lies in the patient: a linear transform on the node is applied.

    ``roi_node`` (vtkMRMLMarkupsROINode) limits it to the smallest box of voxels that holds the ROI. Returns the file
    and the box (indices of the CT's own grid). The file is not compressed: that would take longer than all the rest.

    Raises UserError for a node that is no CT, a transform that is not linear, axes that are not at right angles, and a
    ROI that misses the CT; OutputError where the file cannot be written.
    """
    require_ct(node)
    matrix = index_to_world(node)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / spacing
    if not np.allclose(directions.T @ directions, np.eye(3), atol=_ORTHOGONAL):
        raise UserError(
            f"The axes of {node.GetName()} are not at right angles (gantry tilt, or a shearing transform).",
            "Resample it first: modules Transforms (Harden) and Resample Scalar Volume.",
        )
    voxels = slicer.util.arrayFromVolume(node)
    region = Region.whole(voxels.shape) if roi_node is None else region_of_interest(roi_node, matrix, voxels.shape)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    to_lps[:, 3] = to_lps @ [*region.first_index_xyz, 1.0]
    path = folder / CT_FILE
    try:
        write_nrrd(voxels[region.slices], to_lps, path)
    except OSError:
        raise OutputError(
            f"{node.GetName()} could not be written to {folder}: the disk is full, or the folder not writable.",
            "Free some space, or choose another temporary folder in Slicer's application settings (Modules).",
        ) from None
    return path, region


class ResultFiles:
    """The results in a job folder. Reading them takes some tenths of a second, so it can be done in small steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: np.ndarray | None = None
        self.maps: dict[str, sitk.Image] = {}
        self.review: Review | None = None
        self.model = ("", "")

    def read(self) -> Iterator[None]:
        """Read file by file, pausing after each. Raises UserError where one is missing or damaged."""
        labels = _read(self.folder / _LABELS)
        yield
        self.labels = sitk.GetArrayFromImage(labels)
        for path in sorted(self.folder.glob("*.nrrd")):
            if path.name != _LABELS:
                self.maps[path.name.removesuffix(".nrrd")] = _read(path)
                yield
        if PLACES in self.maps:
            self.review = read_review(self.folder / REVIEW)
        self.model = _model(self.folder / _REQUEST)


def import_result(
    folder: Path,
    ct_node: Any,
    vocabulary: Vocabulary,
    region: Region | None = None,
    segmentation: Any | None = None,
) -> CaseNodes:
    """Read the results in the job folder ``folder`` and show them: :class:`ResultFiles`, :func:`show_result`.

    All files are read before the scene is changed. Raises UserError where one is missing or damaged.
    """
    files = ResultFiles(folder)
    for _ in files.read():
        pass
    nodes = show_result(files, ct_node, vocabulary, region, segmentation)
    keep_for_review(files, nodes, vocabulary, region)
    return nodes


def show_result(
    files: ResultFiles,
    ct_node: Any,
    vocabulary: Vocabulary,
    region: Region | None = None,
    segmentation: Any | None = None,
    kept: Kept = NOTHING_KEPT,
) -> CaseNodes:
    """Show results that were read for the CT they were made of.

    ``region`` is what :func:`export_ct` gave. The organs become a new segmentation named after the CT, or replace
    those that this program put into ``segmentation`` earlier but those ``kept``, and their maps. Maps become volumes of
    their own; everything comes under the CT's transform and, in the subject hierarchy, under its patient and study.

    Raises UserError, with the scene as it was, where the results do not fit the CT or the vocabulary.
    """
    labels = files.labels
    size = ct_node.GetImageData().GetDimensions()[::-1]
    region = region or Region.whole(size)
    if labels is None or labels.shape != region.shape or not region.fits(size):
        raise _unexpected(files.folder)
    labels = in_whole_grid(labels, region, size)
    earlier = recall(segmentation)
    try:
        if segmentation is None:
            name = slicer.mrmlScene.GenerateUniqueName(f"{ct_node.GetName()} organs")
            segmentation = show_segmentation(labels, vocabulary, ct_node, name)
            added = {each: each for each in segmentation.GetSegmentation().GetSegmentIDs()}
        else:
            fresh = without_kept(labels, vocabulary, segmentation, kept, ct_node)
            added = replace_organs(
                segmentation, lambda node: add_organs(node, fresh, vocabulary, ct_node), kept.segments
            )
    except ValueError:
        raise _unexpected(files.folder) from None
    tag_organs(segmentation, added)
    if earlier is not None:
        remove_nodes([*earlier.maps(), *earlier.label_maps()])
    nodes = CaseNodes(ct_node, segmentation)
    _show_maps(files.maps, nodes)
    under_transform_of(ct_node, [segmentation], nodes.maps())
    place_beside(ct_node, segmentation, nodes.maps())
    remember(nodes)
    return nodes


def keep_for_review(
    files: ResultFiles,
    nodes: CaseNodes,
    vocabulary: Vocabulary,
    region: Region | None = None,
    kept: Kept = NOTHING_KEPT,
    checksum: str = "",
) -> None:
    """Add the automatic result and the places to check to the case that :func:`show_result` gave for these files.

    ``checksum`` is that of the CT that was exported (see ``ct_checksum``).
    """
    assert files.labels is not None
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    origin = Origin(*files.model, vocabulary.name, date, checksum)
    images = [files.maps.get(name) for name in (PLACES, ALTERNATIVE)]
    places, alternative = (None if image is None else sitk.GetArrayViewFromImage(image) for image in images)
    region = region or Region.whole(files.labels.shape)
    if files.review is None or places is None or alternative is None:
        show_review(nodes, origin, region, files.labels, kept)
    elif places.shape != files.labels.shape or alternative.shape != files.labels.shape:
        raise _unexpected(files.folder)
    else:
        show_review(nodes, origin, region, files.labels, kept, files.review, places, alternative)
    remember(nodes)


def _show_maps(maps: dict[str, sitk.Image], nodes: CaseNodes) -> None:
    for level in LEVELS:
        images = {expert: maps.get(f"attention_{expert}_level{level}") for expert in _EXPERTS}
        if found := {expert: image for expert, image in images.items() if image is not None}:
            nodes.attention[level] = show_attention(found, level)
    if "deciding_expert" in maps:
        nodes.deciding_expert = show_deciding_expert(maps["deciding_expert"])
    for key, (name, title) in _MAPS.items():
        if key in maps:
            setattr(nodes, key, show_map(maps[key], name, title, "Inferno"))


def _model(request: Path) -> tuple[str, str]:
    """Name and checksum of the model, as the worker has noted them beside its results."""
    try:
        bundle = read_json(request)["bundle"]
        return str(bundle["name"]), str(bundle["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _read(path: Path) -> sitk.Image:
    try:
        # In Slicer's process Qt may have set a locale with a decimal comma.
        with no_itk_warnings():
            return sitk.ReadImage(str(path))
    except RuntimeError:
        raise _unexpected(path.parent) from None


def _unexpected(folder: Path) -> UserError:
    return UserError(
        f"The results in {folder} are incomplete or do not belong to this CT.", "Segment the CT once more."
    )
