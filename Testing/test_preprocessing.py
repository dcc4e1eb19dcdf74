"""Preprocessing presets: grids, intensities, the shared cache, and equal resampling in training and inference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import UserError
from dcaseg.imaging.grid import Grid, make_model_grid, resize_grid
from dcaseg.imaging.intensity import apply_window, standardize
from dcaseg.imaging.resampling import resample
from dcaseg.training.cases import cache_folder, load_case, prepare_case, save_case
from dcaseg.training.export import export_bundle
from dcaseg.training.options import PRESETS, GridOptions, TrainingOptions, get_preprocessing
from dcaseg.training.sampling import PatchSampler
from dcaseg.training.trainer import Trainer
from test_training import OPTIONS, THREE_BALLS, case_of_balls


@pytest.fixture
def ct() -> sitk.Image:
    generator = np.random.default_rng(0)
    image = sitk.GetImageFromArray(generator.integers(-1000, 1000, (10, 20, 30)).astype(np.int16))
    image.SetSpacing((1.0, 2.0, 5.0))
    image.SetOrigin((7.0, -3.0, 11.0))
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    return image


def faces(grid: Grid) -> np.ndarray:
    """The lowest and highest corners of the volume (outer faces of voxels), in mm."""
    half = np.abs(grid.axes) @ np.array(grid.spacing) / 2
    corners = grid.get_corners()
    return np.array([corners.min(axis=0) - half, corners.max(axis=0) + half])


def test_a_grid_of_fixed_shape_covers_the_whole_image(ct):
    grid = resize_grid(ct, (8, 16, 24), "RAS")
    assert grid.shape == (8, 16, 24) and grid.spacing == pytest.approx((30 / 24, 40 / 16, 50 / 8))
    np.testing.assert_allclose(faces(grid), faces(Grid.from_image(ct)), atol=1e-9)
    assert grid.direction == make_model_grid(ct, (1.0, 1.0, 1.0), "RAS").direction
    same = resize_grid(ct, (10, 20, 30), "LAS")
    assert same.spacing == pytest.approx((1.0, 2.0, 5.0))
    with pytest.raises(ValueError, match="without a voxel"):
        resize_grid(ct, (0, 1, 1))


def test_a_constant_image_stays_constant_with_a_fixed_shape(ct):
    flat = ct * 0 + 70
    assert np.unique(prepare_case("flat", flat, None, GridOptions(shape=(7, 33, 64))).hu).tolist() == [70]


def test_a_case_of_fixed_shape_keeps_its_voxel_size_on_disk(ct, tmp_path):
    case = prepare_case("a", ct, ct * 0 + 1, get_preprocessing("dhc").grid)
    assert case.hu.shape == (80, 160, 160) and case.labels is not None and (case.labels == 1).all()
    save_case(case, tmp_path / "a.npz")
    read = load_case(tmp_path / "a.npz")
    assert read.get_voxel_size(GridOptions()) == pytest.approx((50 / 80, 40 / 160, 30 / 160))
    assert case_of_balls(1).get_voxel_size(GridOptions(spacing=(1.0, 2.0, 3.0))) == (3.0, 2.0, 1.0)


def test_z_scores_use_the_whole_case():
    case, grid = case_of_balls(1), GridOptions(scaling="z_score")
    whole = case.scale_intensity(case.hu, grid)
    assert whole.mean() == pytest.approx(0, abs=1e-4) and whole.std() == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(case.scale_intensity(case.hu[3:9], grid), whole[3:9])
    options = replace(OPTIONS, grid=grid, augment=False)
    assert PatchSampler([case], options, np.random.default_rng(0)).draw(2).volumes.min() < 0
    assert standardize(np.full(3, 5), 5.0, 0.0).tolist() == [0, 0, 0]


def test_a_run_with_z_scores_trains_without_augmentation_and_cannot_be_exported(tmp_path):
    from dcaseg.training.checkpoints import RunRecord, write_record
    from dcaseg.training.training_set import TrainingSet

    options = replace(OPTIONS, grid=GridOptions(scaling="z_score"), steps=1)
    with pytest.raises(UserError, match="Augmentation"):
        Trainer(tmp_path, options, THREE_BALLS, [case_of_balls(1)], [])
    trainer = Trainer(tmp_path, replace(options, augment=False), THREE_BALLS, [case_of_balls(1)], [])
    trainer.run()
    from dcaseg.organs import AMOS

    write_record(tmp_path, RunRecord(AMOS, trainer.options, TrainingSet.from_phantoms(1, 0, 0), trainer.partition))
    with pytest.raises(UserError, match="published protocol"):
        export_bundle(tmp_path, tmp_path / "model")


def test_presets_with_the_same_grid_share_cached_cases(tmp_path):
    folders = {name: cache_folder(tmp_path, preset.grid) for name, preset in PRESETS.items()}
    assert folders["duomod"] == folders["magicnet"] == folders["galoss-amos"]
    assert len({folders[name] for name in ("default", "fine", "duomod", "dhc")}) == 4
    assert folders["dhc"].name == "80x160x160voxels-RAS"


def test_an_unknown_preset_is_rejected():
    with pytest.raises(UserError, match="'nnunet' is not a preprocessing preset") as raised:
        get_preprocessing("nnunet")
    assert "duomod" in raised.value.remedy


def test_the_spacing_of_the_paper_preset():
    assert TrainingOptions.make_paper_preset().grid == get_preprocessing("duomod").grid


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.grid.shape is None])
def test_training_resamples_as_inference_does(ct, name):
    """The segmenter uses ``make_model_grid`` and ``resample`` without rounding; training rounds to integer HU."""
    grid = PRESETS[name].grid
    prepared = prepare_case("a", ct, None, grid)
    target = make_model_grid(ct, grid.spacing, grid.orientation)
    seen = sitk.GetArrayFromImage(resample(ct, target, anti_aliasing=grid.anti_aliasing))
    assert np.abs(prepared.hu - seen).max() <= 0.5
    if grid.scaling == "window":
        inferred = apply_window(seen, *grid.hu_window)
        assert np.abs(prepared.scale_intensity(prepared.hu, grid) - inferred).max() <= 0.5 / 350


def test_the_command_lists_presets_prepares_cases_and_trains_on_them(dca, coarse_phantom, tmp_path):
    import json

    listed = dca("dataset", "presets")
    assert listed.code == 0 and all(name in listed.out for name in PRESETS)
    entry = {"image": str(coarse_phantom / "ct.nii.gz"), "label": str(coarse_phantom / "labels.nii.gz")}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    own = ("--preprocessing", "magicnet", "--spacing", "14,14,14")
    prepared = dca("dataset", "prepare", tmp_path / "list.json", "--cache", tmp_path / "cache", *own)
    assert prepared.code == 0 and "1 case is" in prepared.out, prepared.err
    (made,) = (tmp_path / "cache" / "14x14x14mm-RAS").iterdir()
    written = made.stat().st_mtime_ns
    tiny = ("--filters", 1, "--patch", 32, "--batch", 1, "--steps", 1, "--device", "cpu", "--cache", tmp_path / "cache")
    trained = dca("train", "-o", tmp_path / "run", "--data", tmp_path / "list.json", *own, *tiny)
    assert trained.code == 0, trained.err
    grid = json.loads((tmp_path / "run" / "run.json").read_text())["options"]["grid"]
    assert grid["scaling"] == "z_score" and grid["spacing"] == [14, 14, 14] and made.stat().st_mtime_ns == written
    refused = dca("train", "-o", tmp_path / "other", "--preprocessing", "dhc", "--spacing", "4,4,4")
    assert refused.code == 2 and "same number of voxels" in refused.err
