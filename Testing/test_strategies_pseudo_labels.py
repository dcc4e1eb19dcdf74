"""Methods with pseudo-labeled voxels and cases: FixMatch, CReST, SimiS.

The tests fail if a mechanism is removed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dcaseg.training.cases import Case
from dcaseg.training.sampling import PatchSampler
from dcaseg.training.strategies import class_statistics as counted
from dcaseg.training.strategies.base import Pool
from dcaseg.training.strategies.fixmatch import make_pseudo_labeled_cases, select_most_confident
from dcaseg.training.strategies.perturbation import augment_strongly
from dcaseg.training.strategies.simis import compute_appended_voxels
from strategy_samples import FACTS, SIDES, batch_of, inputs_of, strategy_for
from test_strategies import options_for
from test_training import case_of_balls


def test_fixmatch_learns_a_strong_view_where_the_weak_one_is_confident():
    strategy = strategy_for("adsh published")
    confidence, labels = torch.tensor([[0.5, 0.96]]), torch.tensor([[1, 2]])
    assert strategy.compute_confidence_mask(confidence, labels).tolist() == [[False, True]]
    strategy.thresholds[1] = 0.4
    assert strategy.compute_confidence_mask(confidence, labels).tolist() == [[True, True]]
    batch, step_state = batch_of(), strategy.get_step_state(50)
    strategy.thresholds.fill_(1.1)
    strategy.forward("unlabelled", batch, step_state).total.backward()
    assert all(not p.grad.any() for p in strategy.network.parameters() if p.grad is not None)


def test_only_the_most_confident_voxels_of_each_class_get_labels():
    generator = np.random.default_rng(0)
    predictions = [
        (generator.integers(0, 3, (4, 5, 6), dtype=np.uint8), generator.integers(0, 50, (4, 5, 6), dtype=np.uint16))
        for _ in range(2)
    ]
    counts = [7, 0, 500]
    kept = select_most_confident(predictions, counts)
    for label, count in enumerate(counts):
        found = np.concatenate([confidence[labels == label] for labels, confidence in predictions])
        chosen = np.concatenate([mask[labels == label] for mask, (labels, _) in zip(kept, predictions, strict=True)])
        assert chosen.sum() == min(count, len(found))
        if 0 < chosen.sum() < len(found):
            assert found[chosen].min() >= found[~chosen].max()


def test_crest_generations_take_pseudo_labels_by_rate_and_restart():
    strategy = strategy_for(
        "crest published", FACTS._replace(voxels=(1000, 100, 10, 10)), strategy_options={"generations": 2}
    )
    predicted = np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(1, 10, 10)
    confidence = np.arange(100, dtype=np.uint16).reshape(1, 10, 10)
    pool = Pool([], [Case("u", np.zeros((1, 10, 10), np.int16), None)], lambda _: (predicted, confidence))
    assert (
        strategy.select_new_cases(strategy.get_step_state(0), pool) is None
        and strategy.select_new_cases(strategy.get_step_state(49), pool) is None
    )
    (case,) = strategy.select_new_cases(strategy.get_step_state(50), pool)
    rates = counted.compute_reversed_weights(torch.tensor([1000.0, 100, 10, 10]))
    for label, rate in enumerate(rates.tolist()):
        here = ~case.ignored & (predicted == label)
        assert here.sum() == int(rate * 25) and (case.labels[here] == label).all()
        if here.sum() < 25:
            assert confidence[here].min() > confidence[case.ignored & (predicted == label)].max()
    before = [p.clone() for p in strategy.network.encoder.parameters()]
    assert strategy.on_step_start(strategy.get_step_state(50), None)
    assert not strategy.on_step_start(strategy.get_step_state(51), None)
    assert any(not torch.equal(a, b) for a, b in zip(before, strategy.network.encoder.parameters(), strict=True))
    assert strategy.get_step_state(75).stage_step == 25 and strategy.get_step_state(75).stage_steps == 50


def test_crest_aligns_pseudo_labels_with_the_labels():
    strategy = strategy_for("crest published")
    probabilities = torch.full((1, 4, 1, 1, 1), 0.25)
    strategy.predicted.copy_(torch.tensor([0.25, 0.25, 0.25, 0.25]))
    found = strategy.align_distribution(probabilities, strategy.get_step_state(0)).flatten()
    torch.testing.assert_close(found, strategy.shares, atol=1e-4, rtol=0)
    later = strategy.align_distribution(probabilities, strategy.get_step_state(99)).flatten()
    assert later[3] > found[3] and later[0] < found[0]


def test_simis_appends_voxels_of_rare_organs():
    shares = torch.tensor([0.7, 0.2, 0.1], dtype=torch.double)
    assert compute_appended_voxels(shares, 3000, 0.0).tolist() == [0, 0, 0]
    assert compute_appended_voxels(shares, 3000, 1.0).tolist() == pytest.approx([0, 500, 600])
    assert compute_appended_voxels(shares, 3000, 0.5).tolist() == pytest.approx([0, 375, 450])
    strategy = strategy_for(
        "simis published", FACTS._replace(voxels=(1000, 70, 20, 10)), strategy_options={"rounds": 2}
    )
    predicted = np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(1, 10, 10)
    pool = Pool(
        [], [Case("u", np.zeros((1, 10, 10), np.int16), None)], lambda _: (predicted, predicted.astype(np.uint16))
    )
    assert strategy.select_new_cases(strategy.get_step_state(0), pool) is None
    (case,) = strategy.select_new_cases(strategy.get_step_state(50), pool)
    wanted = compute_appended_voxels(shares, 100, 0.5).int().tolist()
    assert case.count_voxels(3).tolist() == [0, *wanted]
    assert strategy.voxels.tolist() == [70, 20 + wanted[1], 10 + wanted[2]]


def test_ignored_voxels_give_no_gradient_and_are_cropped():
    strategy = strategy_for("crest published")
    batch = batch_of()
    ignored = torch.zeros(2, *SIDES, dtype=torch.bool)
    ignored[:, 8:] = True
    other = batch.labels.clone()
    other[ignored] = 0
    one = strategy.forward("labelled", batch._replace(ignored=ignored), strategy.get_step_state(0)).total
    two = strategy.forward("labelled", batch._replace(ignored=ignored, labels=other), strategy.get_step_state(0)).total
    assert torch.equal(one, two)
    case = case_of_balls(1)
    pseudo = replace(case, ignored=np.asarray(case.labels == 0))
    patches = PatchSampler([case_of_balls(2), pseudo], options_for("vnet"), np.random.default_rng(0)).draw(8)
    for labels, mask in zip(patches.labels, patches.ignored, strict=True):
        assert not mask.any() or np.array_equal(mask, labels == 0)
    assert any(mask.any() for mask in patches.ignored) and not all(mask.any() for mask in patches.ignored)
    assert make_pseudo_labeled_cases(Pool([], [], lambda case: (case, case)), [1.0], True) == []


def test_pseudo_labeled_cases_do_not_change_the_loss_of_true_labels():
    strategy = strategy_for("crest published").eval()
    batch, step_state = batch_of(), strategy.get_step_state(0)
    batch.labels[:, 4:] = 0
    nothing_ignored = batch._replace(ignored=torch.zeros(2, *SIDES, dtype=torch.bool))
    one, two = (strategy.forward("labelled", each, step_state).total for each in (batch, nothing_ignored))
    torch.testing.assert_close(one, two)


def test_fixmatch_labels_a_patch_and_learns_from_its_strong_view():
    strategy = strategy_for("crest published").eval()
    batch, step_state, seen = batch_of(), strategy.get_step_state(50), inputs_of(strategy.network)
    strategy.forward("unlabelled", batch, step_state)
    weak, strong = seen
    assert torch.equal(weak, batch.unlabeled)
    assert torch.equal(strong, augment_strongly(batch.unlabeled, strategy.make_generator(step_state)))


def test_crest_restarts_with_the_initialization_of_the_run():
    strategy = strategy_for("crest published", initialization="kaiming", strategy_options={"generations": 2})
    deviations = []
    for step in (0, 50):
        strategy.on_step_start(strategy.get_step_state(step), None)
        deviations.append(float(strategy.network.encoder.blocks[2][0].weight.std()))
    assert deviations[1] == pytest.approx(deviations[0], rel=0.1)


def test_adsh_keeps_the_threshold_of_a_class_without_pseudo_labels():
    strategy = strategy_for("adsh")
    strategy.thresholds.fill_(0.4)
    answers = torch.zeros(4, 4, *SIDES)
    answers[:, 0] = 3
    answers[:, 2, 0] = 5
    strategy.observe([answers, answers], batch_of(), strategy.get_step_state(0))
    strategy.on_step_end(strategy.get_step_state(strategy.epoch_steps - 1))
    assert strategy.thresholds[:, [1, 3]].unique().tolist() == pytest.approx([0.4])
    assert (strategy.thresholds[:, [0, 2]] > 0.8).all()
