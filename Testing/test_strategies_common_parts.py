"""What the training strategies share: random draws, losses of a region, weights of classes, facts about the cases.

The tests fail if a mechanism is removed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dcaseg.training.strategies import base, losses
from dcaseg.training.strategies import class_statistics as counted
from dcaseg.training.strategies.base import extract_fingerprint
from dcaseg.training.strategies.perturbation import augment_strongly
from strategy_samples import NAMES, SIDES, batch_of, gradient, strategy_for
from test_training import case_of_balls


def test_random_draws_depend_on_the_step():
    strategy = strategy_for("bcp")
    one, again, other = (
        torch.rand(4, generator=strategy.make_generator(strategy.get_step_state(step))) for step in (5, 5, 6)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one, torch.rand(4, generator=strategy.make_generator(strategy.get_step_state(5), 1)))


def test_two_networks_return_the_mean_of_logits_or_probabilities():
    volume = torch.rand(1, 1, *SIDES)
    cps, co = strategy_for("cps").eval(), strategy_for("co_bionet").eval()
    with torch.no_grad():
        torch.testing.assert_close(cps.get_validated_network()(volume), (cps.network(volume) + cps.second(volume)) / 2)
        both = (co.network(volume).softmax(1) + co.second(volume).softmax(1)) / 2
        torch.testing.assert_close(co.get_validated_network()(volume).softmax(1), both)
    assert strategy_for("cps", strategy_options={"answer": "first"}).get_validated_network().out_channels == 4


def test_zero_weights_give_zero_loss():
    logits = torch.zeros(1, 4, 2, 2, 2, requires_grad=True)
    loss = losses.weighted_cross_entropy(
        logits, torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.tensor([0.0, 1, 1, 1])
    )
    assert float(loss) == 0 and torch.isfinite(gradient(loss, logits)).all()


def test_region_loss_depends_only_on_the_region():
    logits = torch.randn(1, 4, 4, 4, 4, requires_grad=True)
    labels = torch.randint(4, (1, 4, 4, 4))
    region = torch.zeros(4, 4, 4, dtype=torch.bool)
    region[:2] = True
    found = gradient(losses.region_loss(logits, labels, region), logits)
    assert found[:, :, :2].abs().sum() > 0 and not found[:, :, 2:].any()


def test_weights_of_classes_follow_their_formulas():
    voxels = torch.tensor([1000.0, 100, 10])
    torch.testing.assert_close(counted.compute_distribution_weights(voxels), torch.tensor([0.0, 1.5, 3.0]))
    torch.testing.assert_close(
        counted.compute_reversed_weights(voxels), torch.tensor([0.2154, 0.4642, 1.0]), atol=1e-4, rtol=0
    )
    steeper = counted.compute_reversed_weights(voxels, 1.0)
    assert steeper[0] < 0.2154 and steeper[2] == 1
    torch.testing.assert_close(counted.compute_deficit_weights(voxels), 3 * torch.tensor([0, 900 / 1110, 990 / 1110]))
    torch.testing.assert_close(counted.compute_cube_root_weights(voxels), voxels.pow(-1 / 3) * 10)
    torch.testing.assert_close(counted.compute_balance_ratio(voxels), torch.tensor([0.01, 0.1, 1.0]))


def test_a_strong_view_keeps_the_intensity_range():
    volumes = torch.rand(3, 1, *SIDES) * 4 - 2
    one, again = (augment_strongly(volumes, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again) and (one - volumes).abs().mean() > 0.1
    assert one.amin() >= volumes.amin() - 1e-5 and one.amax() <= volumes.amax() + 1e-5


def test_facts_count_labels_and_name_a_partially_labeled_case():
    whole, part = case_of_balls(1), case_of_balls(2)
    fingerprint = extract_fingerprint([whole, part], [case_of_balls(3, labeled=False)], NAMES)
    counts = whole.count_voxels(3) + part.count_voxels(3)
    assert fingerprint.voxels == tuple(counts) and (
        fingerprint.labeled,
        fingerprint.unlabeled,
        fingerprint.partial,
    ) == (2, 1, None)
    labels = np.where(part.labels == 3, 0, part.labels).astype(np.uint8)
    assert extract_fingerprint([whole, replace(part, labels=labels, unannotated=(3,))], [], NAMES).partial == part.name


def test_each_process_draws_other_numbers(monkeypatch):
    strategy = strategy_for("bcp")
    one = torch.rand(4, generator=strategy.make_generator(strategy.get_step_state(5)))
    monkeypatch.setattr(base, "rank", lambda: 1)
    assert not torch.equal(one, torch.rand(4, generator=strategy.make_generator(strategy.get_step_state(5))))


def test_two_networks_learn_from_each_others_labels_on_all_patches():
    strategy = strategy_for("cps")
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def crossed(which, logits, labels, step_state):
        seen[which] = logits.detach(), labels
        return 0 * logits.sum() + 3

    strategy.compute_cross_supervision_loss = crossed
    loss = strategy.forward("all", batch_of(), strategy.get_step_state(50))
    for which in (0, 1):
        assert len(seen[which][1]) == 4 and torch.equal(seen[which][1], seen[1 - which][0].argmax(1))
    expected = 2 * loss.values["supervised"] + strategy.get_unsupervised_weight(strategy.get_step_state(50)) * 6
    torch.testing.assert_close(loss.total.detach(), expected)
