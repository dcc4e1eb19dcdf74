"""Segmentations, tables and scenes on disk: whole or not at all."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slicer
import vtk

from DCASegmentationLib.errors import OutputError
from DCASegmentationLib.imaging.writing import temporary_folder
from DCASegmentationLib.scene.nrrd_check import is_whole

_REMEDY = "Choose an existing folder you may write to, with free space."


def save_segmentation(node: Any, path: Path, overwrite: bool = False) -> None:
    """Write a vtkMRMLSegmentationNode as .seg.nrrd. Raises OutputError."""
    with _whole_or_not_at_all(path, ".seg.nrrd", overwrite) as unfinished:
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetScene(slicer.mrmlScene)
        storage.SetFileName(str(unfinished))
        storage.SetUseCompression(True)
        if not storage.WriteData(node) or not _is_whole_file(unfinished):
            raise OutputError(f"The segmentation cannot be written to {path}.", _REMEDY)


def save_table(text: str, path: Path, overwrite: bool = False) -> None:
    """Write a table that is CSV already. Raises OutputError."""
    with _whole_or_not_at_all(path, ".csv", overwrite) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_scene_bundle(path: Path, overwrite: bool = False) -> None:
    """Write the whole scene, data included, as one .mrb that Slicer opens. Raises OutputError."""
    with _whole_or_not_at_all(path, ".mrb", overwrite) as unfinished:
        if not slicer.mrmlScene.WriteToMRB(str(unfinished)) or not _is_complete(unfinished):
            raise OutputError(f"The scene cannot be written to {path}.", _REMEDY)


def _is_whole_file(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_whole(stream)
    except OSError:
        return False


def _is_complete(bundle: Path) -> bool:
    """Whether the archive holds a scene and every image in it is whole; a full disk cuts either without an error."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            scenes = [name for name in archive.namelist() if name.endswith(".mrml")]
            images = [name for name in archive.namelist() if name.endswith(".nrrd")]
            return (
                len(scenes) == 1
                and archive.read(scenes[0]).rstrip().endswith(b"</MRML>")
                and all(_is_whole_member(archive, name) for name in images)
            )
    except (OSError, zipfile.BadZipFile):
        return False


def _is_whole_member(archive: zipfile.ZipFile, name: str) -> bool:
    with archive.open(name) as stream:
        return is_whole(stream)


@contextmanager
def _whole_or_not_at_all(path: Path, suffix: str, overwrite: bool) -> Iterator[Path]:
    """A place beside ``path`` to write to, under the same name, that becomes ``path`` on success."""
    if not path.name.endswith(suffix):
        raise OutputError(f"{path.name} does not end in {suffix}.", f"Name the file with {suffix} at its end.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already.", "Choose another name, or allow it to be overwritten.")
    try:
        # A folder, not another file name: the name of a .mrb also stands inside of it.
        with temporary_folder(path.name, path.parent) as folder:
            with _vtk_messages_off():
                yield folder / path.name
            (folder / path.name).replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.", _REMEDY) from error


@contextmanager
def _vtk_messages_off() -> Iterator[None]:
    """A failed write is reported once, by the error raised, not also by VTK's log."""
    before = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(before)
