"""The maps of a result while nobody looks at them: files of this session, each of which becomes a volume when shown.

A result has fourteen maps and most are never looked at. As volumes they would take memory, make the window stand when
a result appears, and be offered by every module.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from DCASegmentationLib.figures.palette import EXPERTS
from DCASegmentationLib.scene.case_record import LEVELS, MAP_NAMES, CaseNodes, attention_name, remember
from DCASegmentationLib.scene.hierarchy import place_in_folder
from DCASegmentationLib.scene.maps import show_named_map
from DCASegmentationLib.scene.transforms import parent_to_world, place_under
from DCASegmentationLib.scene.volumes import index_to_ras

_PREFIX = "DCASegmentation-maps-"
_FOLDER = "DCASegmentation.maps"
_SPACE, _BODY = "space.json", "body.npy"
_LEFT_OVER_AFTER = 2 * 24 * 3600  # s
_AIR_HU = -300
_COARSE_MM = 4.0


def take_map_files(result: Path, nodes: CaseNodes, temporary: Path) -> None:
    """Move the maps of the result folder ``result`` into a folder of their own below ``temporary``.

    They stay there until the segmentation of ``nodes`` goes, or Slicer does. Raises OSError.
    """
    found = [path for name in MAP_NAMES if (path := result / f"{name}.nrrd").is_file()]
    if not found:
        return
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=temporary))
    for path in found:
        shutil.move(path, folder / path.name)
    # The maps were made from the CT as it lay in the world then; it may be moved before they are shown.
    space = np.linalg.inv(parent_to_world(nodes.ct)).tolist()
    (folder / _SPACE).write_text(json.dumps(space), encoding="utf-8")
    nodes.segmentation.SetAttribute(_FOLDER, str(folder))


def available_maps(nodes: CaseNodes) -> set[str]:
    """The names of the maps (see ``MAP_NAMES``) that a case has, as volumes or as files."""
    folder = _folder_of(nodes.segmentation)
    return {
        name
        for name in MAP_NAMES
        if nodes.map(name) is not None or (folder is not None and (folder / f"{name}.nrrd").is_file())
    }


def levels_of(nodes: CaseNodes) -> list[int]:
    """The levels of attention of a case, ascending."""
    there = available_maps(nodes)
    return [level for level in LEVELS if any(attention_name(level, expert) in there for _, expert, _ in EXPERTS)]


def map_volume(nodes: CaseNodes, name: str) -> Any | None:
    """The volume node of a map, made from its file where it was not shown yet; None for one the case lacks.

    What lies outside of the body is 0 in it, which is not displayed.
    """
    node = nodes.map(name)
    folder = _folder_of(nodes.segmentation)
    if node is not None or folder is None:
        return node
    try:
        image = sitk.ReadImage(str(folder / f"{name}.nrrd"))
        space = json.loads((folder / _SPACE).read_text(encoding="utf-8"))
    except (RuntimeError, OSError, ValueError):
        return None
    node = show_named_map(image, name)
    # Made again with Slicer's next run, and large: saved only where the user asks for it.
    node.SetSaveWithScene(False)
    if nodes.ct is not None:
        place_under(nodes.ct, node, np.array(space))
        _empty_outside_body(node, nodes.ct, folder)
    nodes.set_map(name, node)
    remember(nodes)
    place_in_folder([node], nodes.segmentation)
    return node


def remove_map_files(segmentation: Any) -> None:
    """Remove the files that no volume was made of yet."""
    folder = _folder_of(segmentation)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    segmentation.RemoveAttribute(_FOLDER)


def remove_unused_folders(temporary: Path, also_recent: bool = False) -> None:
    """Remove folders of maps that no segmentation of the scene refers to: those of this process, and those that another
    one left behind days ago. With ``also_recent`` this session ends, and all of its own go."""
    used = set()
    if not also_recent:
        used = {_folder_of(node) for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}
    for folder in temporary.glob(f"{_PREFIX}*"):
        is_own = folder.name.startswith(f"{_PREFIX}{os.getpid()}-")
        try:
            is_old = time.time() - folder.stat().st_mtime > _LEFT_OVER_AFTER
        except OSError:
            continue
        if (is_own or is_old) and folder not in used:
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(segmentation: Any) -> Path | None:
    """The folder with the map files; None for a path that a scene brought along from elsewhere."""
    text = segmentation.GetAttribute(_FOLDER)
    if not text or not Path(text).name.startswith(f"{_PREFIX}{os.getpid()}-"):
        return None
    folder = Path(text)
    is_here = hasattr(slicer, "app") and folder.parent == Path(slicer.app.temporaryPath)
    return folder if is_here and folder.is_dir() else None


def _empty_outside_body(node: Any, ct: Any, folder: Path) -> None:
    """Set a map to 0 in air and table; the body is looked for once and kept beside the maps of that grid."""
    values = slicer.util.arrayFromVolume(node)
    kept = folder / f"{'x'.join(map(str, values.shape))}-{_BODY}"
    try:
        outside = np.load(kept, allow_pickle=False)
    except (OSError, ValueError):
        outside = ~body_mask(ct, node)
        np.save(kept, outside, allow_pickle=False)
    if outside.shape == values.shape:
        values[outside] = 0
        slicer.util.arrayFromVolumeModified(node)


def body_mask(ct: Any, grid: Any) -> np.ndarray:
    """The body (bool, z, y, x) on the voxels of the volume node ``grid``: the largest thing in the CT that is not air,
    without the table, and with the gas in it. Both nodes are under the same transform."""
    voxels = slicer.util.arrayFromVolume(ct)
    steps = [max(1, round(_COARSE_MM / side)) for side in reversed(ct.GetSpacing())]
    coarse = voxels[tuple(slice(None, None, step) for step in steps)] > _AIR_HU
    image = sitk.GetImageFromArray(coarse.astype(np.uint8))
    # Opening parts the body from the table it lies on.
    image = sitk.BinaryMorphologicalOpening(image, [1, 1, 1])
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(image))
    body = sitk.BinaryMorphologicalClosing(parts == 1, [2, 2, 1])
    planes = sitk.GetArrayFromImage(body)
    filled = np.stack([_filled(plane) for plane in planes]).astype(bool)
    return _on_grid(filled, ct, grid, steps)


def _filled(plane: np.ndarray) -> np.ndarray:
    """A plane of the body with what it encloses."""
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray(np.ascontiguousarray(plane))))


def _on_grid(mask: np.ndarray, ct: Any, grid: Any, steps: list[int]) -> np.ndarray:
    """The nearest value of ``mask``, which holds every ``steps``-th voxel (z, y, x) of the CT, at the grid's voxels."""
    to_ct = np.linalg.inv(_matrix(ct)) @ _matrix(grid)
    shape = slicer.util.arrayFromVolume(grid).shape
    source = sitk.GetImageFromArray(mask.astype(np.uint8))
    source.SetSpacing([float(step) for step in reversed(steps)])
    # In the CT's own indices, so that no direction or origin comes in between.
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(to_ct[:3, :3].ravel().tolist())
    transform.SetTranslation(to_ct[:3, 3].tolist())
    reference = sitk.Image([int(length) for length in reversed(shape)], sitk.sitkUInt8)
    resampled = sitk.Resample(source, reference, transform, sitk.sitkNearestNeighbor, 0)
    return sitk.GetArrayFromImage(resampled).astype(bool)


def _matrix(node: Any) -> np.ndarray:
    return np.array(slicer.util.arrayFromVTKMatrix(index_to_ras(node)))
