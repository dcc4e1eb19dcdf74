"""The command line, as users see it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.cli.console import _make_progress_printer
from dcaseg.errors import format_install_command
from dcaseg.organs import AMOS
from dcaseg.synthesis.phantom.case import generate

SHIPPED = Path(__file__).parents[1] / "DCASegmentation/dcaseg/models/shipped"
COMMANDS = ["segment", "demo", "phantom", "synthesize", "partition", "model", "train", "evaluate", "bundle"]
HEAVY = ["torch", "monai", "slicer", "vtk", "SimpleITK", "numpy", "matplotlib"]

needs_slicer = pytest.mark.skipif(find_spec("slicer") is None, reason="slicer-core is not installed")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same_grid(a: sitk.Image, b: sitk.Image) -> bool:
    return a.GetSize() == b.GetSize() and all(
        np.allclose(getattr(a, part)(), getattr(b, part)(), atol=1e-5)
        for part in ("GetSpacing", "GetOrigin", "GetDirection")
    )


def test_help_names_every_command_and_the_exit_codes(dca):
    run = dca("--help")
    assert run.code == 0
    for word in [*COMMANDS, "not for clinical use", "Exit codes", "130"]:
        assert word in run.out


@pytest.mark.parametrize(
    "command", [*COMMANDS[:-1], *(["bundle", name] for name in ("info", "verify", "list", "add", "download", "export"))]
)
def test_every_command_explains_itself_with_an_example(dca, command):
    words = [command] if isinstance(command, str) else command
    run = dca(*words, "--help")
    assert run.code == 0
    assert f"Example: dca {' '.join(words)}" in run.out


def test_train_help_has_panels_for_its_options(dca):
    lines = dca("train", "--help").out.splitlines()
    titles = [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]
    assert titles == ["Options", "Data", "Synthetic CTs", "Model", "Schedule", "Run"]
    ungrouped = lines[: next(index for index, line in enumerate(lines) if line.startswith("╭─ Data"))]
    assert [word for line in ungrouped for word in re.findall(r"^│ \*? *(--[a-z-]+)", line)] == ["--out", "--help"]


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        *((name, "CC0-1.0", "--license needs a label map") for name in ("--license", "--licence")),
        *((name, 2, "--synthesize-ahead needs a label map") for name in ("--synthesize-ahead", "--synthesize-ahead")),
    ],
)
def test_train_options_keep_their_earlier_names(dca, tmp_path, option, value, problem):
    run = dca("train", "-o", tmp_path / "run", option, value)
    assert run.code == 2 and problem in run.err


def test_no_message_names_a_package_that_is_not_in_the_index():
    sources = [*SHIPPED.parents[2].rglob("*.py")]
    assert sources and not [path for path in sources if "dca-segmentation[" in path.read_text(encoding="utf-8")]
    assert format_install_command("pydicom", "highdicom") == "pip install pydicom highdicom"


def test_help_loads_none_of_the_heavy_libraries():
    script = (
        "import sys; from dcaseg.cli import main; main(['segment', '--help']);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_dca_alone_shows_its_help(dca):
    run = dca()
    assert "Commands" in run.out and run.err == ""


def test_phantom_writes_ct_labels_and_person(dca, tmp_path):
    out = tmp_path / "case"
    run = dca("phantom", "--seed", 7, "-o", out, "--spacing", "7,7,8", "--orientation", "PSL", "--tilt", 6)
    assert run.code == 0, run.err
    assert names(out) == {"ct.nii.gz", "labels.nii.gz", "person.json"}
    ct = sitk.ReadImage(str(out / "ct.nii.gz"))
    assert same_grid(ct, sitk.ReadImage(str(out / "labels.nii.gz")))
    expected = generate(7, spacing=(7.0, 7.0, 8.0), orientation="PSL", tilt_degrees=6)
    assert (sitk.GetArrayFromImage(ct) == sitk.GetArrayFromImage(expected.ct)).all()
    assert json.loads((out / "person.json").read_text())["seed"] == 7


def test_a_tilde_in_a_path_is_the_home_folder(dca, tmp_path, monkeypatch):
    """Shells replace it in ``-o ~/folder``, but not in ``--out=~/folder``; subcommands and lists have it, too."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = dca("phantom", "--out=~/person", "--spacing", "12,12,12")
    assert run.code == 0, run.err
    assert (tmp_path / "person" / "ct.nii.gz").exists() and not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "person" / "labels.nii.gz").rename(tmp_path / "labels.nii.gz")
    run = dca("partition", "~/labels.nii.gz", "--out=~/partition.json")
    assert run.code == 0 and (tmp_path / "partition.json").exists(), run.err
    assert f"{tmp_path}/missing.json" in dca("dataset", "check", "~/missing.json").err


def test_phantom_offers_every_contrast_phase():
    from dcaseg.cli.phantom import Phase
    from dcaseg.synthesis.phantom.person import Contrast, Person

    for phase in get_args(Phase):
        Contrast.from_person(Person.draw(1), phase)
    with pytest.raises(ValueError, match="phase") as refusal:
        Contrast.from_person(Person.draw(1), "no phase")
    assert set(re.findall(r"[a-z_]{4,}", str(refusal.value))) >= set(get_args(Phase))


@pytest.fixture(scope="module")
def segmented(coarse_phantom, small_bundle, tmp_path_factory):
    """Output and result folder of ``dca segment`` for a phantom, with all maps."""
    out = tmp_path_factory.mktemp("segmented") / "result"
    arguments = ["segment", coarse_phantom / "ct.nii.gz", "-o", out, "--bundle", small_bundle]
    run = subprocess.run(
        [sys.executable, "-m", "dcaseg.cli", *map(str, arguments), "--attention-levels", "1,4"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run, out


@pytest.mark.scene
@needs_slicer
def test_segment_writes_labels_maps_tables_and_scene(segmented, coarse_phantom):
    _, out = segmented
    maps = {f"attention_{expert}_level{level}.nrrd" for expert in ("head", "medium", "tail") for level in (1, 4)}
    assert names(out) == {
        *("labels.nrrd", "dominant_expert.nrrd", "entropy.nrrd", "disagreement.nrrd", *maps),
        *("volumes.csv", "expert_attention.csv", "log.txt", "request.json"),
        *("segmentation.seg.nrrd", "scene.mrb"),
    }
    ct = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    assert same_grid(ct, sitk.ReadImage(str(out / "labels.nrrd")))


def test_segment_prints_the_volumes_it_writes(segmented):
    run, out = segmented
    with (out / "volumes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(AMOS)
    for row in rows:
        line = next(line for line in run.stdout.splitlines() if f" {row['name']} " in line)
        assert f"{float(row['ml']):.1f}" in line
    assert str(out) in run.stdout


def test_only_the_chosen_organs_are_kept(dca, coarse_phantom, small_bundle, tmp_path):
    out = tmp_path / "result"
    run = dca(
        *("segment", coarse_phantom / "ct.nii.gz", "-o", out, "--bundle", small_bundle, "--no-scene"),
        *("--organs", "spleen, left_kidney", "--attention-levels", "none", "--format", ".nii.gz", "--overlap", 0),
        *("--no-dominant-expert", "--no-entropy", "--no-disagreement", "--device", "cpu"),
    )
    assert run.code == 0, run.err
    assert names(out) == {"labels.nii.gz", "volumes.csv", "log.txt", "request.json"}
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "labels.nii.gz"))))) == {0, 1, 3}


def test_segment_without_slicer_skips_the_scene_and_names_the_package(
    dca, coarse_phantom, small_bundle, tmp_path, monkeypatch
):
    # This is how Python represents a package that is not installed.
    monkeypatch.setitem(sys.modules, "slicer", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    import dcaseg.cli.segment as scene_files

    monkeypatch.setattr(scene_files, "find_spec", lambda name: None)
    out = tmp_path / "result"
    run = dca("segment", coarse_phantom / "ct.nii.gz", "-o", out, "--bundle", small_bundle, "--overlap", 0)
    assert run.code == 0
    assert {"labels.nrrd", "volumes.csv"} <= names(out) and "scene.mrb" not in names(out)
    notes = [line for line in run.err.splitlines() if "scene.mrb" in line]
    assert len(notes) == 1 and "pip install slicer-core" in notes[0]


@pytest.mark.slow
def test_segment_without_opengl_draws_the_picture_with_a_note(dca, coarse_phantom, small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "DCASegmentationLib.scene.offscreen.find_rendering_problem", lambda: "No OpenGL: install libegl1."
    )
    out = tmp_path / "result"
    run = dca(
        *("segment", coarse_phantom / "ct.nii.gz", "-o", out, "--bundle", small_bundle),
        *("--picture", "--no-scene", "--overlap", 0),
    )
    assert run.code == 0
    assert sitk.ReadImage(str(out / "picture.png")).GetSize()[0] > 1000
    assert [line for line in run.err.splitlines() if "install libegl1" in line and line.startswith("Note: ")]


@pytest.mark.slow
@pytest.mark.skipif(not (SHIPPED.is_dir() and any(SHIPPED.iterdir())), reason="no bundle is shipped")
def test_demo_draws_a_picture(dca, tmp_path):
    out = tmp_path / "new" / "demo"
    run = dca("demo", "-o", out)
    assert run.code == 0, run.err
    assert names(out) == {"phantom", "result"}
    picture = out / "result" / "picture.png"
    assert str(picture) in run.out.splitlines()[-1]
    assert sitk.ReadImage(str(picture)).GetSize()[0] > 1000
    if find_spec("PySide6") and find_spec("slicer"):
        assert "does not show the module's panel" not in run.err
        assert sitk.ReadImage(str(picture)).GetSize()[0] > 2600, "the panel is next to the views"
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "result" / "labels.nrrd")))
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "phantom" / "labels.nii.gz")))
    liver = AMOS.by_key["liver"].label
    both = ((labels == liver) & (truth == liver)).sum()
    assert 2 * both / ((labels == liver).sum() + (truth == liver).sum()) > 0.8
    again = dca("demo", "-o", out)
    assert again.code == 2 and "already exists" in again.err


def test_earlier_result_is_replaced_only_with_overwrite(dca, coarse_phantom, small_bundle, tmp_path):
    out = tmp_path / "result"
    command = ("segment", coarse_phantom / "ct.nii.gz", "-o", out, "--bundle", small_bundle, "--no-scene")
    assert dca(*command, "--overlap", 0).code == 0
    before = (out / "request.json").read_text()
    refused = dca(*command, "--overlap", 0.25)
    assert refused.code == 2 and "already exists" in refused.err
    assert (out / "request.json").read_text() == before
    assert dca(*command, "--overlap", 0.25, "--overwrite").code == 0
    assert json.loads((out / "request.json").read_text())["options"]["overlap"] == 0.25


def test_a_ct_smaller_than_a_patch_is_segmented_with_a_note(dca, coarse_phantom, small_bundle, tmp_path):
    ct = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    path = tmp_path / "small.nii.gz"
    sitk.WriteImage(ct[20:50, 10:40, 20:36], str(path))
    run = dca("segment", path, "-o", tmp_path / "result", "--bundle", small_bundle, "--no-scene", "--overlap", 0)
    assert run.code == 0
    assert "Note: At the model's spacing, the CT has" in run.err


def test_ctrl_c_leaves_no_incomplete_files(coarse_phantom, small_bundle, tmp_path):
    # Windows that overlap by 9/10 take minutes: there is time to stop.
    command = [
        *(sys.executable, "-m", "dcaseg.cli", "segment", coarse_phantom / "ct.nii.gz"),
        *("-o", tmp_path / "result", "--bundle", small_bundle, "--overlap", "0.9"),
    ]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".result.partial-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("Canceled. Nothing was written.") and "Traceback" not in err
    assert names(tmp_path) == set()


def test_partition_prints_the_values_that_it_writes(dca, coarse_phantom, tmp_path):
    out, plot = tmp_path / "partition.json", tmp_path / "log_gap.png"
    run = dca("partition", coarse_phantom / "labels.nii.gz", "-o", out, "--plot", plot)
    assert run.code == 0, run.err
    written = json.loads(out.read_text())
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(coarse_phantom / "labels.nii.gz")))
    for label, count in zip(written["ranking"], written["counts"], strict=True):
        assert count == (labels == label).sum()
        line = next(line for line in run.out.splitlines() if f" {AMOS.by_label[label].name} " in line)
        group = next(group for group in ("head", "medium", "tail") if label in written[group])
        assert f"{count:,}" in line and line.rstrip(" │").endswith(group)
    assert sitk.ReadImage(str(plot)).GetSize()[0] > 300


def test_partition_counts_many_files_at_one_spacing(dca, coarse_phantom, tmp_path):
    labels = sitk.ReadImage(str(coarse_phantom / "labels.nii.gz"))
    coarser = tmp_path / "coarser.nii.gz"
    sitk.WriteImage(labels[::2, ::2, ::2], str(coarser))
    out = tmp_path / "partition.json"
    mixed = dca("partition", coarse_phantom / "labels.nii.gz", coarser, "-o", out)
    assert mixed.code == 0 and "differ in voxel size" in mixed.err
    alike = dca("partition", coarse_phantom / "labels.nii.gz", coarser, "--spacing", "6,6,8", "-o", out, "--overwrite")
    assert alike.code == 0 and "differ in voxel size" not in alike.err
    written = json.loads(out.read_text())
    liver = (sitk.GetArrayFromImage(labels) == 6).sum()
    assert written["counts"][written["ranking"].index(6)] == pytest.approx(2 * liver, rel=0.05)


def test_partition_accepts_manual_groups(dca, coarse_phantom):
    groups = "6,7/1,2,3,8,9,10,13,14,15/4,5,11,12"
    run = dca("partition", coarse_phantom / "labels.nii.gz", "--mode", "manual", "--groups", groups)
    assert run.code == 0, run.err
    liver = next(line for line in run.out.splitlines() if " Liver " in line)
    assert liver.rstrip(" │").endswith("head")


def test_model_shows_the_papers_network(dca):
    run = dca("model", "--filters", 16, "--classes", 14, "--patch", 96)
    assert run.code == 0
    for figure in ("7,376,896", "1,490,894", "2,072,174", "2,660,414", "17,502,084", "137.8"):
        assert figure in run.out


def test_model_shows_the_network_of_a_bundle(dca, small_bundle):
    run = dca("model", "--bundle", small_bundle)
    assert run.code == 0 and "random-weights, patch 32 x 32 x 32" in run.out


def test_bundle_info_and_verify_use_the_named_bundle(dca, small_bundle):
    info = dca("bundle", "info", small_bundle)
    assert info.code == 0 and "Random weights: nothing it says is true." in info.out
    verified = dca("bundle", "verify", small_bundle)
    assert verified.code == 0 and "SHA-256 as in the metadata" in verified.out


def test_models_in_the_user_folder_are_found_by_name(dca, small_bundle, tmp_path):
    home = tmp_path / ".dca" / "models"
    home.mkdir(parents=True)
    (home / "mine").symlink_to(small_bundle)
    assert small_bundle.name in dca("bundle", "list").out
    assert dca("bundle", "verify", small_bundle.name).code == 0


def test_evaluate_measures_labeled_cases(dca, coarse_phantom, small_bundle, tmp_path):
    out = tmp_path / "scores.csv"
    case = ("--ct", coarse_phantom / "ct.nii.gz", "--labels", coarse_phantom / "labels.nii.gz")
    run = dca("evaluate", "--bundle", small_bundle, *case, "-o", out)
    assert run.code == 0, run.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["ct.nii.gz", "mean"]
    printed = next(line for line in run.out.splitlines() if "Mean of all organs" in line)
    assert f"{float(rows[1]['mean']):.3f}" in printed


def test_debug_works_anywhere_in_the_command_line(dca, tmp_path):
    missing = tmp_path / "no.nii.gz"
    for arguments in (
        ("--debug", "partition", missing),
        ("partition", missing, "--debug"),
    ):
        run = dca(*arguments)
        assert run.code == 2
        assert "Traceback" in run.err and "readers.py" in run.err
        assert run.err.splitlines()[-1].startswith("Error: There is no file")


def test_unexpected_error_is_one_line_that_mentions_debug(dca, coarse_phantom, monkeypatch):
    def broken(path):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("dcaseg.imaging.readers.read_labels", broken)
    run = dca("partition", coarse_phantom / "labels.nii.gz")
    assert run.code == 1
    assert run.err == (
        "Error: An unexpected error occurred (RuntimeError: first line second line). "
        "Run the command again with --debug to see the traceback.\n"
    )


def test_closed_output_pipe_does_not_stop_the_command(coarse_phantom, tmp_path):
    out = tmp_path / "partition.json"
    command = [
        *(sys.executable, "-m", "dcaseg.cli", "partition"),
        coarse_phantom / "labels.nii.gz",
        "-o",
        out,
    ]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(list(map(str, command)), stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert run.returncode == 0 and "Error" not in run.stderr
    assert json.loads(out.read_text())["mode"] == "top2"


def test_progress_without_terminal_is_an_occasional_line():
    from io import StringIO

    from rich.console import Console

    text, now = StringIO(), [0.0]
    report = _make_progress_printer(Console(file=text), clock=lambda: now[0])
    for second in range(61):
        now[0] = float(second)
        report(second / 60, f"window {second}")
    assert text.getvalue().splitlines() == [" 33%  window 20", " 67%  window 40", "100%  window 60"]
