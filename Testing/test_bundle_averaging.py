"""Averages of the weights of models."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcaseg.errors import UserError
from dcaseg.method.log_gap import Partition
from dcaseg.method.network import DCANet
from dcaseg.models.averaging import average_bundles
from dcaseg.models.bundle import Bundle, save_bundle
from dcaseg.models.metadata import MeasuredScores, TrainingData
from test_bundle import metadata

_number = itertools.count()


def regrouped(medium_of) -> Partition:
    """The groups of ``metadata()`` with another medium group; the tail takes what is missing."""
    groups = metadata().partition
    medium = medium_of(groups.medium)
    return replace(groups, medium=medium, tail=(*groups.tail, *sorted(set(groups.medium) - set(medium))))


def saved(folder: Path, seed: int, changes=None, **options) -> Bundle:
    torch.manual_seed(seed)
    about = replace(metadata(), name=f"model-{seed}", training_data=(TrainingData(f"Data {seed}", 1, 0, "CC0-1.0"),))
    about = replace(about, scores=MeasuredScores("cases", 1, {"liver": 0.9}), **(changes or {}))
    network = DCANet(about.partition.owners, **{"n_filters": 2, "norm": "instance", **options}).eval()
    return save_bundle(folder / str(next(_number)), network, about, dtype="float32")


@pytest.mark.slow
def test_the_weights_are_the_mean_and_the_data_those_of_all(tmp_path):
    bundles = [saved(tmp_path, seed) for seed in (1, 2, 3)]
    mean = average_bundles(bundles, tmp_path / "mean")
    states = [bundle.network().state_dict() for bundle in bundles]
    for key, value in mean.network().state_dict().items():
        expected = torch.stack([state[key] for state in states]).mean(0)
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=1e-5)
    about = mean.metadata
    assert {data.name for data in about.training_data} == {"Data 1", "Data 2", "Data 3"}
    assert about.name == "mean" and about.scores is None
    assert "Mean of the weights of model-1" in about.description


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"spacing": (3.0, 3.0, 3.0)}, {}, "spacing"),
        ({"hu_window": (-200.0, 300.0)}, {}, "hu window"),
        ({}, {"n_filters": 3}, "network"),
        ({"partition": regrouped(lambda medium: medium[1:])}, {}, "partition"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, changes, options, words):
    with pytest.raises(UserError, match=f"differ in {re.escape(words)}"):
        average_bundles([saved(tmp_path, 1), saved(tmp_path, 2, changes, **options)], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_the_order_of_the_organs_in_a_group_does_not_matter(tmp_path):
    as_usual, reversed_medium = (
        saved(tmp_path, 1),
        saved(tmp_path, 2, {"partition": regrouped(lambda each: each[::-1])}),
    )
    mean = average_bundles([as_usual, reversed_medium], tmp_path / "mean")
    assert mean.metadata.partition == reversed_medium.metadata.partition
    key = "experts.1.head.weight"
    states = [bundle.network().state_dict() for bundle in (as_usual, reversed_medium)]
    torch.testing.assert_close(
        mean.network().state_dict()[key], (states[0][key] + states[1][key]) / 2, rtol=2e-3, atol=1e-5
    )


def test_a_single_model_and_batch_normalization_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least two"):
        average_bundles([saved(tmp_path, 1)], tmp_path / "mean")
    with pytest.raises(UserError, match="batch normalization"):
        average_bundles([saved(tmp_path, seed, norm="batch") for seed in (1, 2)], tmp_path / "mean")


def test_the_command_writes_the_mean_and_keeps_what_exists(tmp_path, dca):
    folders = [str(saved(tmp_path, seed).folder) for seed in (1, 2)]
    done = dca("bundle", "average", *folders, "-o", str(tmp_path / "mean"))
    assert done.code == 0, done.err
    assert Bundle.load(tmp_path / "mean").metadata.name == "mean"
    again = dca("bundle", "average", *folders, "-o", str(tmp_path / "mean"))
    assert again.code == 2 and "exists" in again.err
