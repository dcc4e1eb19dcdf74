"""The cost of a training step compared with a single graph: the same losses, less memory."""

from __future__ import annotations

import pytest
import torch

from dcaseg.benchmark.step_cost import VARIANTS, StepCost, estimate_step_cost, measure_in_turn, select_variants
from dcaseg.method.network import DCANet
from dcaseg.training.options import TrainingOptions
from dcaseg.training.strategies.dca_losses import compute_joint_losses, compute_supervised_losses, unsupervised_loss


@pytest.mark.parametrize("source", ["experts", "decoder"])
def test_two_graphs_and_two_stages_have_the_losses_of_one_graph(source):
    torch.manual_seed(0)
    options = TrainingOptions(n_filters=2, patch=(16, 16, 32), pseudo_label_source=source, pseudo_label_confidence=0.0)
    network = DCANet(((1,), (2, 3), (4,)), n_filters=2, norm="instance")
    volumes, unlabeled = torch.rand(2, 1, 16, 16, 32), torch.rand(2, 1, 16, 16, 32)
    labels = torch.randint(0, 5, (2, 16, 16, 32))
    plain, agreement = compute_joint_losses(network, volumes, labels, unlabeled, options)
    ours = compute_supervised_losses(network, volumes, labels, options)
    ours["unsupervised"], also = unsupervised_loss(network, unlabeled, options)
    assert agreement == also
    assert set(plain) == set(ours)
    for name, loss in ours.items():
        torch.testing.assert_close(loss, plain[name], atol=1e-5, rtol=0)
    # The two stages of the default preset together have the same losses.
    staged = compute_supervised_losses(network, volumes, labels, options, "experts")
    staged |= compute_supervised_losses(network, volumes, labels, options, "aggregation")
    staged["unsupervised"] = unsupervised_loss(network, unlabeled, options, "aggregation")[0]
    assert set(staged) == set(plain)
    for name, loss in staged.items():
        torch.testing.assert_close(loss, plain[name], atol=1e-5, rtol=0)


def test_the_mean_step_of_a_run_is_weighted_by_its_stages():
    figures = zip(VARIANTS, (9, 7, 8, 2, 4, 3), (90, 70, 80, 20, 40, 30), strict=True)
    costs = {variant: StepCost(variant, seconds, mib, {}) for variant, seconds, mib in figures}
    half = TrainingOptions(expert_stage_fraction=0.5, unsup_weight_cutoff=0.0)
    assert estimate_step_cost(costs, half) == (pytest.approx(0.5 * 2 + 0.5 * 4), 40)
    # In the second stage, exp(-5 (1 - t)^2) > 0.8 is true for the last 21 %.
    mostly = TrainingOptions(expert_stage_fraction=0.5, unsup_weight_cutoff=0.8, ramp_fraction=1.0)
    assert estimate_step_cost(costs, mostly)[0] == pytest.approx(0.5 * 2 + 0.5 * (3 + 0.211), abs=0.002)
    assert estimate_step_cost(costs, TrainingOptions.make_paper_preset(joint_statistics=False)) == (8, 80)
    assert estimate_step_cost(costs, TrainingOptions.make_paper_preset()) == (7, 70)


@pytest.mark.slow
def test_a_step_of_the_default_preset_costs_less_than_one_graph():
    options = TrainingOptions(patch=(32, 32, 32))
    costs = measure_in_turn(options, rounds=1, steps=2, threads=1)
    plain = costs["plain"]
    for cost in costs.values():
        assert cost.losses == pytest.approx({name: plain.losses[name] for name in cost.losses}, abs=1e-5)
    for variant in select_variants(options):
        assert costs[variant].peak_mib < 0.6 * plain.peak_mib
    # With the default preset's patch, the ratio is 0.54. With this small patch, the weights are a larger part of the
    # memory, and they cannot be saved.
    assert costs["joint"].peak_mib < 0.75 * plain.peak_mib
    assert estimate_step_cost(costs, options)[0] < 0.65 * plain.seconds
