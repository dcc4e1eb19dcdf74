"""A corrected segmentation as a training case: checked, and written for the worker, which adds it to a training set."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
from vtk.util.numpy_support import vtk_to_numpy

from dcaseg.errors import OutputError, UserError
from dcaseg.imaging.itk_environment import no_itk_warnings
from dcaseg.organs import Organ, Vocabulary
from dcaseg.training.corrections import CASES, make_case_name
from dcaseg.worker.protocol import AddCorrectedCase, AddUnlabeledCT
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.click_labels import get_click_counts
from DCASegmentationLib.scene.ct_export import compute_ct_checksum, export_ct, require_ct
from DCASegmentationLib.scene.finding_status import is_organ_reviewed
from DCASegmentationLib.scene.review_record import SUGGESTION, Origin, read_origin, read_review, read_state
from DCASegmentationLib.scene.segmentation import Layer, get_layers, get_organs_by_segment, require_voxels
from DCASegmentationLib.scene.volumes import find_box_in_grid

# Volumes measured on different grids count as equal within this share, or this many ml.
_SAME_SHARE, _SAME_ML = 0.02, 0.1
_AGAIN = "Segment the CT again and correct that result."
_LABELS = "labels.nrrd"


@dataclass(frozen=True)
class CorrectedCase:
    """A case: its ``name``, its labeled ``organs`` (none for a CT alone), and names of segments ``left_out``.

    ``request`` asks the worker to add it to the training set.
    """

    name: str
    organs: tuple[Organ, ...]
    left_out: tuple[str, ...]
    request: AddCorrectedCase | AddUnlabeledCT


def write_corrected_case(nodes: CaseNodes, folder: Path, training: Path, version: int = 1) -> CorrectedCase:
    """Check a case and write it into ``folder``, from which the worker adds it to the training set ``training``.

    The case labels the reviewed organs (see ``is_organ_reviewed``); all other organs are unannotated. The name of the
    case is derived from the checksum of its CT, with ``version`` appended if it is above 1.

    Raises UserError if no organ was reviewed, if the CT was deleted or changed since the segmentation, if a reviewed
    organ has no voxels, two segments, or a segment outside the CT, and if reviewed organs overlap. Raises OutputError
    if the folder cannot be written to.
    """
    origin = _get_origin(nodes)
    vocabulary = _get_vocabulary(origin)
    segments, left_out = _match_segments(nodes, vocabulary)
    reviewed = _get_reviewed_organs(nodes, vocabulary)
    labels = _create_label_array(nodes, {organ: segments[organ.key] for organ in reviewed if organ.key in segments})
    path, _region = export_ct(nodes.ct, folder)
    name = make_case_name(origin.ct_checksum or compute_ct_checksum(nodes.ct), version)
    request = AddCorrectedCase(
        id=uuid.uuid4().hex,
        folder=str(training),
        name=name,
        ct=str(path),
        labels=str(_write(labels, path, folder)),
        vocabulary=vocabulary.name,
        reviewed=tuple(organ.key for organ in reviewed),
        model=origin.model,
        model_sha256=origin.sha256,
        findings=tuple(_list_checked_findings(nodes)),
        clicks=tuple(
            _list_clicks(nodes, {organ.key: segments[organ.key] for organ in reviewed if organ.key in segments})
        ),
    )
    return CorrectedCase(name, reviewed, left_out, request)


def require_reviewed(nodes: CaseNodes) -> tuple[Organ, ...]:
    """The reviewed organs of a case.

    Raises UserError if there are none, or if the CT was deleted or changed since the segmentation.
    """
    return _get_reviewed_organs(nodes, _get_vocabulary(_get_origin(nodes)))


def _get_reviewed_organs(nodes: CaseNodes, vocabulary: Vocabulary) -> tuple[Organ, ...]:
    reviewed = tuple(organ for organ in vocabulary if is_organ_reviewed(nodes, organ.key))
    if not reviewed:
        raise UserError(
            "No organ of this case has been fully reviewed.",
            "Check all findings of an organ, or mark the organs you have looked at as reviewed under What changed.",
        )
    return reviewed


def write_ct_alone(nodes: CaseNodes, folder: Path, training: Path) -> CorrectedCase:
    """Write the CT of a case, without labels, into ``folder``, from which the worker adds it to ``training``.

    Raises UserError if the CT was deleted or ``export_ct`` rejects it, and OutputError if ``folder`` cannot be written
    to.
    """
    _require_ct(nodes)
    path, _region = export_ct(nodes.ct, folder)
    request = AddUnlabeledCT(uuid.uuid4().hex, str(training), str(path))
    return CorrectedCase(make_case_name(compute_ct_checksum(nodes.ct)), (), (), request)


def get_next_case_version(nodes: CaseNodes, training: Path) -> int:
    """1 if ``training`` does not contain this CT yet, otherwise the next free number for a case of the CT."""
    origin = read_origin(nodes.segmentation)
    if origin is None or not origin.ct_checksum:
        return 1
    version = 1
    while (training / CASES / make_case_name(origin.ct_checksum, version)).exists():
        version += 1
    return version


def _get_origin(nodes: CaseNodes) -> Origin:
    """The origin of the case. Raises UserError unless its CT is still the one that was segmented."""
    _require_ct(nodes)
    require_voxels(nodes.segmentation)
    name = nodes.segmentation.GetName()
    origin = read_origin(nodes.segmentation)
    if origin is None or nodes.automatic is None:
        raise UserError(f"The automatic result that {name} was derived from is unknown.", _AGAIN)
    # Where the segmentation is does not matter here: what it covers of the CT is checked for each organ.
    moved = find_box_in_grid(nodes.automatic, nodes.ct, in_own_space=True) is None
    if moved or (origin.ct_checksum and origin.ct_checksum != compute_ct_checksum(nodes.ct)):
        raise UserError(f"{nodes.ct.GetName()} has changed since it was segmented.", _AGAIN)
    return origin


def _require_ct(nodes: CaseNodes) -> None:
    if nodes.ct is None:
        name = nodes.segmentation.GetName()
        raise UserError(f"The CT of {name} is no longer in the scene.", "Load the CT and segment it again.")
    require_ct(nodes.ct)


def _get_vocabulary(origin: Origin) -> Vocabulary:
    vocabulary = origin.get_vocabulary()
    if vocabulary is None:
        raise UserError(f"This version does not support the vocabulary {origin.vocabulary}.", "Update the extension.")
    return vocabulary


def _match_segments(nodes: CaseNodes, vocabulary: Vocabulary) -> tuple[dict[str, str], tuple[str, ...]]:
    """The segment ID of each organ, by organ key, and the names of the segments that match no organ.

    A segment created by this module keeps its organ even if it is renamed; any other segment is matched by its name.
    """
    content, own = nodes.segmentation.GetSegmentation(), get_organs_by_segment(nodes.segmentation)
    by_name = {text.casefold(): organ.key for organ in vocabulary for text in (organ.key, organ.name)}
    found: dict[str, str] = {}
    left_out = []
    for segment_id in content.GetSegmentIDs():
        name = content.GetSegment(segment_id).GetName()
        key = own.get(segment_id) or by_name.get(name.casefold())
        if key not in vocabulary.by_key:
            left_out.append(name)
        elif key in found:
            other = content.GetSegment(found[key]).GetName()
            raise UserError(
                f"Two segments represent {vocabulary.by_key[key].name}: {other} and {name}.",
                "Combine them (Segment Editor, Logical operators), or rename one of them.",
            )
        else:
            found[key] = segment_id
    return found, tuple(left_out)


def _create_label_array(nodes: CaseNodes, segments: dict[Organ, str]) -> np.ndarray:
    """The labels (z, y, x) of the organs on the grid of the CT."""
    layers = get_layers(nodes.segmentation, nodes.ct)
    labels = np.zeros(nodes.ct.GetImageData().GetDimensions()[::-1], np.uint8)
    for organ, segment_id in segments.items():
        mask = _compute_mask(layers, segment_id)
        count = 0 if mask is None else int(np.count_nonzero(mask[0]))
        _require_same_volume(nodes, organ, segment_id, count)
        assert mask is not None
        inside, layer = mask
        taken = labels[layer.box][inside]
        if taken.any():
            _refuse_overlap(nodes, organ, segments, taken)
        labels[layer.box][inside] = organ.label
    return labels


def _compute_mask(layers: list[Layer], segment_id: str) -> tuple[np.ndarray, Layer] | None:
    for layer in layers:
        for value, each in layer.segments.items():
            if each == segment_id:
                return layer.labels == value, layer
    return None


def _require_same_volume(nodes: CaseNodes, organ: Organ, segment_id: str, count: int) -> None:
    """Raises UserError if a segment is empty or the grid of the CT does not cover it."""
    image = slicer.vtkOrientedImageData()
    nodes.segmentation.GetBinaryLabelmapRepresentation(segment_id, image)
    own = 0 if image.IsEmpty() else int(np.count_nonzero(vtk_to_numpy(image.GetPointData().GetScalars())))
    name = nodes.segmentation.GetSegmentation().GetSegment(segment_id).GetName()
    if own == 0:
        raise UserError(
            f"The segment {name} is empty.",
            f"Remove it if there is no {organ.name.lower()}, or mark the organ as not reviewed under What changed.",
        )
    segment_ml = own * float(np.prod(image.GetSpacing())) / 1000
    on_ct_ml = count * float(np.prod(nodes.ct.GetSpacing())) / 1000
    if abs(segment_ml - on_ct_ml) > max(_SAME_SHARE * segment_ml, _SAME_ML):
        raise UserError(
            f"The segment {name} has {segment_ml:.1f} ml, but {on_ct_ml:.1f} ml on the voxel grid of the CT.",
            "Set the segmentation's geometry to that of the CT (Segment Editor), or put both under the same transform.",
        )


def _refuse_overlap(nodes: CaseNodes, organ: Organ, segments: dict[Organ, str], taken: np.ndarray) -> None:
    voxel = float(np.prod(nodes.ct.GetSpacing())) / 1000
    other = next(each for each in segments if each.label == int(taken[taken > 0][0]))
    ml = np.count_nonzero(taken == other.label) * voxel
    raise UserError(
        f"{other.name} and {organ.name} overlap in {ml:.2f} ml.",
        "Assign these voxels to one of them (Segment Editor, Logical operators).",
    )


def _list_checked_findings(nodes: CaseNodes) -> list[dict[str, Any]]:
    review, state = read_review(nodes.segmentation), read_state(nodes.segmentation)
    if review is None:
        return []
    words = {SUGGESTION: "suggestion accepted"}
    return [
        {"rank": finding.rank, "organ": finding.organ, "status": words.get(status, status)}
        for finding in review.findings
        if state.is_checked(finding.rank) and (status := state.status(finding.rank))
    ]


def _list_clicks(nodes: CaseNodes, segments: dict[str, str]) -> list[dict[str, Any]]:
    """The clicks for each organ that was corrected with clicks; ``segments`` maps organ keys to segment IDs."""
    content = nodes.segmentation.GetSegmentation()
    counts = {key: get_click_counts(content.GetSegment(segment_id)) for key, segment_id in segments.items()}
    return [{"organ": key, "added": count[0], "removed": count[1]} for key, count in counts.items() if any(count)]


def _write(labels: np.ndarray, ct: Path, folder: Path) -> Path:
    """Write ``labels`` (z, y, x) on the grid of the image file ``ct`` into ``folder``; returns the file."""
    image, path = sitk.GetImageFromArray(labels), folder / _LABELS
    try:
        # Qt may have set a locale with a decimal comma in Slicer's process.
        with no_itk_warnings():
            image.CopyInformation(sitk.ReadImage(str(ct)))
            sitk.WriteImage(image, str(path), False)
    except RuntimeError:
        raise OutputError(
            f"The labels could not be written to {folder}: the disk is full or the folder is not writable.",
            "Free some space, or choose another temporary folder in Slicer's application settings (Modules).",
        ) from None
    return path
