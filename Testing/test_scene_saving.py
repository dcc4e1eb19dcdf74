"""Segmentations and scenes on disk: what is read back, and what is left when writing fails."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import OutputError
from dcaseg.organs import AMOS
from DCASegmentationLib.scene.storage import is_whole
from scene_case import small_ct, small_labels, small_result

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.scene


@pytest.fixture
def case():
    from DCASegmentationLib.scene.headless import boot
    from DCASegmentationLib.scene.scene_builder import build_scene

    boot()
    slicer.mrmlScene.Clear(False)
    yield build_scene(small_ct(), small_result(), AMOS, name="Case")
    slicer.mrmlScene.Clear(False)


def test_other_readers_find_the_labels_on_the_grid_of_the_ct(case, tmp_path):
    from DCASegmentationLib.scene.storage import save_segmentation

    save_segmentation(case.segmentation, tmp_path / "organs.seg.nrrd")
    image, ct = sitk.ReadImage(str(tmp_path / "organs.seg.nrrd")), small_ct()
    assert image.GetSize() == ct.GetSize()
    assert image.GetSpacing() == pytest.approx(ct.GetSpacing(), abs=1e-9)
    assert image.GetOrigin() == pytest.approx(ct.GetOrigin(), abs=1e-9)
    assert image.GetDirection() == pytest.approx(ct.GetDirection(), abs=1e-9)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(small_labels()))


def test_a_scene_read_in_a_new_process_contains_the_case(case, tmp_path):
    from DCASegmentationLib.scene.storage import save_scene_bundle

    save_scene_bundle(tmp_path / "case.mrb")
    program = f"""
import numpy as np
import slicer
from DCASegmentationLib.scene.headless import boot
boot()
assert slicer.mrmlScene.ReadFromMRB({str(tmp_path / "case.mrb")!r})
from DCASegmentationLib.scene.volumes import convert_to_sitk
import SimpleITK as sitk
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from scene_case import BOXES, small_ct, small_labels
from dcaseg.organs import AMOS
ct, node = small_ct(), slicer.mrmlScene.GetFirstNodeByName("Case CT")
back = convert_to_sitk(node)
assert back.GetSize() == ct.GetSize()
assert np.allclose(back.GetSpacing(), ct.GetSpacing(), rtol=0, atol=1e-9)
assert np.allclose(back.GetOrigin(), ct.GetOrigin(), rtol=0, atol=1e-9)
assert np.allclose(back.GetDirection(), ct.GetDirection(), rtol=0, atol=1e-9)
assert np.array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(ct))
organs = slicer.mrmlScene.GetFirstNodeByName("Case organs")
assert set(organs.GetSegmentation().GetSegmentIDs()) == set(BOXES)
labels = sitk.GetArrayFromImage(small_labels())
for key in BOXES:
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(organs, key, node)
    assert np.array_equal(voxels > 0, labels == AMOS.by_key[key].label), key
    segment = organs.GetSegmentation().GetSegment(key)
    assert segment.GetName() == AMOS.by_key[key].name
attention = slicer.mrmlScene.GetFirstNodeByName("Head expert attention (level 4)")
assert attention.GetDisplayNode().GetColorNode().GetName() == "Viridis (0 to 1)"
experts = slicer.mrmlScene.GetFirstNodeByName("Dominant expert")
assert experts.GetDisplayNode().GetColorNode().GetColorName(3) == "small organs"
composite = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceCompositeNode")
assert composite.GetBackgroundVolumeID() == node.GetID()
print("everything restored")
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "everything restored" in process.stdout, process.stderr


def test_an_existing_file_is_not_overwritten(case, tmp_path):
    from DCASegmentationLib.scene.storage import save_segmentation

    target = tmp_path / "organs.seg.nrrd"
    target.write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        save_segmentation(case.segmentation, target)
    assert target.read_text() == "precious"


def test_a_missing_folder_is_named(case, tmp_path):
    from DCASegmentationLib.scene.storage import save_scene_bundle

    with pytest.raises(OutputError, match="nowhere"):
        save_scene_bundle(tmp_path / "nowhere" / "case.mrb")


def test_a_wrong_suffix_is_rejected(case, tmp_path):
    from DCASegmentationLib.scene.storage import save_segmentation

    with pytest.raises(OutputError, match=r"\.seg\.nrrd"):
        save_segmentation(case.segmentation, tmp_path / "organs.nii.gz")


@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes as on Linux")
def test_a_full_disk_raises_an_error_and_leaves_no_file(tmp_path):
    """A limit on file sizes imitates a full disk: writes beyond it fail in the same way."""
    program = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from scene_case import small_ct, small_result
from dcaseg.errors import OutputError
from dcaseg.organs import AMOS
from DCASegmentationLib.scene.storage import save_scene_bundle, save_segmentation
from DCASegmentationLib.scene.scene_builder import build_scene
nodes = build_scene(small_ct(), small_result(), AMOS)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(tmp_path)!r})
for limit in (100, 900):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for write in (
        lambda: save_segmentation(nodes.segmentation, folder / "organs.seg.nrrd"),
        lambda: save_scene_bundle(folder / "case.mrb"),
    ):
        try:
            write()
        except OutputError as error:
            print("refused:", error)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.stdout.count("refused:") == 4, process.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_image_truncated_anywhere_is_incomplete(tmp_path):
    path = tmp_path / "labels.nrrd"
    for compressed in (True, False):
        sitk.WriteImage(small_labels(), str(path), useCompression=compressed)
        whole = path.read_bytes()
        assert is_whole(io.BytesIO(whole))
        for end in (10, len(whole) // 2, len(whole) - 1):
            assert not is_whole(io.BytesIO(whole[:end]))
