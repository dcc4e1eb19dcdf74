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
from DCASegmentationLib.scene.case_record import MAP_NAMES, CaseNodes, recall, remember
from DCASegmentationLib.scene.hierarchy import place_beside, place_in_folder
from DCASegmentationLib.scene.map_files import remove_map_files, take_map_files
from DCASegmentationLib.scene.maps import show_named_map
from DCASegmentationLib.scene.nrrd_writing import write_nrrd
from DCASegmentationLib.scene.organ_changes import NOTHING_KEPT, Kept
from DCASegmentationLib.scene.region import Region, in_whole_grid, region_of_interest
from DCASegmentationLib.scene.review_import import show_review, without_kept
from DCASegmentationLib.scene.review_record import Origin
from DCASegmentationLib.scene.segmentation import add_organs, show_segmentation
from DCASegmentationLib.scene.target import remove_nodes, replace_organs, tag_organs
from DCASegmentationLib.scene.transforms import index_to_world, parent_to_world, place_under

CT_FILE = "ct.nrrd"
_LABELS = "labels"
_REQUEST = "request.json"
_ORTHOGONAL = 1e-3


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
    """The results in a job folder. Reading them takes some tenths of a second, so it can be done in small steps.

    The maps stay files: see ``map_files``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: np.ndarray | None = None
        self.places: np.ndarray | None = None
        self.alternative: np.ndarray | None = None
        self.review: Review | None = None
        self.model = ("", "")

    def read(self) -> Iterator[None]:
        """Read file by file, pausing after each. Raises UserError where one is missing or damaged."""
        self.labels = _read(self.folder / f"{_LABELS}.nrrd")
        yield
        if (self.folder / f"{PLACES}.nrrd").exists():
            self.places = _read(self.folder / f"{PLACES}.nrrd")
            yield
            self.alternative = _read(self.folder / f"{ALTERNATIVE}.nrrd")
            self.review = read_review(self.folder / REVIEW)
            yield
        self.model = _model(self.folder / _REQUEST)


def import_result(
    folder: Path,
    ct_node: Any,
    vocabulary: Vocabulary,
    region: Region | None = None,
    segmentation: Any | None = None,
) -> CaseNodes:
    """Read the results in the job folder ``folder`` and show them: :class:`ResultFiles`, :func:`show_result`.

    All maps become volumes at once, and the folder stays as it is. All files are read before the scene is changed.
    Raises UserError where one is missing or damaged.
    """
    files = ResultFiles(folder)
    for _ in files.read():
        pass
    maps = {name: _read_image(path) for name in MAP_NAMES if (path := folder / f"{name}.nrrd").exists()}
    nodes = show_result(files, ct_node, vocabulary, region, segmentation)
    from_world = np.linalg.inv(parent_to_world(ct_node))
    for name, image in maps.items():
        node = show_named_map(image, name)
        place_under(ct_node, node, from_world)
        nodes.set_map(name, node)
    keep_for_review(files, nodes, vocabulary, region)
    place_in_folder(nodes.maps(), nodes.segmentation)
    return nodes


def take_maps(files: ResultFiles, nodes: CaseNodes) -> None:
    """Keep the maps of these files for the session, for :func:`map_files.map_volume`. Raises OutputError."""
    try:
        take_map_files(files.folder, nodes, Path(slicer.app.temporaryPath))
    except OSError as error:
        raise OutputError(
            f"The maps of the result could not be kept: {error.strerror or error}.",
            "Free some space in Slicer's temporary folder, then segment the CT once more.",
        ) from None


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
    those that this program put into ``segmentation`` earlier but those ``kept``; the maps of these go. The segmentation
    comes under the CT's transform and, in the subject hierarchy, under its patient and study.

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
            # They would be made anew, all at once; the panel makes them step by step.
            segmentation.RemoveClosedSurfaceRepresentation()
            fresh = without_kept(labels, vocabulary, segmentation, kept, ct_node)
            added = replace_organs(
                segmentation, lambda node: add_organs(node, fresh, vocabulary, ct_node), kept.segments
            )
    except ValueError:
        raise _unexpected(files.folder) from None
    tag_organs(segmentation, added)
    if earlier is not None:
        remove_nodes([*earlier.maps(), *earlier.label_maps()])
        remove_map_files(segmentation)
    nodes = CaseNodes(ct_node, segmentation)
    segmentation.SetAndObserveTransformNodeID(ct_node.GetTransformNodeID())
    place_beside(ct_node, segmentation)
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
    places, alternative = files.places, files.alternative
    region = region or Region.whole(files.labels.shape)
    if files.review is None or places is None or alternative is None:
        show_review(nodes, origin, region, files.labels, kept)
    elif places.shape != files.labels.shape or alternative.shape != files.labels.shape:
        raise _unexpected(files.folder)
    else:
        show_review(nodes, origin, region, files.labels, kept, files.review, places, alternative)
    remember(nodes)
    place_in_folder(nodes.label_maps(), nodes.segmentation)


def _model(request: Path) -> tuple[str, str]:
    """Name and checksum of the model, as the worker has noted them beside its results."""
    try:
        bundle = read_json(request)["bundle"]
        return str(bundle["name"]), str(bundle["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(_read_image(path))


def _read_image(path: Path) -> sitk.Image:
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
