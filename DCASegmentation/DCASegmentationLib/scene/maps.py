"""The maps of a case (attention, uncertainty, disagreement, dominant expert): files, volumes, colors, and legends.

A result has up to fifteen maps, most of which are never viewed. So they stay files until they are first shown: as
volumes, all of them would take memory and block the window when a result appears.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from dcaseg.rendering.body import AIR_HU, COARSE_MM, compute_body_in_steps
from dcaseg.rendering.layout import EXPERTS, SHORT_EXPERT_TITLES, color_table
from dcaseg.temp_paths import is_left_over, own_prefix
from DCASegmentationLib.scene.case_record import (
    LEVELS,
    MAP_NAMES,
    CaseNodes,
    get_attention_name,
    read_case_nodes,
    write_case_nodes,
)
from DCASegmentationLib.scene.placement import note_grids
from DCASegmentationLib.scene.subject_hierarchy import place_in_folder
from DCASegmentationLib.scene.volumes import CTPlacement, add_volume, get_ijk_to_ras, place_under

_TAG = "DCASegmentation.colors"


def get_scale_colors(name: str) -> Any:
    """The vtkMRMLColorTableNode of a perceptual color map (a key of ``rendering.layout.COLOR_MAPS``).

    It is a separate node, saved with the scene, because slicer-core does not include Slicer's files of these colors.
    """
    table = color_table(name)
    return _get_color_node(
        f"{name} (0 to 1)", [(f"{i / (len(table) - 1):.2f}", *rgb, 255) for i, rgb in enumerate(table)]
    )


def get_expert_colors() -> Any:
    """The vtkMRMLColorTableNode with the names and colors of the experts; 0, the background, is transparent."""
    names = [f"{SHORT_EXPERT_TITLES[expert].lower()} organs" for _, expert, _ in EXPERTS]
    colors = [color for _, _, color in EXPERTS]
    entries = [("background", 0, 0, 0, 0), *((name, *rgb, 255) for name, rgb in zip(names, colors, strict=True))]
    return _get_color_node("DCA experts", entries)


def _get_color_node(name: str, entries: Sequence[tuple[Any, ...]]) -> Any:
    if (node := _find_color_node(name)) is not None:
        return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", name)
    node.SetTypeToUser()
    node.SetNumberOfColors(len(entries))
    node.GetLookupTable().SetRange(0, len(entries) - 1)
    for index, (label, red, green, blue, opacity) in enumerate(entries):
        node.SetColor(index, label, red / 255.0, green / 255.0, blue / 255.0, opacity / 255.0)
    node.SetAttribute("Category", "DCA")
    node.SetAttribute(_TAG, name)
    # A node hidden from editors would not be saved with the scene. In Slicer, only saved maps need their colors saved.
    node.SetHideFromEditors(False)
    node.SetSaveWithScene(not hasattr(slicer, "app"))
    return node


def save_colors(saved: bool) -> None:
    """Set whether the color nodes are saved with the scene; they must be if the maps are."""
    for node in _list_color_nodes():
        node.SetSaveWithScene(saved)


def _find_color_node(name: str) -> Any | None:
    return next((node for node in _list_color_nodes() if node.GetAttribute(_TAG) == name), None)


def _list_color_nodes() -> list[Any]:
    nodes = slicer.util.getNodesByClass("vtkMRMLColorTableNode")
    return [node for node in nodes if node.GetAttribute(_TAG) is not None]


# Width and height as fractions of the view. Slicer sets the text size from the width of the legend and its labels, and
# the title has the same size. A scale has short labels and must be narrow, or its title would cross the whole image.
_SCALE_SIZE, _NAMES_SIZE = (0.06, 0.3), (0.2, 0.26)
# In the lower right corner, where axial and coronal views show air or the table.
_POSITION = (0.98, 0.02)


def add_scale_legend(node: Any, title: str) -> Any:
    """Add a legend with numbers from 0 to 1 to a map volume. Returns the vtkMRMLColorLegendDisplayNode."""
    legend = _add_legend(node, title)
    legend.SetSize(*_SCALE_SIZE)
    legend.SetLabelFormat("%.1f")
    legend.SetNumberOfLabels(3)
    return legend


def add_name_legend(node: Any, title: str, count: int) -> Any:
    """Add a legend with the names of its ``count`` colors to a label map. Returns the vtkMRMLColorLegendDisplayNode."""
    legend = _add_legend(node, title)
    legend.SetSize(*_NAMES_SIZE)
    legend.SetUseColorNamesForLabels(True)
    legend.SetMaxNumberOfColors(count)
    legend.SetNumberOfLabels(count)
    return legend


def refresh_legend(node: Any, is_shown: bool) -> None:
    """Show or hide the legend of a volume that is currently in the views.

    This always changes the visibility, because Slicer's views create a legend only then. A legend added before its
    volume had colors, or before a view showed the volume, would otherwise not appear.
    """
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(False)
        legend.SetVisibility(is_shown)


def _add_legend(node: Any, title: str) -> Any:
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(title)
    legend.SetPosition(*_POSITION)
    legend.SetVisibility(True)
    return legend


# The smallest value that is displayed; 0 is outside the body. Where one expert is dominant, the attention to the others
# falls to 1e-8, and a hole in their maps would look like missing data.
MIN_SHARE = 1e-12
# Maps without levels: name of the volume, title of its legend, colors.
_SINGLE = {
    "entropy": ("Uncertainty (entropy)", "Uncertainty", "Inferno"),
    "disagreement": ("Disagreement", "Disagreement", "Inferno"),
}


def show_attention(maps: Mapping[str, sitk.Image], level: int) -> dict[str, Any]:
    """Add the attention maps of one level, by expert ("head", "medium", "tail"); their values (0 to 1) sum to 1.

    Returns the vtkMRMLScalarVolumeNode of each expert.
    """
    return {expert: show_named_map(image, get_attention_name(level, expert)) for expert, image in maps.items()}


def show_map(image: sitk.Image, name: str, title: str, colors: str) -> Any:
    """Add a map with values from 0 (dark) to 1 (bright), with a color scale and a legend.

    ``title`` is the title of the legend; ``colors`` is "Viridis" or "Inferno"; 0 is transparent. Returns the
    vtkMRMLScalarVolumeNode.
    """
    node = add_volume(image, name, "vtkMRMLScalarVolumeNode", hidden=True)
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(get_scale_colors(colors).GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetLowerThreshold(MIN_SHARE)
    display.SetUpperThreshold(1.0)
    display.SetApplyThreshold(True)
    add_scale_legend(node, title)
    return node


def show_named_map(image: sitk.Image, name: str) -> Any:
    """Add the map with this name (see ``case_record.MAP_NAMES``) as a volume node."""
    if name == "dominant_expert":
        return show_dominant_expert(image)
    if name in _SINGLE:
        return show_map(image, *_SINGLE[name])
    _, expert, level = name.split("_")
    number = level.removeprefix("level")
    # Short, because a long title would cover the anatomy.
    title = f"Attention: {SHORT_EXPERT_TITLES[expert].lower()}"
    return show_map(image, f"{expert.capitalize()} expert attention (level {number})", title, "Viridis")


def show_dominant_expert(image: sitk.Image, name: str = "Dominant expert") -> Any:
    """Add the map of dominant experts (0 background, 1 head, 2 medium, 3 tail) with names, colors, and a legend.

    Returns the vtkMRMLLabelMapVolumeNode.
    """
    node = add_volume(image, name, "vtkMRMLLabelMapVolumeNode", hidden=True)
    node.GetDisplayNode().SetAndObserveColorNodeID(get_expert_colors().GetID())
    add_name_legend(node, "Dominant expert", len(EXPERTS) + 1)
    return node


_PREFIX = "DCASegmentation-maps-"
# This map is on the grid of the CT and 0 outside the organs; all others are on the coarser grid of the model.
_IN_ORGANS = "dominant_expert"
_FOLDER = "DCASegmentation.maps"
_SPACE, _BODY = "space.json", "body.npy"


def take_map_files(
    result: Path, nodes: CaseNodes, temporary: Path, keep: bool = False, placement: CTPlacement | None = None
) -> None:
    """Move, or with ``keep`` copy, the maps of the result folder ``result`` into a new folder in ``temporary``.

    They stay there until the segmentation of ``nodes`` is deleted or Slicer closes. ``placement`` is where the CT was
    when it was exported, None if it has not moved since. Raises OSError.
    """
    found = [path for name in MAP_NAMES if (path := result / f"{name}.nrrd").is_file()]
    if not found:
        return
    folder = Path(tempfile.mkdtemp(prefix=own_prefix(_PREFIX), dir=temporary))
    for path in found:
        (shutil.copyfile if keep else shutil.move)(path, folder / path.name)
    # The maps are in the world space of the exported CT, but the CT may be moved or hardened before they are shown.
    placement = placement or CTPlacement.from_volume(nodes.ct)
    space = {"from_world": placement.from_world.tolist(), "grid": placement.grid.tolist()}
    (folder / _SPACE).write_text(json.dumps(space), encoding="utf-8")
    nodes.segmentation.SetAttribute(_FOLDER, str(folder))


def _read_from_world(folder: Path, ct: Any) -> np.ndarray:
    """The matrix (4, 4) from the space of the map files to the CT's own space as it is now.

    Raises OSError or ValueError if the file that states it cannot be read.
    """
    try:
        space = json.loads((folder / _SPACE).read_text(encoding="utf-8"))
        placement = CTPlacement(np.array(space["from_world"]), np.array(space["grid"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{_SPACE} is damaged") from error
    return placement.to_own_space(ct)


def list_available_maps(nodes: CaseNodes) -> set[str]:
    """The names of the maps (see ``MAP_NAMES``) that a case has, as volumes or as files."""
    folder = _get_folder(nodes.segmentation)
    return {
        name
        for name in MAP_NAMES
        if nodes.get_map(name) is not None or (folder is not None and (folder / f"{name}.nrrd").is_file())
    }


def list_attention_levels(nodes: CaseNodes) -> list[int]:
    """The levels of attention of a case, ascending."""
    available = list_available_maps(nodes)
    return [
        level for level in LEVELS if any(get_attention_name(level, expert) in available for _, expert, _ in EXPERTS)
    ]


def load_map_volume(nodes: CaseNodes, name: str) -> Any | None:
    """The volume node of a map, loaded from its file if it has not been shown yet; None if the case lacks the map.

    Voxels outside the body are set to 0, which is not displayed.
    """
    node = nodes.get_map(name)
    folder = _get_folder(nodes.segmentation)
    if node is None and (recorded := read_case_nodes(nodes.segmentation)) is not None:
        # Another part of the panel may have loaded it.
        node = recorded.get_map(name)
        if node is not None:
            nodes.set_map(name, node)
    if node is not None or folder is None:
        return node
    try:
        image = sitk.ReadImage(str(folder / f"{name}.nrrd"))
        from_world = _read_from_world(folder, nodes.ct) if nodes.ct is not None else None
    except (RuntimeError, OSError, ValueError):
        return None
    node = show_named_map(image, name)
    # Large, and computed again by the next run: saved only if the user asks for it.
    node.SetSaveWithScene(False)
    if from_world is not None:
        place_under(nodes.ct, node, from_world)
        if name != _IN_ORGANS:
            _apply_cached_body_mask(node, nodes.ct, folder)
    nodes.set_map(name, node)
    write_case_nodes(nodes)
    note_grids(nodes)
    place_in_folder([node], nodes.segmentation)
    return node


def remove_map_files(segmentation: Any) -> None:
    """Delete the map files of a segmentation, unless it was cloned and another one has them too."""
    folder = _get_folder(segmentation)
    others = [each for each in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if each is not segmentation]
    if folder is not None and folder not in map(_get_folder, others):
        shutil.rmtree(folder, ignore_errors=True)
    segmentation.RemoveAttribute(_FOLDER)


def remove_unused_folders(temporary: Path, also_recent: bool = False) -> None:
    """Delete map folders in ``temporary`` that no segmentation in the scene uses.

    These are folders of this process, and of processes that have ended. With ``also_recent``, at the end of the
    session, all folders of this process are deleted.
    """
    used = set()
    if not also_recent:
        used = {_get_folder(node) for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}
    for folder in temporary.glob(f"{_PREFIX}*"):
        is_own = folder.name.startswith(own_prefix(_PREFIX))
        if (is_own or is_left_over(folder, _PREFIX)) and folder not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _get_folder(segmentation: Any) -> Path | None:
    """The folder with the map files; None if the path comes from a scene saved by another Slicer process."""
    text = segmentation.GetAttribute(_FOLDER)
    if not text or not Path(text).name.startswith(own_prefix(_PREFIX)):
        return None
    folder = Path(text)
    is_here = hasattr(slicer, "app") and folder.parent == Path(slicer.app.temporaryPath)
    return folder if is_here and folder.is_dir() else None


def _apply_cached_body_mask(node: Any, ct: Any, folder: Path) -> None:
    """Set a map to 0 in air and table. The body mask is computed once per grid and cached in the maps' folder."""
    values = slicer.util.arrayFromVolume(node)
    cache = _get_mask_file(folder, values.shape)
    try:
        outside = np.load(cache, allow_pickle=False)
    except (OSError, ValueError):
        outside = ~compute_body_mask(ct, node)
        np.save(cache, outside, allow_pickle=False)
    if outside.shape == values.shape:
        values[outside] = 0
        slicer.util.arrayFromVolumeModified(node)


def apply_body_mask(nodes: CaseNodes) -> None:
    """Set the map volumes of a case to 0 in air and table, where they mean nothing."""
    outside: dict[tuple[int, ...], np.ndarray] = {}
    for name in MAP_NAMES:
        node = nodes.get_map(name)
        if node is None or name == _IN_ORGANS:
            continue
        values = slicer.util.arrayFromVolume(node)
        if values.shape not in outside:
            outside[values.shape] = ~compute_body_mask(nodes.ct, node)
        values[outside[values.shape]] = 0
        slicer.util.arrayFromVolumeModified(node)


def _get_mask_file(folder: Path, shape: tuple[int, ...]) -> Path:
    return folder / f"{'x'.join(map(str, shape))}-{_BODY}"


def prepare_maps_in_steps(nodes: CaseNodes) -> Iterator[None]:
    """Compute the body mask of a case's maps in small steps, so that a map appears at once when it is chosen."""
    folder = _get_folder(nodes.segmentation)
    if folder is None or nodes.ct is None:
        return
    paths = [path for name in MAP_NAMES if name != _IN_ORGANS and (path := folder / f"{name}.nrrd").is_file()]
    if not paths:
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(paths[0]))
    try:
        reader.ReadImageInformation()
        from_world = _read_from_world(folder, nodes.ct)
    except (RuntimeError, OSError, ValueError):
        return
    shape = tuple(int(length) for length in reversed(reader.GetSize()))
    if (cache := _get_mask_file(folder, shape)).exists():
        return
    yield
    to_ras = np.eye(4)
    to_ras[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.array(reader.GetSpacing())
    to_ras[:3, 3] = reader.GetOrigin()
    body = yield from _compute_mask_in_steps(nodes.ct, from_world @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_ras, shape)
    # The result may have been deleted in the meantime, with its folder.
    if folder.is_dir():
        np.save(cache, ~body, allow_pickle=False)


def compute_body_mask(ct: Any, grid: Any) -> np.ndarray:
    """The body (bool, z, y, x) on the voxels of the volume node ``grid``.

    See ``dcaseg.rendering.body.compute_body_in_steps``. Both nodes must be under the same transform.
    """
    steps = _compute_mask_in_steps(ct, _get_ijk_to_ras(grid), slicer.util.arrayFromVolume(grid).shape)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return np.asarray(end.value)


def _compute_mask_in_steps(ct: Any, to_ras: np.ndarray, shape: tuple[int, ...]) -> Generator[None, None, np.ndarray]:
    """Do ``compute_body_mask`` in steps, on a grid of ``shape`` (z, y, x) whose indices (i, j, k) ``to_ras`` maps."""
    steps = [max(1, round(COARSE_MM / side)) for side in reversed(ct.GetSpacing())]
    to_index = np.linalg.inv(_get_ijk_to_ras(ct)) @ to_ras
    coarse = slicer.util.arrayFromVolume(ct)[tuple(slice(None, None, step) for step in steps)] > AIR_HU
    yield
    body = yield from compute_body_in_steps(coarse)
    return _on_grid(body, to_index, shape, steps)


def _on_grid(mask: np.ndarray, to_index: np.ndarray, shape: tuple[int, ...], steps: list[int]) -> np.ndarray:
    """Resample ``mask``, which has every ``steps``-th voxel (z, y, x) of the CT, to a grid; nearest neighbor.

    ``to_index`` (4, 4) maps the indices (i, j, k) of the grid of ``shape`` to those of the CT.
    """
    source = sitk.GetImageFromArray(mask.astype(np.uint8))
    source.SetSpacing([float(step) for step in reversed(steps)])
    # In the CT's index space, so that directions and origins cancel out.
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_index[:3, :3].ravel().tolist())
    transform.SetTranslation(to_index[:3, 3].tolist())
    reference = sitk.Image([int(length) for length in reversed(shape)], sitk.sitkUInt8)
    resampled = sitk.Resample(source, reference, transform, sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(resampled).astype(bool)


def _get_ijk_to_ras(node: Any) -> np.ndarray:
    return np.array(slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(node)))
