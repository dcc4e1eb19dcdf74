"""A segmented case as a MRML scene: the CT, its organs, the expert maps, and the review findings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import SimpleITK as sitk

from dcaseg.organs import Vocabulary
from dcaseg.rendering.layout import CaseResult
from dcaseg.rendering.planes import choose_planes
from dcaseg.review.schema import Review
from dcaseg.types import ProgressCallback
from DCASegmentationLib.scene.case_record import CaseNodes, write_case_nodes
from DCASegmentationLib.scene.ct_export import Region, compute_ct_checksum
from DCASegmentationLib.scene.headless import boot
from DCASegmentationLib.scene.maps import apply_body_mask, show_attention, show_named_map
from DCASegmentationLib.scene.result_import import show_review
from DCASegmentationLib.scene.review_record import Origin
from DCASegmentationLib.scene.segmentation import show_segmentation, tag_organs
from DCASegmentationLib.scene.storage import save_scene_bundle, save_segmentation
from DCASegmentationLib.scene.view_setup import arrange_views, group_in_folder
from DCASegmentationLib.scene.volumes import show_ct


@dataclass(frozen=True)
class ReviewFindings:
    """The review of a result, and the model that produced it.

    ``finding_ranks`` and ``alternative`` (labels) are images on the CT's grid (see ``review.schema``);
    ``model`` is the name of the model and ``sha256`` that of its weights.
    """

    review: Review
    finding_ranks: sitk.Image
    alternative: sitk.Image
    model: str
    sha256: str


def build_scene(
    ct: sitk.Image,
    result: CaseResult,
    vocabulary: Vocabulary,
    name: str = "Case",
    to_check: ReviewFindings | None = None,
) -> CaseNodes:
    """Add a case to the scene, which is created first outside Slicer.

    With ``to_check``, the module's Review section shows its findings when the scene is opened in Slicer. ``name``
    becomes the name of the case's folder in the subject hierarchy and part of the name of its CT. The slice views of
    Slicer's standard layout are set to the planes that show the most organs. Raises ValueError if the labels are not on
    the grid of the CT.
    """
    boot()
    ct_node = show_ct(ct, f"{name} CT")
    nodes = CaseNodes(ct_node, show_segmentation(result.labels, vocabulary, ct_node, f"{name} organs"))
    for level, maps in result.attention.items():
        nodes.attention[level] = show_attention(maps, level)
    for map_name in ("dominant_expert", "entropy", "disagreement"):
        if (image := getattr(result, map_name)) is not None:
            nodes.set_map(map_name, show_named_map(image, map_name))
    apply_body_mask(nodes)
    organs = nodes.segmentation.GetSegmentation().GetSegmentIDs()
    tag_organs(nodes.segmentation, {each: each for each in organs})
    if to_check is not None:
        _add_review(nodes, result.labels, to_check)
    write_case_nodes(nodes)
    group_in_folder(name, nodes.all())
    arrange_views(ct_node, choose_planes(ct, result.labels))
    return nodes


def _add_review(nodes: CaseNodes, labels: sitk.Image, to_check: ReviewFindings) -> None:
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    review = to_check.review
    origin = Origin(to_check.model, to_check.sha256, review.vocabulary, date, compute_ct_checksum(nodes.ct))
    arrays = [sitk.GetArrayViewFromImage(image) for image in (labels, to_check.finding_ranks, to_check.alternative)]
    show_review(
        nodes,
        origin,
        Region.from_size(arrays[0].shape),
        arrays[0],
        review=review,
        finding_ranks=arrays[1],
        alternative=arrays[2],
    )


def save_scene(nodes: CaseNodes, segmentation: Path, bundle: Path, progress: ProgressCallback | None = None) -> None:
    """Write the segmentation as .seg.nrrd and the whole scene as .mrb. Raises OutputError."""
    report = progress or (lambda fraction, message: None)
    report(0.0, "Writing the segmentation")
    save_segmentation(nodes.segmentation, segmentation)
    report(0.3, "Writing the scene")
    save_scene_bundle(bundle)
    report(1.0, "Scene written")
