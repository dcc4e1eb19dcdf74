"""A segmented case as a MRML scene: the CT, its organs, and the maps of the experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk
import slicer

from DCASegmentationLib.figures.case import CaseResult
from DCASegmentationLib.figures.planes import choose_planes
from DCASegmentationLib.organs import Vocabulary
from DCASegmentationLib.scene.arrangement import arrange_views, group_in_folder
from DCASegmentationLib.scene.case_record import CaseNodes, remember
from DCASegmentationLib.scene.headless import boot
from DCASegmentationLib.scene.maps import show_attention, show_deciding_expert, show_map
from DCASegmentationLib.scene.saving import save_scene_bundle, save_segmentation
from DCASegmentationLib.scene.segmentation import show_segmentation
from DCASegmentationLib.scene.volumes import show_ct

Progress = Callable[[float, str], None]


def build_scene(ct: sitk.Image, result: CaseResult, vocabulary: Vocabulary, name: str = "Case") -> CaseNodes:
    """Add a case to the scene, making the scene first where no Slicer application has one.

    ``name`` becomes the folder of the case in the subject hierarchy and the name of its CT. The slice views of
    Slicer's standard layout are set to the planes that show most organs. Raises ValueError when the labels do not lie
    on the grid of the CT.
    """
    boot()
    ct_node = show_ct(ct, f"{name} CT")
    nodes = CaseNodes(ct_node, show_segmentation(result.labels, vocabulary, ct_node, f"{name} organs"))
    for level, maps in result.attention.items():
        nodes.attention[level] = show_attention(maps, level)
    if result.deciding_expert is not None:
        nodes.deciding_expert = show_deciding_expert(result.deciding_expert)
    if result.entropy is not None:
        nodes.entropy = show_map(result.entropy, "Uncertainty (entropy)", "Uncertainty", "Inferno")
    if result.disagreement is not None:
        nodes.disagreement = show_map(result.disagreement, "Disagreement", "Disagreement of decoders", "Inferno")
    remember(nodes)
    group_in_folder(name, nodes.all())
    arrange_views(ct_node, choose_planes(ct, result.labels))
    return nodes


def save_scene(nodes: CaseNodes, segmentation: Path, bundle: Path, progress: Progress | None = None) -> None:
    """Write the segmentation as .seg.nrrd and the whole scene as .mrb. Raises OutputError."""
    report = progress or (lambda fraction, message: None)
    report(0.0, "Writing the segmentation")
    save_segmentation(nodes.segmentation, segmentation)
    report(0.3, "Writing the scene")
    save_scene_bundle(bundle)
    report(1.0, "Scene written")


def clear_scene() -> None:
    """Remove everything from the scene (default nodes stay)."""
    slicer.mrmlScene.Clear(False)
