"""MONAI's command gives the same labels from a bundle as this program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from dcaseg.imaging.grid import Grid, make_model_grid
from dcaseg.imaging.intensity import apply_window
from dcaseg.imaging.resampling import resample
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.segmenter import Segmenter
from dcaseg.method.log_gap import partition
from dcaseg.models.bundle import Bundle, save_bundle
from dcaseg.models.metadata import Metadata, TrainingData
from dcaseg.models.monai_config import with_exact_rotation
from dcaseg.models.store import find_shipped_bundles
from dcaseg.organs import AMOS
from small_model import PATCH, vivid_network

SHIPPED = find_shipped_bundles()
# If the two best organs are this close, float32 sums in another order may select the other one.
CLOSE_CALL = 1e-4

FLIPPED = np.diag([1.0, -1.0, -1.0])
OBLIQUE = np.reshape(sitk.VersorRigid3DTransform((0.02, 0.13, 0.05, 0.99)).GetMatrix(), (3, 3))

torch.set_num_threads(1)


def soft_ct(path: Path, direction: np.ndarray) -> Path:
    """Smooth noise around 0 HU on an anisotropic grid, as NIfTI."""
    noise = gaussian_filter(np.random.default_rng(4).normal(size=(34, 58, 62)), 1.5)
    ct = sitk.GetImageFromArray((150 * noise / noise.std()).astype(np.int16))
    ct.SetSpacing((3.1, 2.9, 4.7))
    ct.SetOrigin((-31.0, 17.25, -404.0))
    ct.SetDirection(direction.ravel())
    sitk.WriteImage(ct, str(path))
    return path


@pytest.fixture(scope="module")
def random_bundle(tmp_path_factory) -> Path:
    """Random weights whose labels change from voxel to voxel."""
    network = vivid_network(len(AMOS))
    sizes = {organ.label: 100 - organ.label for organ in AMOS}
    metadata = Metadata(
        name="random",
        description="Random weights.",
        vocabulary=AMOS,
        spacing=(4.0, 3.5, 4.5),
        orientation="RAS",
        hu_window=(-160.0, 240.0),
        # Two of the CT's axes become coarser, one finer.
        anti_aliasing=True,
        patch=PATCH,
        partition=partition(sizes, "average"),
        training_data=(TrainingData("No data", 0, 0, "CC0-1.0"),),
        limits=("Random weights.",),
    )
    return save_bundle(tmp_path_factory.mktemp("bundle") / "random", network, metadata).folder


def run_monai(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def labels_by_monai(bundle: Path, ct: Path, out: Path) -> sitk.Image:
    """The labels from the command in the model card."""
    run = run_monai(
        "run", "--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle),
        "--image", str(ct), "--output_dir", str(out),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    (written,) = out.iterdir()
    return sitk.ReadImage(str(written))


def leads(bundle: Bundle, ct: sitk.Image) -> np.ndarray:
    """The difference between the best and the second-best probability at each voxel of the CT (z, y, x)."""
    from monai.inferers import sliding_window_inference

    metadata = bundle.metadata
    grid = make_model_grid(ct, metadata.spacing, metadata.orientation)
    volume = apply_window(
        sitk.GetArrayFromImage(resample(ct, grid, anti_aliasing=metadata.anti_aliasing)), *metadata.hu_window
    )
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(volume)[None, None], metadata.patch, 1, bundle.network(), metadata.overlap, "gaussian"
        )
        probabilities = torch.softmax(logits, dim=1)[0].numpy()
    best = np.zeros((2, *ct.GetSize()[::-1]), dtype=np.float32)
    for channel in probabilities:
        on_ct = sitk.GetArrayFromImage(resample(grid.make_image(channel), Grid.from_image(ct), "linear"))
        best = np.sort(np.concatenate([best, on_ct[None]]), axis=0)[1:]
    return best[1] - best[0]


def assert_same_labels(bundle_folder: Path, ct_path: Path, out: Path) -> None:
    bundle = Bundle.load(bundle_folder)
    ct = sitk.ReadImage(str(ct_path))

    ours = Segmenter(bundle, device="cpu").segment(ct, SegmentOptions(keep_islands=True, body_box=False)).labels
    monai = labels_by_monai(bundle_folder, ct_path, out)

    assert Grid.from_image(monai).is_same_as(Grid.from_image(ct))
    ours_array, monai_array = (sitk.GetArrayFromImage(image) for image in (ours, monai))
    assert len(np.unique(ours_array)) > 3, "labels without variety would agree whatever the grids"
    different = ours_array != monai_array
    assert different.mean() < 1e-3
    if different.any():
        assert leads(bundle, ct)[different].max() < CLOSE_CALL


@pytest.mark.slow
@pytest.mark.parametrize("direction", [FLIPPED, OBLIQUE @ FLIPPED], ids=["flipped", "oblique"])
def test_monai_and_this_program_give_the_same_labels_with_random_weights(random_bundle, tmp_path, direction):
    assert_same_labels(random_bundle, soft_ct(tmp_path / "ct.nii.gz", direction), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda folder: folder.name)
def test_monai_and_this_program_give_the_same_labels_with_the_shipped_model(bundle, tmp_path):
    from dcaseg.synthesis.phantom.case import generate

    sitk.WriteImage(generate(7, spacing=(3.0, 3.0, 5.0)).ct, str(tmp_path / "phantom.nii.gz"))

    assert_same_labels(bundle, tmp_path / "phantom.nii.gz", tmp_path / "out")


def test_single_precision_axes_become_exactly_perpendicular_and_nothing_else_changes():
    affine = np.eye(4)
    affine[:3] = np.column_stack([OBLIQUE @ np.diag([3.1, -2.9, 4.7]), (-31.0, 17.25, -404.0)])
    image = SimpleNamespace(affine=torch.from_numpy(affine.astype(np.float32)))

    exact = with_exact_rotation(image).affine.numpy()

    axes = exact[:3, :3] / np.linalg.norm(exact[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(exact, affine, atol=1e-5)


@pytest.mark.slow
def test_monai_finds_the_network_as_the_metadata_describe_it(random_bundle):
    configs = random_bundle / "configs"

    run = run_monai(
        "verify_net_in_out", "network_def", "--config_file", str(configs / "inference.json"),
        "--meta_file", str(configs / "metadata.json"), "--device", "cpu",
    )  # fmt: skip

    assert run.returncode == 0, run.stderr[-3000:]


def test_monai_builds_the_network_with_the_weights_of_the_bundle(random_bundle):
    """MONAI cannot read them itself: the configuration calls this program's reader, with its checks."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(random_bundle / "configs" / "inference.json"))
    parser["bundle_root"], parser["device"] = str(random_bundle), "cpu"
    found = parser.get_parsed_content("network").state_dict()
    expected = Bundle.load(random_bundle).network().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
