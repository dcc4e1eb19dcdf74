"""A corrected segmentation as a case to train on: checked, and written for ``corrected_case_job``."""

from __future__ import annotations

import json
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
from dcaseg.training.corrections import CASES, case_name
from dcaseg.worker.training_case import CASE, LABELS
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.ct_export import ct_checksum, export_ct, require_ct
from DCASegmentationLib.scene.finding_status import organ_is_reviewed
from DCASegmentationLib.scene.review_record import SUGGESTION, Origin, read_origin, read_review, read_state
from DCASegmentationLib.scene.segmentation import Layer, organs_by_segment, segment_layers
from DCASegmentationLib.scene.volumes import box_within

# Voxels of other sizes count the same volume to within this share, or ml.
_SAME_SHARE, _SAME_ML = 0.02, 0.1
_AGAIN = "Segment the CT again, and correct that result."


@dataclass(frozen=True)
class CorrectedCase:
    """``name`` of the case, ``organs`` it tells of (none for a CT alone), and the names of segments ``left_out``."""

    name: str
    organs: tuple[Organ, ...]
    left_out: tuple[str, ...]


def write_corrected_case(nodes: CaseNodes, folder: Path, training: Path, version: int = 1) -> CorrectedCase:
    """Check a case and write it into ``folder``, from where it can be added to the folder ``training``.

    Told of are the organs that are reviewed (see ``organ_is_reviewed``); of all others nothing is said. The name of
    the case comes from the checksum of its CT, and a ``version`` above 1 is added to it.

    Raises UserError where nothing was reviewed, the CT is gone or another than was segmented, a reviewed organ has no
    voxels, two segments or a segment that lies elsewhere, and where reviewed organs overlap; OutputError where the
    folder cannot be written.
    """
    origin = _origin(nodes)
    vocabulary = _vocabulary(origin)
    segments, left_out = _segments_of_organs(nodes, vocabulary)
    reviewed = _reviewed(nodes, vocabulary)
    labels = _labels(nodes, {organ: segments[organ.key] for organ in reviewed if organ.key in segments})
    path, _region = export_ct(nodes.ct, folder)
    name = case_name(origin.ct_checksum or ct_checksum(nodes.ct), version)
    _write(labels, path, folder)
    content = {
        "folder": str(training),
        "name": name,
        "vocabulary": vocabulary.name,
        "reviewed": [organ.key for organ in reviewed],
        "model": [origin.model, origin.sha256],
        "places": _touched_places(nodes),
    }
    (folder / CASE).write_text(json.dumps(content), encoding="utf-8")
    return CorrectedCase(name, reviewed, left_out)


def require_reviewed(nodes: CaseNodes) -> tuple[Organ, ...]:
    """The organs of a case that somebody has reviewed.

    Raises UserError where there are none, and where the CT is gone or another than was segmented.
    """
    return _reviewed(nodes, _vocabulary(_origin(nodes)))


def _reviewed(nodes: CaseNodes, vocabulary: Vocabulary) -> tuple[Organ, ...]:
    reviewed = tuple(organ for organ in vocabulary if organ_is_reviewed(nodes, organ.key))
    if not reviewed:
        raise UserError(
            "No organ of this case was reviewed as a whole.",
            "Check all places of an organ, or tick organs under What changed that you have looked at.",
        )
    return reviewed


def write_ct_alone(nodes: CaseNodes, folder: Path, training: Path) -> CorrectedCase:
    """Write the CT of a case without labels into ``folder``, from where it can be added to the folder ``training``.

    Raises UserError where the CT is gone and for what ``export_ct`` refuses, OutputError where ``folder`` cannot be
    written.
    """
    _require_ct(nodes)
    export_ct(nodes.ct, folder)
    (folder / CASE).write_text(json.dumps({"folder": str(training), "unlabelled": True}), encoding="utf-8")
    return CorrectedCase(case_name(ct_checksum(nodes.ct)), (), ())


def case_version(nodes: CaseNodes, training: Path) -> int:
    """1 for a CT that ``training`` does not hold yet, else the next number for a case of it."""
    origin = read_origin(nodes.segmentation)
    if origin is None or not origin.ct_checksum:
        return 1
    version = 1
    while (training / CASES / case_name(origin.ct_checksum, version)).exists():
        version += 1
    return version


def _origin(nodes: CaseNodes) -> Origin:
    """Where the case comes from, if its CT is still that one."""
    _require_ct(nodes)
    name = nodes.segmentation.GetName()
    origin = read_origin(nodes.segmentation)
    if origin is None or nodes.automatic is None:
        raise UserError(f"It is not known which automatic result {name} began as.", _AGAIN)
    moved = box_within(nodes.automatic, nodes.ct) is None
    if moved or (origin.ct_checksum and origin.ct_checksum != ct_checksum(nodes.ct)):
        raise UserError(f"{nodes.ct.GetName()} has changed since it was segmented.", _AGAIN)
    return origin


def _require_ct(nodes: CaseNodes) -> None:
    if nodes.ct is None:
        name = nodes.segmentation.GetName()
        raise UserError(f"The CT of {name} is no longer in the scene.", "Load it and segment it again.")
    require_ct(nodes.ct)


def _vocabulary(origin: Origin) -> Vocabulary:
    vocabulary = origin.organs()
    if vocabulary is None:
        raise UserError(f"This version knows no organs called {origin.vocabulary}.", "Update the extension.")
    return vocabulary


def _segments_of_organs(nodes: CaseNodes, vocabulary: Vocabulary) -> tuple[dict[str, str], tuple[str, ...]]:
    """The segment of each organ, by key, and the names of segments that stand for none.

    A segment of this program keeps its organ whatever it is called; one drawn anew counts by its name.
    """
    content, own = nodes.segmentation.GetSegmentation(), organs_by_segment(nodes.segmentation)
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
                f"Two segments stand for {vocabulary.by_key[key].name}: {other} and {name}.",
                "Join them (Segment Editor, Logical operators), or give one another name.",
            )
        else:
            found[key] = segment_id
    return found, tuple(left_out)


def _labels(nodes: CaseNodes, segments: dict[Organ, str]) -> np.ndarray:
    """The labels (z, y, x) of the organs on the grid of the CT."""
    layers = segment_layers(nodes.segmentation, nodes.ct)
    labels = np.zeros(nodes.ct.GetImageData().GetDimensions()[::-1], np.uint8)
    for organ, segment_id in segments.items():
        mask = _mask(layers, segment_id)
        count = 0 if mask is None else int(np.count_nonzero(mask[0]))
        _require_same_volume(nodes, organ, segment_id, count)
        assert mask is not None
        inside, layer = mask
        taken = labels[layer.box][inside]
        if taken.any():
            _refuse_overlap(nodes, organ, segments, taken)
        labels[layer.box][inside] = organ.label
    return labels


def _mask(layers: list[Layer], segment_id: str) -> tuple[np.ndarray, Layer] | None:
    for layer in layers:
        for value, each in layer.segments.items():
            if each == segment_id:
                return layer.labels == value, layer
    return None


def _require_same_volume(nodes: CaseNodes, organ: Organ, segment_id: str, count: int) -> None:
    """Raises UserError for a segment without voxels, and one that the grid of the CT does not hold."""
    image = slicer.vtkOrientedImageData()
    nodes.segmentation.GetBinaryLabelmapRepresentation(segment_id, image)
    own = 0 if image.IsEmpty() else int(np.count_nonzero(vtk_to_numpy(image.GetPointData().GetScalars())))
    name = nodes.segmentation.GetSegmentation().GetSegment(segment_id).GetName()
    if own == 0:
        raise UserError(
            f"The segment {name} is empty.",
            f"Remove it if there is no {organ.name.lower()}, or take the tick at it away under What changed.",
        )
    there = own * float(np.prod(image.GetSpacing())) / 1000
    here = count * float(np.prod(nodes.ct.GetSpacing())) / 1000
    if abs(there - here) > max(_SAME_SHARE * there, _SAME_ML):
        raise UserError(
            f"The segment {name} has {there:.1f} ml, of which {here:.1f} ml lie on the voxels of the CT.",
            "Set the segmentation's geometry to that of the CT (Segment Editor), or put both under one transform.",
        )


def _refuse_overlap(nodes: CaseNodes, organ: Organ, segments: dict[Organ, str], taken: np.ndarray) -> None:
    voxel = float(np.prod(nodes.ct.GetSpacing())) / 1000
    other = next(each for each in segments if each.label == int(taken[taken > 0][0]))
    ml = np.count_nonzero(taken == other.label) * voxel
    raise UserError(
        f"{other.name} and {organ.name} overlap in {ml:.2f} ml.",
        "Give these voxels to one of them (Segment Editor, Logical operators).",
    )


def _touched_places(nodes: CaseNodes) -> list[dict[str, Any]]:
    review, state = read_review(nodes.segmentation), read_state(nodes.segmentation)
    if review is None:
        return []
    words = {SUGGESTION: "suggestion accepted"}
    return [
        {"rank": place.rank, "organ": place.organ, "status": words.get(status, status)}
        for place in review.findings
        if (status := state.statuses.get(place.rank)) is not None
    ]


def _write(labels: np.ndarray, ct: Path, folder: Path) -> None:
    image = sitk.GetImageFromArray(labels)
    try:
        # In Slicer's process Qt may have set a locale with a decimal comma.
        with no_itk_warnings():
            image.CopyInformation(sitk.ReadImage(str(ct)))
            sitk.WriteImage(image, str(folder / LABELS), False)
    except RuntimeError:
        raise OutputError(
            f"The labels could not be written to {folder}: the disk is full, or the folder not writable.",
            "Free some space, or choose another temporary folder in Slicer's application settings (Modules).",
        ) from None
