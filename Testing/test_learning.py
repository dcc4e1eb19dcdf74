"""Learning from corrected cases: train on their folder, compare on held-out ones, replace the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.models.bundle import Bundle
from dcaseg.organs import AMOS
from dcaseg.training.checkpoints import read_record
from dcaseg.training.corrections import add_corrected_case
from dcaseg.training.datalist import FOLDERS_LIST as LIST

SHORT = ("--steps", 2, "--batch", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def corrected(coarse_phantom, tmp_path_factory) -> Path:
    """A corrected case with liver and spleen reviewed, an unlabeled CT, and a validation case."""
    folder = tmp_path_factory.mktemp("corrected")
    ct, labels = read_ct(coarse_phantom / "ct.nii.gz"), read_labels(coarse_phantom / "labels.nii.gz")
    add_corrected_case(folder, "one", ct, labels, AMOS, ["liver", "spleen"], ("a model", "0" * 64))
    for name in ("untouched.nii.gz", "held_back.nii.gz"):
        shutil.copy(coarse_phantom / "ct.nii.gz", folder / name)
    shutil.copy(coarse_phantom / "labels.nii.gz", folder / "held_back_labels.nii.gz")
    content = json.loads((folder / LIST).read_text())
    content |= {
        "unlabelled": [{"image": "untouched.nii.gz"}],
        "validation": [{"image": "held_back.nii.gz", "label": "held_back_labels.nii.gz"}],
    }
    (folder / LIST).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(small_bundle, corrected, tmp_path_factory) -> Path:
    """A run that starts from the random model and trains on the folder."""
    from dcaseg.cli import main

    run = tmp_path_factory.mktemp("runs") / "run"
    options = ("train", "-o", run, "--init", small_bundle, "--data", corrected, *SHORT)
    assert main([str(option) for option in options]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run that a test may export and damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_on_corrected_cases_uses_the_models_network_and_fine_tuning_defaults(trained, small_bundle):
    record, model = read_record(trained), Bundle.load(small_bundle).metadata
    assert record.options.grid.spacing == model.spacing and record.options.grid.hu_window == model.hu_window
    assert record.partition.owners == model.partition.owners, "one case with two known organs divides nothing anew"
    assert record.options.learning_rate < 1e-3 and record.options.aggregation_start == "as_is"
    assert record.options.steps == 2, "what is asked for wins"
    (labeled,), (unlabeled,) = record.cohort.labeled, record.cohort.unlabeled
    assert set(labeled.files[0].unannotated) == set(AMOS.by_label) - {1, 6}
    assert unlabeled.files[0].labels is None
    assert record.initial.name == model.name


@pytest.mark.slow
def test_an_initial_model_without_corrected_cases_is_an_ordinary_run(dca, small_bundle, tmp_path):
    people = ("--labelled", 1, "--unlabelled", 0, "--validation", 0)
    run = dca("train", "-o", tmp_path / "run", "--init", small_bundle, *people, "--spacing", "14,14,14", *SHORT)
    assert run.code == 2 and "network has other options" in run.err, "the options must name the model's network"


def test_a_resumed_run_keeps_the_groups_of_the_model(dca, run):
    resumed = dca("train", "-o", run, "--resume", "--steps", 3)
    assert resumed.code == 0, resumed.err
    assert "step 3 of 3" in resumed.out


@pytest.mark.slow
def test_a_model_replaces_another_only_if_it_is_at_least_as_good(dca, run, tmp_path):
    model = tmp_path / "models" / "mine"
    model.parent.mkdir()
    assert dca("bundle", "export", run, "-o", model, "--name", "mine").code == 0
    before = files(model)
    _find_nothing(run)
    refused = dca("bundle", "export", run, "--replace", model)
    assert refused.code == 2 and "worse than mine" in refused.err and "mean Dice 0.0000" in refused.err
    assert "Mean of all organs" in refused.out
    assert files(model) == before and [path.name for path in model.parent.iterdir()] == ["mine"]
    refused = dca("bundle", "export", run, "-o", tmp_path / "models" / "other", "--better-than", model)
    assert refused.code == 2 and [path.name for path in model.parent.iterdir()] == ["mine"]


@pytest.mark.slow
def test_the_replaced_model_is_kept(dca, run, tmp_path):
    model = tmp_path / "models" / "mine"
    model.parent.mkdir()
    good = files(run)
    _find_nothing(run)
    assert dca("bundle", "export", run, "-o", model, "--name", "mine").code == 0
    old = files(model)
    (run / "best.pt").write_bytes(good["best.pt"])
    done = dca("bundle", "export", run, "--replace", model)
    assert done.code == 0, done.err
    kept = [path for path in model.parent.iterdir() if path.name.startswith("mine-before-")]
    assert len(kept) == 1 and files(kept[0]) == old and str(kept[0]) in done.out
    assert len(list(model.parent.iterdir())) == 2
    assert Bundle.load(model).metadata.name == "mine"
    assert files(model) != old
    again = dca("bundle", "export", run, "--replace", model, "--data", _list_of(run), "--group", "validation")
    assert again.code == 0, "equally good is good enough"
    assert len(list(model.parent.iterdir())) == 3, "one more of the same day"


def _list_of(run: Path) -> Path:
    """The data list that the run was trained with."""
    (source,) = read_record(run).cohort.validation
    return Path(source.files[0].image).parent / LIST


def _find_nothing(run: Path) -> None:
    """Make the run's best network predict background everywhere."""
    path = run / "best.pt"
    state = torch.load(path, weights_only=True)
    for weights in (state["network"], state["averaged"]):
        weights["aggregation.head.weight"].zero_()
        weights["aggregation.head.bias"].zero_()
        weights["aggregation.head.bias"][0] = 1
    torch.save(state, path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "-o OUT or --replace"),
        (("-o", "out", "--replace", "model"), "-o OUT or --replace"),
        (("--better-than", "model", "--replace", "model"), "Omit --better-than"),
        (("-o", "out", "--data", "list.json"), "Add --better-than or --replace"),
        (("-o", "out", "--better-than", "no-such-model"), "no model bundle"),
    ],
    ids=["no place", "two places", "two rivals", "cases for nothing", "no rival"],
)
def test_invalid_export_options_are_rejected_before_anything_is_written(
    dca, trained, tmp_path, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    refused = dca("bundle", "export", trained, *options)
    assert refused.code == 2 and said in refused.err
    assert list(tmp_path.iterdir()) == []


def test_without_held_out_cases_nothing_is_compared(dca, run, small_bundle, tmp_path):
    record = json.loads((run / "run.json").read_text())
    record["cohort"]["validation"] = []
    (run / "run.json").write_text(json.dumps(record))
    refused = dca("bundle", "export", run, "-o", tmp_path / "out", "--better-than", small_bundle)
    assert refused.code == 2 and "no held-out cases" in refused.err
    assert not (tmp_path / "out").exists()


def test_invalid_folders_of_corrected_cases_are_rejected_before_training(dca, corrected, small_bundle, tmp_path):
    def refused(folder):
        run = dca("train", "-o", tmp_path / "run", "--init", small_bundle, "--data", folder, *SHORT)
        assert run.code == 2 and not (tmp_path / "run").exists()
        return run.err

    (tmp_path / "empty").mkdir()
    assert "There is no data list" in refused(tmp_path / "empty")
    changed = Path(shutil.copytree(corrected, tmp_path / "changed"))
    shutil.copy(changed / "held_back_labels.nii.gz", changed / "cases" / "one" / "labels.nii.gz")
    assert "has changed since it was written" in refused(changed)
    (changed / "cases" / "one" / "labels.nii.gz").unlink()
    assert "is damaged" in refused(changed)
    others = Path(shutil.copytree(corrected, tmp_path / "others"))
    content = json.loads((others / LIST).read_text())
    (others / LIST).write_text(json.dumps({**content, "training": []}))
    assert "no labeled case" in refused(others)
    (others / LIST).write_text(json.dumps({**content, "vocabulary": "Synapse", "training": [], "validation": []}))
    assert "organs" in refused(others)


@pytest.mark.slow
def test_the_experiment_scores_every_arm_once_and_keeps_its_settings(dca, small_bundle, tmp_path, monkeypatch):
    from dcaseg.evaluation.experiments import few_cases as learning

    monkeypatch.setattr(learning, "_SPACING", (9.0, 9.0, 12.0))
    options = ("--bundle", small_bundle, "--seeds", "0", "--steps", "2", "-o", tmp_path / "out", "--device", "cpu")
    first = dca("experiment", "learning", *options)
    assert first.code == 0, first.err
    written = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert [arm["corrected cases"] for arm in written["arms"]] == ["before", "1", "1", "2", "2", "4", "4"]
    assert len((tmp_path / "out" / "learning.csv").read_text().splitlines()) == 8
    scores = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("scores.json")}
    assert len(scores) == 7
    assert dca("experiment", "learning", *options).code == 0
    assert scores == {path: path.stat().st_mtime_ns for path in scores}, "what is done is kept"
    other = dca("experiment", "learning", *options, "--steps", "3")
    assert other.code == 2 and "other settings" in other.err
    assert "its own data, grid and network" in dca("experiment", "learning", *options, "--filters", 4).err
    refused = dca("experiment", "table3", "--bundle", small_bundle, "-o", tmp_path)
    assert "--bundle only works with learning" in refused.err
