"""The Python API: a CT as a file, image and array, and the files that are written."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import dcaseg
from dcaseg.errors import BundleError, ImageError, OutputError, UserError


@pytest.fixture(scope="module")
def ct(coarse_phantom):
    return coarse_phantom / "ct.nii.gz"


@pytest.fixture(scope="module")
def segmenter(small_bundle):
    return dcaseg.Segmenter(small_bundle, device="cpu", backend="eager")


@pytest.fixture(scope="module")
def result(segmenter, ct):
    return segmenter.segment(ct, review=True)


def ras_affine(image: sitk.Image) -> np.ndarray:
    """The affine that nibabel gives for the file of this image."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_a_file_gives_labels_volumes_attention_and_findings(result, ct):
    image = sitk.ReadImage(str(ct))
    assert result.labels.GetSize() == image.GetSize()
    assert result.labels.GetDirection() == pytest.approx(image.GetDirection())
    ml = float(np.prod(image.GetSpacing())) / 1000
    labels = sitk.GetArrayFromImage(result.labels)
    for organ in result.vocabulary:
        assert result.volumes_ml[organ.key] == pytest.approx(ml * (labels == organ.label).sum(), abs=1e-2)
    assert list(result.attention) == ["head", "medium", "tail"]
    total = sum(sitk.GetArrayFromImage(each) for each in result.attention.values())
    assert np.allclose(total, 1, atol=1e-4)
    assert result.dominant_expert.GetSize() == image.GetSize() and result.uncertainty is not None
    assert result.review is not None and result.details.device


def test_file_image_and_array_give_the_same_labels(segmenter, result, ct):
    image = dcaseg.read_ct(ct)
    array, affine = sitk.GetArrayFromImage(image).transpose(2, 1, 0), ras_affine(image)
    of_image = segmenter.segment(image, maps=False)
    of_array = segmenter.segment(array.astype(np.float32), affine, maps=False)
    assert of_image.attention == {} and of_image.dominant_expert is None and of_image.uncertainty is None
    expected = sitk.GetArrayFromImage(result.labels)
    assert np.array_equal(sitk.GetArrayFromImage(of_image.labels), expected)
    assert np.array_equal(of_array.labels_array.transpose(2, 1, 0), expected)
    assert of_array.labels.GetOrigin() == pytest.approx(image.GetOrigin())
    assert of_array.labels.GetDirection() == pytest.approx(image.GetDirection())


def test_a_tilde_in_a_path_is_the_home_folder(result, ct, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ct.parent)
    shutil.copy(ct, tmp_path / "ct.nii.gz")
    assert dcaseg.read_ct("~/ct.nii.gz").GetSize() == result.labels.GetSize()
    assert result.save("~/result") == tmp_path / "result"
    assert (tmp_path / "result" / "request.json").exists()


def test_organ_names_can_be_spelled_freely(segmenter, ct, small_bundle):
    chosen = dcaseg.segment(ct, model=small_bundle, device="cpu", organs=["Liver", "Right kidney", "left-kidney"])
    assert list(chosen.volumes_ml) == ["right_kidney", "left_kidney", "liver"]
    liver = chosen.vocabulary.by_key["liver"].label
    mask = sitk.GetArrayFromImage(chosen.mask("LIVER"))
    assert np.array_equal(mask, sitk.GetArrayFromImage(chosen.labels) == liver)
    with pytest.raises(UserError, match=r"no organ 'livr'.*Did you mean 'liver'"):
        segmenter.segment(ct, organs="livr")


@pytest.mark.slow
def test_save_writes_the_same_files_as_the_command(result, ct, small_bundle, tmp_path, dca):
    folder = result.save(tmp_path / "parents" / "of" / "it" / "result", extension=".nii.gz")
    done = dca(
        *("segment", ct, "-o", tmp_path / "command", "--bundle", small_bundle, "--device", "cpu"),
        *("--backend", "eager", "--review", "--no-scene", "--format", "nii.gz"),
    )
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "command").iterdir()}
    assert {path.name for path in folder.iterdir()} == names - {"log.txt"}
    for name in ("volumes.csv", "expert_attention.csv", "review.json"):
        assert (folder / name).read_text() == (tmp_path / "command" / name).read_text()
    assert np.array_equal(
        *(
            sitk.GetArrayFromImage(sitk.ReadImage(str(each / "labels.nii.gz")))
            for each in (folder, tmp_path / "command")
        )
    )
    with pytest.raises(OutputError, match="exists"):
        result.save(folder)
    assert result.save(folder, extension=".nii.gz", overwrite=True) == folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"\(notes.txt\)"):
        result.save(folder, overwrite=True)


def test_save_never_replaces_the_ct(segmenter, ct, tmp_path, monkeypatch):
    (tmp_path / "case").mkdir()
    shutil.copy(ct, tmp_path / "case/labels.nii.gz")
    monkeypatch.chdir(tmp_path)
    result = segmenter.segment("case/labels.nii.gz", maps=False)
    in_memory = segmenter.segment(dcaseg.read_ct(ct), maps=False)
    in_memory.save("case/../saved")
    shutil.copy("saved/request.json", "case")
    monkeypatch.chdir("/")
    with pytest.raises(OutputError, match="contains the CT"):
        result.save(tmp_path / "case", overwrite=True)
    assert (tmp_path / "case/labels.nii.gz").read_bytes() == Path(ct).read_bytes()
    monkeypatch.chdir(tmp_path / "saved")
    with pytest.raises(OutputError, match="not replaced"):
        in_memory.save(tmp_path / "saved", overwrite=True)
    monkeypatch.chdir(tmp_path)
    in_memory.save("saved", overwrite=True)


@pytest.mark.parametrize(
    ("ct_of", "affine_of", "message"),
    [
        (lambda array: array, lambda affine: None, "without an affine"),
        (lambda array: array[0], lambda affine: affine, "2 dimensions"),
        (lambda array: array, lambda affine: affine[:3], "shape"),
        (lambda array: array, lambda affine: affine * [1, 1, 0, 1], "without length"),
        (lambda array: array, lambda affine: affine + np.eye(4, k=1) * 0.5, "right angles"),
        (lambda array: array.astype(complex), lambda affine: affine, "not HU"),
        (lambda array: np.clip(array + 1024, 0, None), lambda affine: affine, "HU"),
    ],
)
def test_arrays_that_do_not_fit_a_ct_are_rejected(segmenter, ct, ct_of, affine_of, message):
    image = dcaseg.read_ct(ct)
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    with pytest.raises(ImageError, match=message):
        segmenter.segment(ct_of(array), affine_of(ras_affine(image)))


def corner_is_nan(array):
    array[:, :, :2] = np.nan


@pytest.mark.parametrize("given", ["image", "array"])
@pytest.mark.parametrize(
    ("change", "message"), [(corner_is_nan, "without a finite value"), (lambda a: a.fill(1e39), "finite value")]
)
def test_values_in_memory_get_the_checks_of_a_file(segmenter, ct, given, change, message):
    image = sitk.Cast(dcaseg.read_ct(ct), sitk.sitkFloat64)
    array = sitk.GetArrayFromImage(image)
    change(array.transpose(2, 1, 0))
    arguments = (array.transpose(2, 1, 0), ras_affine(image))
    if given == "image":
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(image)
        arguments = (changed,)
    with pytest.raises(ImageError, match=message):
        segmenter.segment(*arguments)


def test_geometry_in_memory_gets_the_checks_of_a_file(segmenter, ct, monkeypatch):
    image = dcaseg.read_ct(ct)
    sheared = sitk.Image(image)
    sheared.SetDirection((1, 0, 0, 0, 1, 0.3, 0, 0, 0.954))
    with pytest.raises(ImageError, match="not at right angles"):
        segmenter.segment(sheared)
    tiny = sitk.Image(image)
    tiny.SetSpacing((0.006, 0.006, 0.008))
    with pytest.raises(ImageError, match="impossible voxel spacing"):
        segmenter.segment(tiny)
    monkeypatch.setenv("DCA_MAX_VOXELS", "1000")
    for arguments in ((image,), (sitk.GetArrayFromImage(image).transpose(2, 1, 0), ras_affine(image))):
        with pytest.raises(ImageError, match="more than the limit"):
            segmenter.segment(*arguments)


def test_what_fills_the_outside_of_an_image_in_memory_is_read_as_air(segmenter, ct):
    image = dcaseg.read_ct(ct)
    array = sitk.GetArrayFromImage(image)
    array[:, :3] = 0
    filled = sitk.GetImageFromArray(array)
    filled.CopyInformation(image)
    of_image = segmenter.segment(filled, maps=False)
    assert any("filled with the value 0" in note for note in of_image.warnings)
    # The image of the caller stays as it was.
    assert np.array_equal(sitk.GetArrayViewFromImage(filled), array)


def test_unknown_models_and_attributes_raise(tmp_path):
    with pytest.raises(BundleError, match="no model bundle 'none-such'"):
        dcaseg.load_model("none-such")
    with pytest.raises(AttributeError, match="none_such"):
        _ = dcaseg.none_such


def test_the_default_model_is_shipped_with_the_library():
    model = dcaseg.load_model("dca-abdomen")
    assert model.folder.parent.name == "shipped" and model.metadata.vocabulary.name == "AMOS"


def test_import_is_fast_and_loads_no_large_library():
    code = (
        "import sys, time; start = time.perf_counter(); import dcaseg; seconds = time.perf_counter() - start;"
        "print([name for name in ('torch', 'monai', 'SimpleITK', 'numpy') if name in sys.modules], seconds < 0.2)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    # One of three runs must be fast enough, because the machine may be busy.
    assert "[] True\n" in [run.stdout for run in runs] and all(run.stdout.startswith("[]") for run in runs)


@pytest.mark.slow
def test_a_wheel_segments_out_of_the_box(ct, tmp_path):
    pytest.importorskip("setuptools", reason="the wheel is built with the setuptools of this environment")
    repository = Path(__file__).parents[1]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("DCASegmentation", "README.md", "LICENSE", "pyproject.toml"):
        path = repository / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ("wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path / "wheels", source)
    subprocess.run([*pip, *map(str, build)], check=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import dcaseg, sys; assert dcaseg.__file__.startswith(sys.argv[1]), dcaseg.__file__;"
        "result = dcaseg.segment(sys.argv[2], device='cpu', backend='eager', maps=False);"
        "assert 500 < result.volumes_ml['liver'] < 3500, result.volumes_ml"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)}
    environment.pop("DCA_MODELS", None)
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), str(ct)], check=True, cwd=tmp_path, env=environment
    )


def examples(docstring: str | None) -> str:
    """The code of a docstring: the indented lines after ``::``."""
    code = inspect.cleandoc(docstring or "").partition("::\n")[2]
    return textwrap.dedent("\n".join(line for line in code.splitlines() if line.startswith("    ") or not line))


@pytest.mark.slow
def test_the_examples_of_the_docstrings_run(small_bundle, ct, tmp_path, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    for name in ("first.nii.gz", "second.nii.gz", "ct.nii.gz"):
        shutil.copy(ct, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    names = {"dcaseg": dcaseg, "nibabel": nibabel}
    for documented in (dcaseg.Segmenter, dcaseg.Segmenter.segment, dcaseg.segment):
        code = examples(documented.__doc__)
        assert code
        exec(code, names)
    assert (tmp_path / "result" / "labels.nrrd").exists()


def test_the_example_of_a_model_runs(capsys):
    exec(examples(dcaseg.load_model.__doc__), {"dcaseg": dcaseg})
    assert "(3.0, 3.0, 3.0)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_of_training_makes_a_model(tmp_path, monkeypatch):
    """The lines run as they stand but for the options: a few steps of a tiny network on a coarse grid."""
    import dcaseg.training
    from dcaseg.training.options import GridOptions, TrainingOptions

    code = examples(dcaseg.training.__doc__)
    stated = "TrainingOptions(steps=200)"
    assert code.count(stated) == 1
    small = TrainingOptions(
        grid=GridOptions(spacing=(12.0, 12.0, 12.0)), patch=(16, 16, 16), n_filters=2, norm="batch", steps=2
    )
    monkeypatch.chdir(tmp_path)
    exec(code.replace(stated, "small"), {"small": small})
    assert dcaseg.load_model("model").metadata.spacing == (12.0, 12.0, 12.0)


@pytest.mark.parametrize("kind", [sitk.sitkLabelUInt8, sitk.sitkComplexFloat32, sitk.sitkVectorFloat32])
def test_an_image_without_a_number_per_voxel_is_refused(segmenter, kind):
    """ITK ends the process when a label map in its run-length code is used as an image."""
    with pytest.raises(ImageError, match="one value per voxel"):
        segmenter.segment(sitk.Image([40, 40, 40], kind))


def test_the_method_is_public_and_its_examples_run():
    exec(examples(dcaseg.DCANet.__doc__), {})
    page = (Path(__file__).parents[1] / "Resources/Docs/reference/python.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    (loop,) = (block for block in blocks if "DCANet" in block)
    names: dict[str, Any] = {}
    exec(loop, names)
    assert all(parameter.grad is not None for parameter in names["network"].experts.parameters())
