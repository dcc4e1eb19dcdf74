"""The script for a large GPU (Testing/gpu): what it takes with it, and that it continues a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from dcaseg.training.compact_state import read_compact

SCRIPT = Path(__file__).parent / "gpu" / "train_on_gpu.py"


@pytest.fixture
def script():
    specification = importlib.util.spec_from_file_location("train_on_gpu", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_prepared_run_is_continued_and_leaves_a_state(dca, script, tmp_path, monkeypatch):
    run, folder, out = tmp_path / "run", tmp_path / "folder", tmp_path / "out"
    trained = dca(
        "train", "-o", run, "--labeled", 1, "--unlabeled", 1, "--validation", 0, "--steps", 2, "--filters", 1,
        "--patch", 32, "--spacing", "14,14,14", "--device", "cpu",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert script.prepare(run, folder, None) == 0
    arguments = ["--run", folder, "--out", out, "--minutes", "0.5", "--steps", "10000", "--no-tests"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    assert script.main() == 0
    report = json.loads((out / "report.json").read_text())["training"]
    assert report["from_step"] == 2 and report["to_step"] > 2
    state, record = read_compact(out / "state.npz")
    assert state["step"] == report["to_step"] and record is not None
    assert (out / "state.npz").stat().st_size <= 16 << 20
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "report.json", "state.npz"]


@pytest.mark.slow
def test_cases_that_do_not_fit_are_left_out(dca, script, tmp_path, monkeypatch, capsys):
    run, folder = tmp_path / "run", tmp_path / "folder"
    trained = dca("train", "-o", run, "--labeled", 3, "--unlabeled", 0, "--validation", 1, "--steps", 1, "--filters", 1,
                  "--patch", 32, "--spacing", "14,14,14", "--device", "cpu")  # fmt: skip
    assert trained.code == 0, trained.err
    assert script.prepare(run, folder, None) == 0
    state, cases = (script._bytes_of(folder, (name,)) for name in (script.STATE, script.CASES))
    monkeypatch.setattr(script, "MAX_BYTES", state + round(0.8 * cases))
    assert script.prepare(run, folder, None) == 0
    assert "Left out" in capsys.readouterr().out
    kept = script._cases(folder)
    assert len(kept["validation"]) == 1 and 0 < len(kept["labelled"]) < 3
