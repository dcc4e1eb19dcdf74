"""Training with the command line: train, stop, resume, export, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

TINY = ("--spacing", "14,14,14", "--filters", 1, "--patch", 32, "--batch", 1, "--validate-every", 1, "--device", "cpu")
PEOPLE = ("--labelled", 1, "--unlabelled", 1, "--validation", 1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Folder of prepared cases, shared by all runs."""
    return tmp_path_factory.mktemp("cases")


@pytest.fixture
def run_folder(dca, tmp_path, cache) -> Path:
    """A run of four steps that was stopped before the first."""
    out = tmp_path / "run"
    first = dca("train", "-o", out, *PEOPLE, *TINY, "--steps", 4, "--cache", cache, "--minutes", 0)
    assert first.code == 0, first.err
    return out


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_stopped_run_is_resumed_exported_and_evaluated(dca, run_folder, cache, tmp_path):
    resumed = dca("train", "-o", run_folder, "--resume", "--cache", cache, "--validate-every", 2)
    assert resumed.code == 0, resumed.err
    assert steps_logged(run_folder) == [1, 2, 3, 4]
    assert "Dice in the last validation" in resumed.out and f"dca bundle export {run_folder}" in resumed.out

    assert (run_folder / "curve.png").read_bytes().startswith(b"\x89PNG")

    model = tmp_path / "model"
    packed = dca("bundle", "export", run_folder, "-o", model, "--name", "tiny", "--overlap", 0.125)
    assert packed.code == 0, packed.err
    assert dca("bundle", "verify", model).code == 0
    metadata = json.loads((model / "configs" / "metadata.json").read_text())
    assert metadata["name"] == "tiny" and metadata["dca"]["spacing_mm"] == [14.0, 14.0, 14.0]
    assert metadata["dca"]["overlap"] == 0.125
    assert metadata["dca"]["training_data"][0]["labelled"] == 1
    assert any("synthetic CT only" in limit for limit in metadata["dca"]["limits"])

    scores = tmp_path / "scores.csv"
    measured = dca("evaluate", "--bundle", model, "--phantoms", 1, "-o", scores, "--write-scores")
    assert measured.code == 0, measured.err
    written = json.loads((model / "configs" / "metadata.json").read_text())["dca"]["scores"]
    assert written["cases"] == 1 and 0 <= written["mean_dice"] <= 1
    assert len(scores.read_text().splitlines()) == 3


@pytest.mark.slow
def test_exported_weights_are_those_of_the_best_validation(dca, run_folder, cache, tmp_path):
    from dcaseg.models.bundle import Bundle

    assert dca("train", "-o", run_folder, "--resume", "--cache", cache, "--validate-every", 2).code == 0
    best = torch.load(run_folder / "best.pt", weights_only=True)
    assert dca("bundle", "export", run_folder, "-o", tmp_path / "model").code == 0
    model = Bundle.load(tmp_path / "model")
    assert model.metadata.name == "model", "without --name, a model is named after its folder"
    packed = model.network().state_dict()
    for name, tensor in best["averaged"].items():
        torch.testing.assert_close(packed[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)


def test_a_run_is_never_restarted_and_keeps_its_options(dca, run_folder, cache):
    again = dca("train", "-o", run_folder, *PEOPLE, *TINY, "--cache", cache)
    assert again.code == 2 and "already contains a run" in again.err
    # Also a default counts as given: the run may have another value.
    for changed in (("--filters", 4), ("--strategy", "dca"), ("--preset", "default"), ("--labeled", 3), ("--seed", 0)):
        other = dca("train", "-o", run_folder, "--resume", *changed)
        assert other.code == 2 and f"cannot be changed: {changed[0]}." in other.err


def test_a_run_record_keeps_the_papers_options(tmp_path):
    from dcaseg.method.log_gap import partition
    from dcaseg.models.metadata import TrainingData
    from dcaseg.organs import AMOS
    from dcaseg.training.checkpoints import InitialModel, RunRecord, read_record, write_record
    from dcaseg.training.options import TrainingOptions
    from dcaseg.training.training_set import TrainingSet

    counts = partition({organ.label: 100 * organ.label**2 for organ in AMOS})
    initial = InitialModel("a model", "0" * 64, (TrainingData("some CTs", 1, 2, "CC0-1.0"),))
    record = RunRecord(
        AMOS, TrainingOptions.make_paper_preset(), TrainingSet.from_phantoms(4, 212, 24), counts, initial
    )
    write_record(tmp_path / "run", record)
    assert read_record(tmp_path / "run") == record
