"""The CT is sent to the worker as NRRD: SimpleITK reads back the same voxels at the same positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = pytest.mark.scene
pytest.importorskip("slicer")

from DCASegmentationLib.scene.storage import write_nrrd

TURNED = np.array(
    [[-0.7, 0.1, 0.0, 12.25], [0.1, 0.7, 0.0, -300.1], [0.0, 0.0, 2.5, 1e-7], [0.0, 0.0, 0.0, 1.0]]
)  # left-handed, with columns at right angles


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"])
def test_voxels_of_every_type_and_their_positions_are_read_back(tmp_path: Path, kind: str):
    voxels = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(kind)
    write_nrrd(voxels[:, 1:, ::2], TURNED, tmp_path / "ct.nrrd")
    image = sitk.ReadImage(str(tmp_path / "ct.nrrd"))
    assert (sitk.GetArrayFromImage(image) == voxels[:, 1:, ::2]).all()
    for index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)):
        expected = (TURNED @ [*index, 1.0])[:3]
        assert image.TransformIndexToPhysicalPoint(index) == pytest.approx(expected, abs=1e-9)


def test_a_voxel_type_without_nrrd_name_is_rejected(tmp_path: Path):
    with pytest.raises(ValueError, match="complex64"):
        write_nrrd(np.zeros((2, 2, 2), np.complex64), TURNED, tmp_path / "ct.nrrd")
    assert list(tmp_path.iterdir()) == []
