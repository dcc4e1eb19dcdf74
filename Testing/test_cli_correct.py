"""``dca correct``, ``dca evaluate-clicks`` and corrections with the library, on real result folders."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import UserError
from dcaseg.evaluation.click_simulation import BallBrush, ClickCurve, ClickMeasurement, find_next_click, measure_case
from dcaseg.imaging.grid import Grid
from dcaseg.imaging.writers import make_private, write_image
from dcaseg.interaction.random_walker import RandomWalkerEngine
from dcaseg.interaction.result_correction import CORRECTIONS, OrganStroke, correct_result, open_session, read_result
from dcaseg.interaction.strokes import Stroke, to_point
from dcaseg.organs import AMOS

LIVER = AMOS.by_key["liver"].label
BLADDER = AMOS.by_key["bladder"].label


@pytest.fixture(scope="module")
def segmented(coarse_phantom, small_bundle, tmp_path_factory) -> Path:
    """A result folder of ``dca segment``, its labels replaced by the truth without the bladder.

    The model has random weights, so its own labels could not be corrected.
    """
    from dcaseg.cli import main

    folder = tmp_path_factory.mktemp("segmented") / "result"
    ct = coarse_phantom / "ct.nii.gz"
    assert main(["segment", str(ct), "-o", str(folder), "--bundle", str(small_bundle), "--no-scene", "--review"]) == 0
    truth = sitk.ReadImage(str(coarse_phantom / "labels.nii.gz"))
    array = sitk.GetArrayFromImage(truth)
    array[array == BLADDER] = 0
    write_image(Grid.from_image(truth).make_image(array), folder / "labels.nrrd")
    return folder


@pytest.fixture
def result(segmented, tmp_path) -> Path:
    return Path(shutil.copytree(segmented, tmp_path / "result"))


@pytest.fixture(scope="module")
def truth(coarse_phantom):
    return sitk.ReadImage(str(coarse_phantom / "labels.nii.gz"))


def center_of(truth, label):
    """The innermost voxel of an organ, in RAS mm."""
    mask = sitk.GetArrayFromImage(truth) == label
    click = find_next_click(np.zeros_like(mask), mask, truth.GetSpacing())
    return to_point(click.index, Grid.from_image(truth))


def written(point):
    return ",".join(f"{value:.2f}" for value in point)


def labels_in(folder):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels.nrrd")))


def test_one_click_restores_a_missing_organ_in_a_new_folder(dca, result, truth, tmp_path):
    before = {path.name: path.read_bytes() for path in result.iterdir()}
    out = tmp_path / "corrected"
    run = dca("correct", result, "--organ", "bladder", "--add", written(center_of(truth, BLADDER)), "-o", out,
              "--no-scene")  # fmt: skip
    assert run.code == 0, run.err
    assert "Bladder" in run.out
    found, expected = labels_in(out) == BLADDER, sitk.GetArrayFromImage(truth) == BLADDER
    # The labels around it are those of an untrained network, so the click takes no more than is sure.
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.4
    assert (found & ~expected).sum() < 0.1 * found.sum()
    assert {path.name: path.read_bytes() for path in result.iterdir()} == before
    names = {path.name for path in out.iterdir()}
    assert {"labels.nrrd", "volumes.csv", "request.json", "log.txt"} <= names
    assert {"entropy.nrrd", "dominant_expert.nrrd"} <= names and "review.json" not in names
    assert (out / "entropy.nrrd").read_bytes() == before["entropy.nrrd"]
    with (out / "volumes.csv").open(newline="") as file:
        rows = {row["organ"]: row for row in csv.DictReader(file)}
    assert int(rows["bladder"]["voxels"]) == found.sum()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("private", [True, False])
def test_a_corrected_result_is_as_private_as_the_result(dca, result, truth, tmp_path, private):
    if private:
        make_private(result)
    else:
        result.chmod(0o755)
    out = tmp_path / "corrected"
    correct_result(result, [OrganStroke("bladder", Stroke((center_of(truth, BLADDER),)))], out)
    run = dca("report", out, "-o", tmp_path / "report.html")
    assert run.code == 0, run.err
    assert [not path.stat().st_mode & 0o077 for path in (out, out / "labels.nrrd", tmp_path / "report.html")] == [
        private
    ] * 3


def test_the_dominant_expert_is_0_where_a_click_changed_the_labels(result, truth, tmp_path):
    correct_result(result, [OrganStroke("bladder", Stroke((center_of(truth, BLADDER),)))], tmp_path / "out")
    before, after = labels_in(result), labels_in(tmp_path / "out")
    old, new = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "dominant_expert.nrrd")))
        for folder in (result, tmp_path / "out")
    )
    assert (before != after).any() and old.any()
    np.testing.assert_array_equal(new, np.where(before == after, old, 0))


def test_organs_that_were_not_requested_stay_out_of_a_corrected_result(result, truth, tmp_path):
    options = json.loads((result / "request.json").read_text())["options"]
    changed(result, options={**options, "organs": ["liver", "spleen"]})
    stroke = OrganStroke("bladder", Stroke((center_of(truth, BLADDER),)))
    found = correct_result(result, [stroke], tmp_path / "out")
    assert [each.organ.key for each in found.after] == ["spleen", "liver", "bladder"]
    with (tmp_path / "out/volumes.csv").open(newline="") as file:
        assert {row["organ"] for row in csv.DictReader(file)} == {"spleen", "liver", "bladder"}
    record = json.loads((tmp_path / "out/request.json").read_text())
    assert record["options"]["organs"] == ["spleen", "liver", "bladder"]


def test_request_records_the_clicks_of_every_correction(dca, result, truth, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    center = center_of(truth, BLADDER)
    dca("correct", result, "--organ", "bladder", "--add", written(center), "-o", first, "--no-scene")
    mask = labels_in(first) == BLADDER
    voxel = np.argwhere(mask)[0]
    point = written(to_point(voxel, Grid.from_image(truth)))
    run = dca("correct", first, "--organ", "Bladder", "--remove", point, "-o", second, "--no-scene")
    assert run.code == 0, run.err
    record = json.loads((second / "request.json").read_text())
    made = record[CORRECTIONS]
    assert [each["clicks"] for each in made] == [1, 1]
    assert [stroke["adds"] for each in made for stroke in each["strokes"]] == [True, False]
    assert np.allclose(made[0]["strokes"][0]["points_ras_mm"], [center], atol=0.01)
    assert made[1]["from"] == str(first.resolve())
    assert labels_in(second)[tuple(voxel)] == 0
    # The record of dca segment is still complete.
    assert record["bundle"] == json.loads((result / "request.json").read_text())["bundle"]


def test_correct_never_overwrites(dca, result, truth, tmp_path):
    out = tmp_path / "there"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    run = dca("correct", result, "--organ", "bladder", "--add", written(center_of(truth, BLADDER)), "-o", out)
    assert run.code == 2 and "already exists" in run.err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    run = dca("correct", result, "--organ", "bladder", "--add", written(center_of(truth, BLADDER)), "-o", result)
    assert run.code == 2


def test_locked_neighbors_box_and_scribbles(dca, result, truth, tmp_path):
    labels = labels_in(result)
    x, y, z = center_of(truth, BLADDER)
    out = tmp_path / "out"
    box = f"{x - 25},{y - 25},{z - 25};{x + 25},{y + 25},{z + 25}"
    others = ",".join(organ.key for organ in AMOS if organ.key != "bladder")
    run = dca("correct", result, "--organ", "bladder", "--scribble", f"+{x},{y},{z};{x + 6},{y},{z}", "-o", out,
              "--box", box, "--lock", others, "--no-scene")  # fmt: skip
    assert run.code == 0, run.err
    now = labels_in(out)
    assert np.array_equal(np.where(now == BLADDER, 0, now), labels)
    corners = np.array([to_point(voxel, Grid.from_image(truth)) for voxel in np.argwhere(now != labels)])
    assert (np.abs(corners - (x, y, z)) <= 25 + 8).all()
    assert json.loads((out / "request.json").read_text())[CORRECTIONS][0]["scribbles"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--organ", "bladder"], "No points were given"),
        (["--organ", "heart", "--add", "0,0,0"], "no organ 'heart'"),
        (["--organ", "liver", "--add", "0,0"], "not 3 numbers"),
        (["--organ", "liver", "--add", "9000,0,0"], "outside the CT"),
        (["--organ", "bladder", "--remove", "{liver}"], "no bladder near"),
        (["--organ", "liver", "--add", "{liver}"], "change nothing"),
        (["--organ", "liver", "--add", "{liver}", "--remove", "{liver}"], "contradicts an earlier one"),
        (["--organ", "liver", "--add", "{liver}", "--lock", "liver"], "locked"),
        (["--organ", "spleen", "--add", "{liver}", "--lock", "liver"], "locked"),
        (["--organ", "liver", "--add", "{liver}", "--lock", "heart"], "no organ 'heart'"),
        (["--organ", "liver", "--add", "{liver}", "--box", "1,2,3"], "not two corners"),
        (["--organ", "liver", "--scribble", "1,2,3"], "does not start with + or -"),
        (["--organ", "liver", "--add", "{liver}", "--engine", "magic"], "engine 'magic' does not exist"),
        (["--organ", "liver", "--add", "{liver}", "--ct", "nowhere.nrrd"], "no file"),
    ],
)
def test_invalid_input_is_reported_and_writes_nothing(dca, result, truth, tmp_path, arguments, message):
    liver = written(center_of(truth, LIVER))
    out = tmp_path / "out"
    given = [argument.replace("{liver}", liver) for argument in arguments]
    run = dca("correct", result, *given, "-o", out)
    assert run.code == 2, run.out + run.err
    assert message in run.err and "Traceback" not in run.err
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name not in ("result", "DCA")]


def _shifted(ct):
    ct.SetOrigin([value + 1.0 for value in ct.GetOrigin()])
    return ct


def _other_voxels(ct):
    return ct + 1


@pytest.mark.parametrize(("change", "message"), [(_shifted, "geometry is different"), (_other_voxels, "have changed")])
def test_a_different_ct_is_rejected(result, coarse_phantom, tmp_path, change, message):
    other = tmp_path / "other.nrrd"
    write_image(change(sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))), other)
    with pytest.raises(UserError, match=message):
        correct_result(result, [OrganStroke("liver", Stroke.click(0, 0, 0))], tmp_path / "out", ct=other)


def test_a_result_without_checksum_can_be_corrected(result, truth, tmp_path):
    record = json.loads((result / "request.json").read_text())
    del record["ct_checksum"]
    (result / "request.json").write_text(json.dumps(record))
    stroke = OrganStroke("bladder", Stroke((center_of(truth, BLADDER),)))
    found = correct_result(result, [stroke], tmp_path / "out")
    assert found.changes[0].adds and found.changes[0].added


def geometry(folder):
    return json.loads((folder / "request.json").read_text())["ct_geometry"]


def changed(folder, **values):
    record = json.loads((folder / "request.json").read_text())
    (folder / "request.json").write_text(json.dumps({**record, **values}))


@pytest.mark.parametrize("ct", ["/nowhere/ct.nii.gz", "a" * 5000, "nul\0", [5], [], 5, None])
def test_a_record_with_an_impossible_ct_is_refused(result, ct):
    changed(result, ct=ct)
    with pytest.raises(UserError, match=r"no longer at|does not record its CT"):
        open_session(read_result(result))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "request.json").unlink(), "is not a result folder"),
        (lambda folder: (folder / "request.json").write_text("{"), "is not a result folder"),
        (lambda folder: (folder / "request.json").write_text("[" * 100_000), "is not a result folder"),
        (lambda folder: changed(folder, ct_geometry={"size": [1, 2, 3]}), "is not a result folder"),
        (lambda folder: changed(folder, ct_geometry={**geometry(folder), "spacing_mm": "abc"}), "is not a result"),
        (lambda folder: changed(folder, ct_geometry={**geometry(folder), "direction": [1, 0]}), "is not a result"),
        (lambda folder: changed(folder, corrections="none"), "is not a result folder"),
        (lambda folder: (folder / "labels.nrrd").unlink(), "no labels.nrrd"),
        (lambda folder: (folder / "volumes.csv").unlink(), "organs of the labels"),
    ],
)
def test_a_folder_that_is_not_a_result_is_rejected(result, damage, message):
    damage(result)
    with pytest.raises(UserError, match=message):
        read_result(result)


def test_a_missing_ct_is_reported(result):
    record = json.loads((result / "request.json").read_text())
    record["ct"] = "/nowhere/ct.nii.gz"
    (result / "request.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is no longer at") as caught:
        open_session(read_result(result))
    assert "--ct" in caught.value.remedy


def test_labels_on_a_different_grid_are_rejected(result, truth):
    labels = sitk.ReadImage(str(result / "labels.nrrd"))
    write_image(_shifted(labels), result / "labels.nrrd")
    with pytest.raises(UserError, match="grid"):
        open_session(read_result(result))


def test_the_next_click_is_the_deepest_voxel_of_the_largest_error():
    truth = np.zeros((30, 30, 30), bool)
    truth[5:20, 5:20, 5:20] = True
    mask = truth.copy()
    mask[5:14, 5:14, 5:14] = False
    mask[24:28, 24:28, 24:28] = True
    click = find_next_click(mask, truth, (1.0, 1.0, 1.0))
    assert click.adds and click.index == (9, 9, 9) and click.voxels == 9**3
    mask = truth.copy()
    mask[24:29, 24:29, 24:29] = True
    click = find_next_click(mask, truth, (1.0, 1.0, 1.0))
    assert not click.adds and click.index == (26, 26, 26)
    assert find_next_click(truth, truth, (1.0, 1.0, 1.0)) is None


def test_click_counts_failures_and_worse_clicks():
    good = ClickCurve("a", "liver", "e", (0.0, 0.86, 0.84, 0.91), (0.1, 0.2, 0.3), was_missing=True)
    bad = ClickCurve("a", "spleen", "e", (0.5, *[0.6] * 10), (0.1,) * 10)
    assert (good.compute_noc(0.85), good.compute_noc(0.9), bad.compute_noc(0.85)) == (1, 3, None)
    assert good.worse == 1 and good.get_dice(10) == 0.91
    summary = ClickMeasurement([good, bad]).summarize("e")
    assert summary["noc"] == {"0.85": 5.5, "0.90": 6.5}
    assert summary["failures"] == {"0.85": 1, "0.90": 1}
    assert summary["worse"] == pytest.approx(1 / 13)
    assert summary["missing_one_click"] == 0.86 and summary["missing"] == 1
    assert summary["dice"]["1"] == pytest.approx(0.73)


def test_clicks_that_were_not_made_are_not_reported(tmp_path):
    """With a limit of 2 clicks, the third is unknown. A misplaced mask is not a missing one."""
    good = ClickCurve("a", "liver", "e", (0.5, 0.7, 0.8), (0.1, 0.1))
    misplaced = ClickCurve("a", "spleen", "e", (0.0, 0.3, 0.9), (0.1, 0.1))
    refused = ClickCurve("a", "bladder", "e", (0.0,), (), was_missing=True)
    measured = ClickMeasurement([good, misplaced, refused], clicks=2)
    summary = measured.summarize("e")
    assert list(summary["dice"]) == ["0", "1", "2"]
    assert summary["noc"]["0.85"] == 2.0 and summary["failures"]["0.85"] == 2
    assert summary["missing"] == 1 and summary["missing_one_click"] == 0.0
    measured.write_csv(tmp_path / "clicks.csv")
    assert "dice_2,worse" in (tmp_path / "clicks.csv").read_text()


def test_simulated_clicks_repair_a_phantom_and_beat_the_brush(coarse_phantom, truth, tmp_path):
    """The start has typical errors of networks: a missing organ and a missing slab."""
    array = sitk.GetArrayFromImage(truth)
    liver = np.argwhere(array == LIVER)
    array[array == BLADDER] = 0
    array[: int(np.median(liver[:, 0]))][array[: int(np.median(liver[:, 0]))] == LIVER] = 0
    start = Grid.from_image(truth).make_image(array)
    ct = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    measured = ClickMeasurement(clicks=4)
    engines = [RandomWalkerEngine(), BallBrush()]
    measure_case(measured, "phantom", ct, start, truth, AMOS, engines, [LIVER, BLADDER])
    ours, brush = (measured.summarize(engine.name)["dice"] for engine in engines)
    assert ours["4"] > ours["0"] + 0.2
    assert ours["1"] > brush["1"]
    measured.write_csv(tmp_path / "clicks.csv")
    with (tmp_path / "clicks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and float(rows[0]["dice_0"]) < float(rows[0]["dice_4"])


@pytest.mark.slow
def test_evaluate_clicks_writes_table_json_and_plot(dca, coarse_phantom, small_bundle, tmp_path):
    out = tmp_path / "clicks"
    run = dca("evaluate-clicks", "-o", out, "--bundle", small_bundle, "--ct", coarse_phantom / "ct.nii.gz", "--labels",
              coarse_phantom / "labels.nii.gz", "--clicks", 1, "--engines", "classifier,brush")  # fmt: skip
    assert run.code == 0, run.err
    content = json.loads((out / "clicks.json").read_text())
    assert set(content["engines"]) == {"classifier", "brush"}
    assert content["engines"]["brush"]["all"]["organs"] == 15
    assert (out / "clicks.png").read_bytes().startswith(b"\x89PNG")
    # The table fits into 80 columns.
    assert "NoC90" in run.out and "…" not in run.out
    assert "inferior" in run.out and "Of 15 organs" in run.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ct", "ct.nrrd"], "only work together"),
        (["--label-table", "t.tsv"], "--label-table needs --labels"),
        (["--engines", ","], "No engine"),
        (["--engines", "magic"], "engine 'magic' does not exist"),
    ],
)
def test_evaluate_clicks_rejects_invalid_options(dca, tmp_path, arguments, message):
    run = dca("evaluate-clicks", "-o", tmp_path / "out", *arguments)
    assert run.code == 2 and message in run.err
    assert not (tmp_path / "out").exists()
