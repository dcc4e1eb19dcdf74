"""The recorded runs of the benchmark on real anatomies: they can be continued, and the documents show their scores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dcaseg.evaluation.experiments.anatomies import TEST
from dcaseg.evaluation.experiments.definitions import ALL_EXPERIMENTS, anatomies_options
from dcaseg.evaluation.experiments.runs import SCORES, read_scores
from dcaseg.evaluation.metrics import DICE
from dcaseg.evaluation.statistics import over_seeds
from dcaseg.organs import AMOS
from dcaseg.training.options import TrainingOptions

RECORDED = Path(__file__).parent / "experiments" / "anatomies"
DOCUMENT = Path(__file__).parents[1] / "Resources" / "Docs" / "measurements" / "training.md"
ARMS = {arm.key: arm for experiment in ALL_EXPERIMENTS.values() for arm in experiment.arms}


def recorded(key: str) -> dict[int, float]:
    """Mean Dice of a row on the test cases, by seed."""
    paths = sorted((RECORDED / "runs" / key).glob(f"seed-*/{SCORES}"))
    return {
        int(path.parent.name.removeprefix("seed-")): over_seeds([read_scores(path, AMOS)], DICE).mean for path in paths
    }


def test_the_recorded_runs_have_todays_options():
    record = json.loads((RECORDED / "experiment.json").read_text(encoding="utf-8"))
    assert TrainingOptions.from_json(record["options"]) == anatomies_options(steps=2000)
    assert len(record["test"]) == sum(TEST.values())
    for path in (RECORDED / "runs").iterdir():
        assert path.name in ARMS
        for scores in path.glob(f"*/{SCORES}"):
            assert list(read_scores(scores, AMOS).cases) == record["test"]


def rows_of_the_document() -> dict[str, list[str]]:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = re.search(r"^\| network, test \|.*?\n\n", text, re.DOTALL | re.MULTILINE)
    assert table is not None
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].strip().splitlines()[2:]]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.parametrize("key", sorted(path.name for path in (RECORDED / "runs").iterdir()))
def test_the_document_shows_the_recorded_scores(key):
    cells = rows_of_the_document()[ARMS[key].title]
    scores = recorded(key)
    assert cells[:3] == [f"{scores[seed]:.3f}" if seed in scores else "" for seed in range(3)]
    assert cells[3] == (f"{np.mean(list(scores.values())):.3f}" if len(scores) == 3 else "")
