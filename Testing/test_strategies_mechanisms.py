"""The mechanism of each method. The tests fail if the mechanism is removed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dcaseg.errors import UserError
from dcaseg.method.log_gap import Partition
from dcaseg.training.cases import Case
from dcaseg.training.sampling import PatchSampler
from dcaseg.training.strategies import class_statistics as counted
from dcaseg.training.strategies import losses, mixing
from dcaseg.training.strategies.a_and_d import denoised, encoded, noised
from dcaseg.training.strategies.basak import fused_confidence
from dcaseg.training.strategies.base import Batch, Facts, Pool, Strategy, facts_of
from dcaseg.training.strategies.beta_fft import interpolate
from dcaseg.training.strategies.co_bionet import Critic, critic_loss, selected_cross_entropy
from dcaseg.training.strategies.fixmatch import most_confident, pseudo_labeled
from dcaseg.training.strategies.ga import gradient_aware_cross_entropy, gradient_aware_dice
from dcaseg.training.strategies.magicnet import blended
from dcaseg.training.strategies.perturbation import adversarial_direction, strong_view, unit
from dcaseg.training.strategies.registry import fitted, make_strategy
from dcaseg.training.strategies.simis import appended_voxels
from dcaseg.training.strategies.ss_net import contrast
from dcaseg.training.strategies.urpc import rectified_consistency
from dcaseg.training.training_set import divide
from test_strategies import options_for
from test_training import THREE_BALLS, case_of_balls

SIDES = (16, 16, 32)
NAMES = tuple(organ.name for organ in THREE_BALLS)
FACTS = Facts((100_000, 8_000, 1_000, 100), labeled=2, unlabeled=8, organs=NAMES)
GROUPS: Partition = divide([case_of_balls(1)], THREE_BALLS, "top2")


def strategy_for(name: str, facts: Facts = FACTS, **changes) -> Strategy:
    torch.manual_seed(0)
    return make_strategy(options_for(name, **{"steps": 100, **changes}), GROUPS, facts)


def batch_of(count: int = 2, seed: int = 0, sides: tuple[int, ...] = SIDES) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.rand(2 * count, 1, *sides, generator=generator)
    labels = torch.randint(4, (count, *sides), generator=generator)
    return Batch(volumes[:count], labels, [()] * count, volumes[count:])


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


def volume_of(values: list[float], channels: bool = False) -> Tensor:
    """A map of one voxel for each value: (1, 1, 1, n) labels, or logits (1, channel, 1, 1, n)."""
    found = torch.tensor(values)
    return found.T[None, :, None, None, :] if channels else found[None, None, None, :]


# ---------------------------------------------------------------------------------------------- common parts


def test_random_draws_depend_on_the_step():
    strategy = strategy_for("bcp")
    one, again, other = (torch.rand(4, generator=strategy.random(strategy.step_state(step))) for step in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert not torch.equal(one, torch.rand(4, generator=strategy.random(strategy.step_state(5), 1)))


def test_two_networks_return_the_mean_of_logits_or_probabilities():
    volume = torch.rand(1, 1, *SIDES)
    cps, co = strategy_for("cps").eval(), strategy_for("co_bionet").eval()
    with torch.no_grad():
        torch.testing.assert_close(cps.validated_network()(volume), (cps.network(volume) + cps.second(volume)) / 2)
        both = (co.network(volume).softmax(1) + co.second(volume).softmax(1)) / 2
        torch.testing.assert_close(co.validated_network()(volume).softmax(1), both)
    assert strategy_for("cps", strategy_options={"answer": "first"}).validated_network().out_channels == 4


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
    torch.testing.assert_close(counted.distribution_weights(voxels), torch.tensor([0.0, 1.5, 3.0]))
    torch.testing.assert_close(counted.reversed_weights(voxels), torch.tensor([0.2154, 0.4642, 1.0]), atol=1e-4, rtol=0)
    steeper = counted.reversed_weights(voxels, 1.0)
    assert steeper[0] < 0.2154 and steeper[2] == 1
    torch.testing.assert_close(counted.lagging_weights(voxels), 3 * torch.tensor([0, 900 / 1110, 990 / 1110]))
    torch.testing.assert_close(counted.cube_root_weights(voxels), voxels.pow(-1 / 3) * 10)
    torch.testing.assert_close(counted.balance_ratio(voxels), torch.tensor([0.01, 0.1, 1.0]))


def test_a_strong_view_keeps_the_intensity_range():
    volumes = torch.rand(3, 1, *SIDES) * 4 - 2
    one, again = (strong_view(volumes, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again) and (one - volumes).abs().mean() > 0.1
    assert one.amin() >= volumes.amin() - 1e-5 and one.amax() <= volumes.amax() + 1e-5


# ------------------------------------------------------------------------------------------------- invalid input


@pytest.mark.parametrize("name", ["urpc", "cps", "ga", "bcp", "abd", "skcdf", "crest published"])
def test_missing_unlabeled_cases_are_rejected(name):
    with pytest.raises(UserError, match="needs unlabeled cases, but there are none"):
        strategy_for(name, FACTS._replace(unlabeled=0))


def test_partially_labeled_cases_are_rejected_where_unsupported():
    part = FACTS._replace(partial="case 7")
    with pytest.raises(UserError, match="case 7 is only partially labeled"):
        strategy_for("dhc", part)
    strategy_for("cps", part)


@pytest.mark.parametrize("name", ["crest", "cld", "dhc", "skcdf"])
def test_an_organ_without_voxels_is_rejected(name):
    with pytest.raises(UserError, match="no labeled case has Small"):
        strategy_for(name, FACTS._replace(voxels=(1000, 10, 10, 0)))


@pytest.mark.parametrize("name", ["bcp", "abd", "beta_fft"])
def test_an_odd_number_of_patches_is_rejected(name):
    with pytest.raises(UserError, match="--batch 2 or a multiple"):
        strategy_for(name, labeled_per_step=1, unlabeled_per_step=1)
    with pytest.raises(UserError, match="--batch 4 or a multiple"):
        strategy_for(name, FACTS._replace(processes=2))


def test_patches_that_cannot_be_divided_are_rejected():
    with pytest.raises(UserError, match="--patch that is a multiple of 48"):
        strategy_for("magicnet", strategy_options={"cubes": 3})
    with pytest.raises(UserError, match="multiple of 32 voxels"):
        strategy_for("magicnet", norm="instance")
    with pytest.raises(UserError, match="into 3 parts"):
        strategy_for("abd", strategy_options={"blocks": 3})


def test_an_unknown_strategy_option_is_rejected():
    with pytest.raises(UserError, match=r"no option 'blocks'.*pseudo_weight \(0.5\)"):
        strategy_for("bcp", strategy_options={"blocks": 3})
    with pytest.raises(UserError, match="box must be a number, not 'wide'"):
        strategy_for("bcp", strategy_options={"box": "wide"})
    with pytest.raises(UserError, match="variant must be one of row, published"):
        strategy_for("crest", strategy_options={"variant": "mine"})
    assert strategy_for("bcp", strategy_options={"box": "0.5", "largest_part": "true"}).own.box == 0.5


def test_magicnet_adapts_to_small_patches():
    options = replace(options_for("magicnet"), strategy_options={}, norm="instance")
    assert fitted(replace(options, patch=(96, 96, 96))).strategy_options == {"cubes": 3}
    small = fitted(replace(options, patch=(32, 32, 32)))
    assert small.strategy_options == {"cubes": 2} and small.norm == "batch"


# ----------------------------------------------------------------------------------- two networks: GA, DHC, ...


def test_ga_dice_of_an_absent_class_has_a_proportional_gradient():
    logits = volume_of([[2.0, 0.0], [2.0, 1.0], [2.0, 2.0]], channels=True).requires_grad_(True)
    labels = torch.zeros(1, 1, 1, 3, dtype=torch.long)
    found = gradient(gradient_aware_dice(logits, labels), logits)[0, 1].flatten()
    # p/(C N) times the softmax derivative p (1 - p), and the same again from the present class.
    assert (found > 0).all() and found[0] < found[1] < found[2]
    probability = logits.detach().softmax(1)
    absent = (probability.detach() * logits.softmax(1))[:, 1].sum() / 3 / 2
    present = 1 - (2 * logits.softmax(1)[:, 0].sum()) / ((logits.softmax(1)[:, 0] ** 2).sum() + 3)
    torch.testing.assert_close(gradient_aware_dice(logits, labels), absent + present / 2)


def test_ga_cross_entropy_gives_a_class_the_root_of_its_size():
    logits = torch.zeros(1, 2, 1, 1, 101, requires_grad=True)
    labels = (torch.arange(101) == 100).long()[None, None, None]

    def ratio(power: float) -> float:
        of_voxel = gradient(gradient_aware_cross_entropy(logits, labels, 1.0, power), logits)[0, 0, 0, 0]
        return float(of_voxel[:100].abs().sum() / of_voxel[100].abs())

    assert ratio(0.5) == pytest.approx(10) and ratio(1.0) == pytest.approx(100) and ratio(0.0) == pytest.approx(1)
    plain = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(gradient_aware_cross_entropy(logits, labels, 1.0, 1.0), plain)


def test_ga_uses_only_the_hardest_voxels():
    logits = torch.randn(1, 4, 4, 5, 5, requires_grad=True)
    labels = torch.randint(4, (1, 4, 5, 5))
    loss = strategy_for("ga").supervised(0, logits, Batch(logits, labels, [()], None), strategy_for("ga").step_state(0))
    loss = loss - gradient_aware_dice(logits, labels)
    seen = gradient(loss, logits).abs().sum(dim=1)[0].flatten() > 1e-9
    hardest = losses.voxel_cross_entropy(logits, labels).flatten().topk(10).indices
    assert seen.sum() == 10 and seen[hardest].all()


def test_dhc_gives_more_weight_to_classes_that_get_worse():
    difficulty = counted.Difficulty(3)
    labels = torch.arange(3).repeat_interleave(20)
    for step in range(10):
        found = labels.clone()
        found[20 : 22 + step] = 0  # class 1 loses voxels, class 2 gains some
        found[40 : 52 - step] = 0
        weights = difficulty.observe(found, labels)
    assert weights[1] > weights[2] and weights.max() == pytest.approx(3)
    before = difficulty.distance.clone()
    difficulty.observe(torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long))
    assert torch.equal(before[1:], difficulty.distance[1:]) and before[0] != difficulty.distance[0]


def test_dhc_has_different_weights_per_network_and_allows_empty_pseudo_labels():
    strategy = strategy_for("dhc")
    batch, step_state = batch_of(), strategy.step_state(50)
    torch.testing.assert_close(strategy.distribution, counted.distribution_weights(torch.tensor(FACTS.voxels).float()))
    empty = torch.zeros(4, 4, *SIDES)
    empty[:, 0] = 9
    before = strategy.distribution.clone()
    strategy.observe([empty, empty], batch, step_state)
    background_alone = counted.distribution_weights(torch.tensor([2.0 * 8192, 0, 0, 0]))
    torch.testing.assert_close(strategy.distribution, 0.99 * before + 0.01 * background_alone)
    logits = torch.randn(4, 4, *SIDES)
    one, other = (strategy.supervised(which, logits[:2], batch, step_state) for which in (0, 1))
    assert one != other
    assert torch.isfinite(strategy.crossed(1, logits, torch.zeros(4, *SIDES, dtype=torch.long), step_state))


def test_crest_row_weights_by_reversed_frequency_with_a_running_mean():
    strategy = strategy_for("crest")
    start = counted.reversed_weights(torch.tensor(FACTS.voxels).float())
    torch.testing.assert_close(strategy.weights, start.expand(2, -1))
    answers = [torch.randn(4, 4, *SIDES) for _ in range(2)]
    strategy.observe(answers, batch_of(), strategy.step_state(0))
    for kept, answer in zip(strategy.weights, answers, strict=True):
        of_unlabeled = counted.voxels_of(answer[2:].argmax(1), 4)
        torch.testing.assert_close(kept, 0.99 * start + 0.01 * counted.reversed_weights(of_unlabeled))
    batch = batch_of()
    rare, often = (strategy.crossed(0, answers[0], torch.full((4, *SIDES), k), strategy.step_state(0)) for k in (3, 0))
    torch.testing.assert_close(rare, functional.cross_entropy(answers[0], torch.full((4, *SIDES), 3)))
    assert torch.isfinite(often) and strategy.supervised(0, answers[0][:2], batch, strategy.step_state(0)) != 0


def test_simis_row_gives_organs_equal_weight_and_the_background_none():
    strategy = strategy_for("simis")
    assert strategy.weights[0, 0] == 0 and strategy.weights[0, 3] > strategy.weights[0, 1]
    strategy.weights.fill_(4)
    answers = torch.zeros(4, 4, *SIDES)
    answers[:, 0] = 1
    for label in (1, 2, 3):
        answers[:, label, 0, 0, : 4 * label] = 2
    backgrounds = []
    for step in range(3):
        strategy.observe([answers, answers], batch_of(), strategy.step_state(step))
        backgrounds.append(float(strategy.weights[0, 0]))
    organs = strategy.weights[0, 1:]
    assert backgrounds == sorted(backgrounds, reverse=True) and organs.min() > 0.95 * organs.max()


def test_cld_keeps_more_voxels_of_classes_with_low_confidence():
    strategy = strategy_for("cld")
    torch.testing.assert_close(strategy.weights, counted.cube_root_weights(torch.tensor(FACTS.voxels).float()))
    bank = strategy.banks[0]
    bank.confidence.copy_(torch.tensor([1.0, 0.9, 0.5, 0.1]))
    torch.testing.assert_close(bank.rates(), torch.tensor([0.0, 1 / 3, (5 / 9) ** 0.5, 1.0]))
    logits = torch.zeros(4, 4, *SIDES)
    own = torch.randint(4, (4, *SIDES))
    logits = logits.scatter(1, own[:, None], 3.0).requires_grad_(True)
    labels = torch.randint(4, (4, *SIDES))
    seen = gradient(strategy.crossed(0, logits, labels, strategy.step_state(0)), logits).abs().sum(dim=1) > 0
    for label, rate in enumerate(bank.rates().tolist()):
        assert float(seen[own == label].float().mean()) == pytest.approx(rate, abs=0.03)


def test_cld_bank_does_not_change_absent_classes():
    bank = counted.Confidence(3, period=1)
    probabilities = torch.full((1, 3, 1, 1, 4), 0.2)
    bank.observe(probabilities, torch.tensor([[[[0, 0, 1, 1]]]]))
    assert bank.confidence.tolist() == pytest.approx([0.2, 0.2, -1]) and bank.rates()[2] == 1
    bank.observe(torch.full((1, 3, 1, 1, 4), 0.7), torch.tensor([[[[0, 0, 0, 0]]]]))
    assert bank.confidence.tolist() == pytest.approx([0.999 * 0.2 + 0.001 * 0.7, 0.2, -1])


def test_adsh_keeps_the_same_share_of_every_class():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(torch.tensor([50_000, 3000, 2000, 1000]))
    confidence = torch.rand(len(labels), generator=generator)
    confidence[labels == 0] = torch.where(confidence[labels == 0] < 0.6, 0.5, 0.95)
    confidence[labels == 3] *= 0.5
    quantiles = counted.Quantiles(4)
    quantiles.observe(confidence, labels)
    share = quantiles.share_above(0, 0.9)
    thresholds = quantiles.thresholds(share)
    for label in range(4):
        kept = (confidence[labels == label] >= thresholds[label]).float().mean()
        assert float(kept) == pytest.approx(0.4, abs=0.015)
    assert thresholds[3] < thresholds[1] < thresholds[0]


def test_adsh_masks_the_loss_by_the_other_networks_thresholds():
    strategy = strategy_for("adsh")
    strategy.thresholds[1] = torch.tensor([0.0, 1.1, 0.0, 1.1])
    answers = [torch.randn(4, 4, *SIDES) for _ in range(2)]
    strategy.observe(answers, batch_of(), strategy.step_state(0))
    logits, labels = answers[0].clone().requires_grad_(True), answers[1].argmax(1)
    seen = gradient(strategy.crossed(0, logits, labels, strategy.step_state(0)), logits).abs().sum(dim=1) > 0
    assert torch.equal(seen, (labels == 0) | (labels == 2))


def test_adsh_updates_its_thresholds_every_quarter_of_an_epoch():
    strategy = strategy_for("adsh", FACTS._replace(unlabeled=16))
    assert strategy.epoch_steps == 8
    strategy.observe([torch.randn(4, 4, *SIDES) for _ in range(2)], batch_of(), strategy.step_state(0))
    strategy.on_step_end(strategy.step_state(0))
    assert not strategy.thresholds.any()
    strategy.on_step_end(strategy.step_state(1))
    assert strategy.thresholds.all() and not strategy.quantiles[0].histogram.any()


# ---------------------------------------------------------------------------------- FixMatch and pseudo-labeled cases


def test_fixmatch_learns_a_strong_view_where_the_weak_one_is_confident():
    strategy = strategy_for("adsh published")
    confidence, labels = torch.tensor([[0.5, 0.96]]), torch.tensor([[1, 2]])
    assert strategy.accepted(confidence, labels).tolist() == [[False, True]]
    strategy.thresholds[1] = 0.4
    assert strategy.accepted(confidence, labels).tolist() == [[True, True]]
    batch, step_state = batch_of(), strategy.step_state(50)
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
    kept = most_confident(predictions, counts)
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
        strategy.new_cases(strategy.step_state(0), pool) is None
        and strategy.new_cases(strategy.step_state(49), pool) is None
    )
    (case,) = strategy.new_cases(strategy.step_state(50), pool)
    rates = counted.reversed_weights(torch.tensor([1000.0, 100, 10, 10]))
    for label, rate in enumerate(rates.tolist()):
        here = ~case.ignored & (predicted == label)
        assert here.sum() == int(rate * 25) and (case.labels[here] == label).all()
        if here.sum() < 25:
            assert confidence[here].min() > confidence[case.ignored & (predicted == label)].max()
    before = [p.clone() for p in strategy.network.encoder.parameters()]
    assert strategy.on_step_start(strategy.step_state(50), None)
    assert not strategy.on_step_start(strategy.step_state(51), None)
    assert any(not torch.equal(a, b) for a, b in zip(before, strategy.network.encoder.parameters(), strict=True))
    assert strategy.step_state(75).stage_step == 25 and strategy.step_state(75).stage_steps == 50


def test_crest_aligns_pseudo_labels_with_the_labels():
    strategy = strategy_for("crest published")
    probabilities = torch.full((1, 4, 1, 1, 1), 0.25)
    strategy.predicted.copy_(torch.tensor([0.25, 0.25, 0.25, 0.25]))
    found = strategy.aligned(probabilities, strategy.step_state(0)).flatten()
    torch.testing.assert_close(found, strategy.shares, atol=1e-4, rtol=0)
    later = strategy.aligned(probabilities, strategy.step_state(99)).flatten()
    assert later[3] > found[3] and later[0] < found[0]


def test_simis_appends_voxels_of_rare_organs():
    shares = torch.tensor([0.7, 0.2, 0.1], dtype=torch.double)
    assert appended_voxels(shares, 3000, 0.0).tolist() == [0, 0, 0]
    assert appended_voxels(shares, 3000, 1.0).tolist() == pytest.approx([0, 500, 600])
    assert appended_voxels(shares, 3000, 0.5).tolist() == pytest.approx([0, 375, 450])
    strategy = strategy_for(
        "simis published", FACTS._replace(voxels=(1000, 70, 20, 10)), strategy_options={"rounds": 2}
    )
    predicted = np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(1, 10, 10)
    pool = Pool(
        [], [Case("u", np.zeros((1, 10, 10), np.int16), None)], lambda _: (predicted, predicted.astype(np.uint16))
    )
    assert strategy.new_cases(strategy.step_state(0), pool) is None
    (case,) = strategy.new_cases(strategy.step_state(50), pool)
    wanted = appended_voxels(shares, 100, 0.5).int().tolist()
    assert case.voxel_counts(3).tolist() == [0, *wanted]
    assert strategy.voxels.tolist() == [70, 20 + wanted[1], 10 + wanted[2]]


def test_ignored_voxels_give_no_gradient_and_are_cropped():
    strategy = strategy_for("crest published")
    batch = batch_of()
    ignored = torch.zeros(2, *SIDES, dtype=torch.bool)
    ignored[:, 8:] = True
    other = batch.labels.clone()
    other[ignored] = 0
    one = strategy.forward("labelled", batch._replace(ignored=ignored), strategy.step_state(0)).total
    two = strategy.forward("labelled", batch._replace(ignored=ignored, labels=other), strategy.step_state(0)).total
    assert torch.equal(one, two)
    case = case_of_balls(1)
    pseudo = replace(case, ignored=np.asarray(case.labels == 0))
    patches = PatchSampler([case_of_balls(2), pseudo], options_for("vnet"), np.random.default_rng(0)).draw(8)
    for labels, mask in zip(patches.labels, patches.ignored, strict=True):
        assert not mask.any() or np.array_equal(mask, labels == 0)
    assert any(mask.any() for mask in patches.ignored) and not all(mask.any() for mask in patches.ignored)
    assert pseudo_labeled(Pool([], [], lambda case: (case, case)), [1.0], True) == []


# ------------------------------------------------------------------------------------- consistency: URPC, Basak


def test_urpc_consistency_is_zero_for_equal_scales_and_weaker_for_uncertain_voxels():
    same = torch.randn(1, 4, 2, 2, 2).log_softmax(1)
    scales = [same.clone().requires_grad_(True) for _ in range(4)]
    loss = rectified_consistency(scales)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    mean = torch.tensor([0.7, 0.3])
    near, far = torch.tensor([0.6, 0.4]), torch.tensor([0.05, 0.95])
    # One of four scales differs: slightly in one voxel, strongly in the other.
    differing = torch.stack([near, far], dim=1).log()[None, :, None, None]
    others = torch.stack([mean, mean], dim=1).log()[None, :, None, None]
    stack = [others, others, others, differing]
    centre = torch.stack([one.exp() for one in stack]).mean(0)
    uncertainty = (centre * (centre.log() - differing)).sum(1)
    assert uncertainty[..., 1] > uncertainty[..., 0] > 0
    plain = sum(((centre - one.exp()) ** 2).mean() for one in stack) / 4
    divergence = sum((centre * (centre.log() - one)).sum(1).mean() for one in stack) / 4
    assert rectified_consistency(stack) - divergence < plain


def test_urpc_learns_at_all_scales_and_returns_the_finest():
    strategy = strategy_for("urpc").eval()
    batch = batch_of()
    scales = strategy.pyramid(batch.volumes)
    torch.testing.assert_close(scales[-1].softmax(1), strategy.network(batch.volumes).softmax(1))
    assert len(scales) == 4 and all(one.shape == scales[-1].shape for one in scales)
    for part in ("labelled", "unlabelled"):
        strategy.zero_grad()
        strategy.forward(part, batch, strategy.step_state(50)).total.backward()
        assert all(head.weight.grad.abs().sum() > 0 for head in strategy.heads)


@pytest.mark.parametrize("name", ["basak", "basak published"])
def test_basak_samples_most_voxels_of_the_worst_class(name):
    strategy = strategy_for(name)
    labels = torch.randint(4, (2, *SIDES))
    logits = torch.zeros(2, 4, *SIDES).scatter(1, torch.where(labels == 3, 0, labels)[:, None], 4.0)
    for step in range(8):
        strategy._observe(logits.softmax(1), labels)
        before = strategy.rates().clone()
        strategy.on_step_end(strategy.step_state(step))
        if (step + 1) % strategy.epoch_steps:
            assert torch.equal(before, strategy.rates())
    rates = strategy.rates()
    assert strategy.epoch_steps == 4 and rates.argmax() == 3 and rates[1] < 1
    if "published" in name:
        assert rates[3] > 2 * rates[1]


def test_basak_uses_each_patch_with_its_own_labels():
    strategy = strategy_for("basak")
    probabilities, labels = torch.randn(2, 4, *SIDES).softmax(1), torch.randint(4, (2, *SIDES))
    strategy._observe(probabilities, labels)
    together = strategy.sums.clone()
    strategy.sums.zero_()
    for index in (0, 1):
        strategy._observe(probabilities[index : index + 1], labels[index : index + 1])
    torch.testing.assert_close(together, strategy.sums, rtol=1e-4, atol=1e-4)


def test_basak_fuses_confidence_of_all_three_indicators():
    sure, unsure = torch.tensor([[0.9], [0.9], [0.9]]), torch.tensor([[0.2], [0.1], [0.3]])
    found = fused_confidence(torch.cat([sure, unsure], dim=1), row=False)
    assert found[0] > 0.9 > 0.5 > found[1]


# --------------------------------------------------------------------------------- copy-paste: BCP, ABD, beta-FFT


def test_bcp_pastes_both_ways_with_half_weight_for_pseudo_labels():
    strategy = strategy_for("bcp")
    batch, generator = batch_of(), torch.Generator().manual_seed(1)
    mask = mixing.box_mask(SIDES, 2 / 3, generator)
    assert (~mask).sum() == 10 * 10 * 21
    pseudo = torch.randint(4, (2, *SIDES))
    inward, outward = strategy.both_ways((batch.volumes, batch.labels), (batch.unlabeled, pseudo), mask)
    assert torch.equal(inward.volumes[0, 0][mask], batch.volumes[0, 0][mask])
    assert torch.equal(inward.volumes[0, 0][~mask], batch.unlabeled[0, 0][~mask])
    assert torch.equal(outward.volumes[0, 0][mask], batch.unlabeled[1, 0][mask])
    assert torch.equal(outward.labels[0][~mask], batch.labels[1][~mask])
    assert torch.equal(outward.labels[0][mask], pseudo[1][mask])
    logits = torch.zeros(1, 4, *SIDES, requires_grad=True)
    labeled, half = (gradient(inward.loss(logits, 1.0, weight), logits) for weight in (1.0, 0.5))
    torch.testing.assert_close(half[:, :, mask], labeled[:, :, mask])
    torch.testing.assert_close(half[:, :, ~mask], labeled[:, :, ~mask] / 2)


def test_bcp_copies_the_student_to_the_teacher_at_the_second_stage():
    strategy = strategy_for("bcp")
    border = round(0.118 * 100)
    assert (
        strategy.step_state(border - 1).stage == "pretraining" and strategy.weight(strategy.step_state(border - 1)) == 0
    )
    with torch.no_grad():
        for parameter in strategy.network.parameters():
            parameter.add_(1)
    strategy.on_step_end(strategy.step_state(border - 1))
    pairs = list(zip(strategy.network.parameters(), strategy.teacher.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in pairs)
    step_state = strategy.step_state(border)
    assert (
        step_state.stage_step == 0
        and strategy.on_step_start(step_state, None)
        and all(torch.equal(a, b) for a, b in pairs)
    )
    batch = batch_of()
    one = strategy.forward("mixed", batch, step_state).total
    with torch.no_grad():
        strategy.teacher.experts[0].head.bias.add_(torch.tensor([0.0, 9, 0, 0]))
    assert strategy.forward("mixed", batch, step_state).total != one


def test_abd_replaces_the_least_confident_block_by_a_confident_one_of_the_other_view():
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(8, 1, 1, 2, 2, 2, generator=generator) for _ in range(2)]
    confident = [[0.9, 0.3, 0.8, 0.85, 0.5, 0.5, 0.5, 0.5], [0.4, 0.9, 0.5, 0.5, 0.86, 0.5, 0.26, 0.8]]
    answers = []
    for values in confident:
        rest = (1 - torch.tensor(values)) / 3
        answer = torch.stack([torch.tensor(values), rest, rest, rest], dim=1)
        answers.append(answer[:, None, :, None, None, None].expand(8, 1, 4, 2, 2, 2).clone())
    # View 1: the least confident block, 1, is closest to class 2. View 2: of the best three (1, 4, 7), block 7 is.
    answers[0][1, 0] = torch.tensor([0.2, 0.2, 0.3, 0.3])[:, None, None, None]
    answers[1][7, 0] = torch.tensor([0.1, 0.05, 0.8, 0.05])[:, None, None, None]
    one, other = mixing.displaced((views[0], answers[0]), (views[1], answers[1]), 3, [True])
    assert [k for k in range(8) if not torch.equal(one[k], views[0][k])] == [1] and torch.equal(one[1], views[1][7])
    assert [k for k in range(8) if not torch.equal(other[k], views[1][k])] == [6]
    assert any(torch.equal(other[6], views[0][k]) for k in (0, 2, 3))
    plain, _ = mixing.displaced((views[0], answers[0]), (views[1], answers[1]), 3, [False])
    assert torch.equal(plain[1], views[1][1])


def test_abd_moves_labels_along_with_blocks_of_labeled_patches():
    views = [torch.rand(8, 2, 1, 2, 2, 2) for _ in range(2)]
    answers = [torch.randn(8, 2, 4, 2, 2, 2).softmax(2) for _ in range(2)]
    labels = torch.randint(4, (8, 2, 1, 2, 2, 2))
    new = mixing.displaced_with_labels((views[0], answers[0]), (views[1], answers[1]), labels, [True, False])
    confidence = [answer.amax(2).flatten(2).mean(2)[:, 0] for answer in answers]
    best, worst = int(confidence[0].argmax()), int(confidence[1].argmin())
    assert torch.equal(new[0][0][best, 0], views[1][worst, 0]) and torch.equal(new[0][1][best, 0], labels[worst, 0])
    assert torch.equal(new[0][0][:, 1], views[0][:, 1]) and torch.equal(new[0][1][:, 1], labels[:, 1])


def test_abd_teaches_both_networks_on_displaced_mixtures():
    strategy = strategy_for("abd")
    batch, step_state = batch_of(), strategy.step_state(50)
    strategy.forward("mixed", batch, step_state)
    assert not torch.equal(strategy.views[0][0], strategy.views[1][0])
    strategy.forward("displaced", batch, step_state).total.backward()
    for network in strategy.students:
        assert network.encoder.blocks[0][0].weight.grad.abs().sum() > 0


def test_beta_fft_swaps_low_frequencies():
    one, other = torch.rand(1, 1, *SIDES), torch.rand(1, 1, *SIDES)
    new, new_other = mixing.frequencies_swapped(one, other, 0.125)
    torch.testing.assert_close(new + new_other, one + other)
    low = mixing.low_frequencies
    torch.testing.assert_close(low(new, 0.125), low(other, 0.125), atol=1e-5, rtol=0)
    torch.testing.assert_close(new - low(new, 0.125), one - low(one, 0.125), atol=1e-5, rtol=0)
    back, _ = mixing.frequencies_swapped(new, new_other, 0.125)
    torch.testing.assert_close(back, one, atol=1e-5, rtol=0)
    waves = torch.cos(2 * torch.pi * 5 * torch.arange(32) / 32).expand(1, 1, *SIDES)
    assert low(waves, 0.125).abs().max() < 1e-5 and torch.allclose(low(waves, 0.16), waves, atol=1e-5)


def test_beta_fft_has_additional_losses_for_the_first_network():
    strategy = strategy_for("beta_fft")
    batch, step_state = batch_of(), strategy.step_state(60)
    strategy.forward("mixed", batch, step_state)
    strategy.forward("differentiated", batch, step_state).total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in strategy.network.parameters())
    assert all(p.grad is None for p in strategy.second.parameters())
    strategy.forward("swapped", batch, step_state).total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in strategy.second.parameters())
    ends = interpolate(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, 1.0]))
    assert ends.flatten().tolist() == [0, 1]


# ---------------------------------------------------------------------------------------------------- MagicNet


def test_cubes_are_exchanged_and_returned_to_their_positions():
    volumes = torch.rand(4, 2, 6, 9, 12)
    parts = mixing.cubes(volumes, 3)
    torch.testing.assert_close(parts[1][:, :, 0, 0, 0], volumes[:, :, 0, 0, 4])
    torch.testing.assert_close(parts[9][:, :, 0, 0, 0], volumes[:, :, 2, 0, 0])
    assert torch.equal(mixing.assembled(parts), volumes)
    order = mixing.partners(27, 4, torch.Generator().manual_seed(0))
    mixture = mixing.exchanged(parts, order)
    for place in range(27):
        assert sorted(order[place].tolist()) == [0, 1, 2, 3]
        for patch in range(4):
            assert torch.equal(mixture[place, patch], parts[place, order[place, patch]])
    assert not torch.equal(mixture, parts) and torch.equal(mixing.returned(mixture, order), parts)


def test_magicnet_returns_features_to_their_positions():
    strategy = strategy_for("magicnet").eval()
    batch = batch_of(sides=(32, 32, 32))
    volumes = torch.cat([batch.volumes, batch.unlabeled])
    found = {}
    strategy._pseudo_label = lambda unlabeled, of_cubes, step_state: found.setdefault("logits", of_cubes)
    strategy._cubes(volumes, batch.labels, strategy.step_state(0))
    with torch.no_grad():
        alone = strategy.network(mixing.cubes(volumes, 2)[3, 2:])
    torch.testing.assert_close(mixing.cubes(found["logits"], 2)[3].softmax(1), alone.softmax(1), atol=1e-4, rtol=0)


def test_magicnet_blends_the_teacher_with_the_cubes_by_class():
    teacher = volume_of([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], channels=True)
    of_cubes = volume_of([[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]], channels=True)
    assert blended(teacher, of_cubes, torch.zeros(3)).flatten().tolist() == [0, 1]
    assert blended(teacher, of_cubes, torch.ones(3)).flatten().tolist() == [2, 2]
    assert blended(teacher, of_cubes, torch.tensor([1.0, 0.0, 0.0])).flatten().tolist() == [2, 1]


# ------------------------------------------------------------------------------------------------------ SS-Net


def test_the_adversarial_direction_changes_the_prediction_more_than_a_random_one():
    strategy = strategy_for("ss_net").eval()
    volumes = torch.rand(2, 1, *SIDES)
    for parameter in strategy.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        clean = strategy.network(volumes).softmax(1)

    def predict(x: Tensor) -> Tensor:
        return strategy.network(x).softmax(1)

    direction = adversarial_direction(predict, volumes, clean, 1.0, torch.Generator().manual_seed(0))
    assert all(bool((parameter.grad == 1).all()) for parameter in strategy.parameters())
    random = unit(torch.randn_like(volumes))
    with torch.no_grad():
        worst, usual = (float(losses.soft_dice(predict(volumes + d), clean)) for d in (direction, random))
    assert worst > 1.5 * usual and direction.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_ss_net_bank_holds_correct_voxels_with_the_highest_scores():
    strategy = strategy_for("ss_net").eval()
    features, labels = torch.randn(2, 2, *SIDES), torch.randint(4, (2, *SIDES))
    predicted = torch.where(labels == 2, 0, labels)
    predicted[:, 1:] = 0
    strategy.fill_bank(features, labels, predicted, torch.Generator().manual_seed(0))
    assert strategy.filled.tolist() == [0, 32, 0, 32]
    strategy.eval()
    with torch.no_grad():
        right = strategy.projection(features.movedim(1, -1)[(labels == 1) & (predicted == 1)])
        selector = strategy.bank_selectors[1].eval()
        best, kept = selector(right)[:, 0].sort(descending=True).values[:32], selector(strategy.bank[1])[:, 0]
    torch.testing.assert_close(kept.sort(descending=True).values, best, atol=1e-5, rtol=1e-5)


def test_ss_net_pulls_features_toward_the_bank():
    features, bank = torch.randn(1, 8, requires_grad=True), torch.randn(4, 8)
    loss = contrast(features, bank, torch.zeros(1, 1), torch.zeros(4, 1))
    moved = features - 0.1 * gradient(loss, features)
    assert contrast(moved, bank, torch.zeros(1, 1), torch.zeros(4, 1)) < loss
    strategy = strategy_for("ss_net")
    strategy.bank.normal_()
    strategy.filled[:] = torch.tensor([0, 32, 32, 32])
    volumes = torch.rand(2, 2, *SIDES, requires_grad=True)
    pull = strategy.contrast_loss(volumes, torch.full((2, *SIDES), 2), torch.Generator().manual_seed(0))
    assert gradient(pull, volumes).abs().sum() > 0
    strategy.filled.zero_()
    nothing = strategy.contrast_loss(volumes, torch.full((2, *SIDES), 2), torch.Generator().manual_seed(0))
    assert nothing == 0 and not gradient(nothing, volumes).any()


# -------------------------------------------------------------------------------------------------- Co-BioNet


def test_a_critic_learns_to_distinguish_labels_from_predictions():
    torch.manual_seed(0)
    critic = Critic(4)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    truth = functional.one_hot(torch.randint(4, (2, 6, 6, 6)), 4).movedim(-1, 1).float()
    soft = torch.randn(2, 4, 6, 6, 6).softmax(1)
    for _ in range(30):
        optimizer.zero_grad()
        (critic_loss(critic(truth), True) + critic_loss(critic(soft), False)).backward()
        optimizer.step()
    assert (critic(truth) > 0).float().mean() > 0.9 and (critic(soft) < 0).float().mean() > 0.9


def test_co_bionet_trains_critics_and_networks_separately():
    strategy = strategy_for("co_bionet")
    batch, step_state = batch_of(), strategy.step_state(50)
    strategy.forward("networks", batch, step_state).total.backward()
    assert all(parameter.grad is None for parameter in strategy.critics.parameters())
    before = [p.grad.clone() for p in strategy.network.parameters()]
    strategy.forward("critics", batch, step_state).total.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, strategy.network.parameters(), strict=True))
    assert all(parameter.grad.abs().sum() > 0 for parameter in strategy.critics[0][0].parameters())
    factors = [group.factor for group in strategy.parameter_groups()]
    assert factors == [1.0, 0.1] and sum(len(g.parameters) for g in strategy.parameter_groups()) == len(
        list(strategy.trainable_parameters())
    )


def test_co_bionet_learns_more_where_the_critic_is_convinced():
    logits, taught = torch.randn(1, 4, 1, 1, 2, requires_grad=True), torch.randn(1, 4, 1, 1, 2).softmax(1)
    nobody, first = torch.zeros(1, 1, 1, 2, dtype=torch.bool), torch.tensor([[[[True, False]]]])
    plain = gradient(selected_cross_entropy(logits, taught, nobody), logits)
    believed = gradient(selected_cross_entropy(logits, taught, first), logits)
    torch.testing.assert_close(believed[..., 0], 2 * plain[..., 0])
    torch.testing.assert_close(believed[..., 1], plain[..., 1])


# ------------------------------------------------------------------------------------------------------- SKCDF


def test_skcdf_balances_classes_and_anneals():
    strategy = strategy_for("skcdf")
    torch.testing.assert_close(strategy.ratio, torch.tensor([0.001, 0.0125, 0.1, 1.0]))
    labels = torch.arange(4).repeat_interleave(20_000)
    kept = losses.sampled(labels, strategy.ratio, torch.Generator().manual_seed(0))
    shares = [float(kept[labels == label].float().mean()) for label in range(4)]
    assert shares == pytest.approx(strategy.ratio.tolist(), abs=0.01)
    seen: list[Tensor] = []
    strategy._loss = lambda logits, labels, mask: (seen.append(mask), logits.sum() * 0)[1]
    batch = batch_of()
    for step in (0, 99):
        strategy.forward("labelled", batch, strategy.step_state(step))
        strategy.forward("unlabelled", batch, strategy.step_state(step))
    assert seen[3].all() and not seen[7].all()


def test_skcdf_weights_follow_their_leaders():
    strategy = strategy_for("skcdf")
    decoder = strategy.network.experts[0]
    kept, leader = decoder.blocks[0][0].weight.clone(), strategy.labelled.blocks[0][0].weight.clone()
    head, balanced = strategy.labelled.head.weight.clone(), strategy.balanced["labelled"].weight.clone()
    strategy.on_step_end(strategy.step_state(0))
    torch.testing.assert_close(decoder.blocks[0][0].weight, 0.99 * kept + 0.01 * leader)
    torch.testing.assert_close(strategy.labelled.head.weight, 0.99 * head + 0.01 * balanced)


def test_skcdf_labeled_patches_attend_to_unlabeled_ones_without_a_gradient():
    strategy = strategy_for("skcdf").eval()
    batch, step_state = batch_of(), strategy.step_state(50)
    unlabeled = batch.unlabeled.clone().requires_grad_(True)
    one = strategy.forward("labelled", batch._replace(unlabeled=unlabeled), step_state).total
    one.backward()
    assert unlabeled.grad is None
    other = strategy.forward("labelled", batch._replace(unlabeled=unlabeled.detach().flip(2) * 2), step_state).total
    assert other != one.detach()
    strategy.zero_grad()
    strategy.forward("unlabelled", batch, step_state).total.backward()
    assert strategy.network.encoder.blocks[0][0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in strategy.labelled.parameters())


def test_skcdf_result_does_not_depend_on_the_batch():
    network = strategy_for("skcdf").network.eval()
    volumes = torch.rand(3, 1, *SIDES)
    with torch.no_grad():
        torch.testing.assert_close(network(volumes)[1:2], network(volumes[1:2]), atol=1e-3, rtol=0)


# --------------------------------------------------------------------------------------------------------- A&D


def test_diffusion_goes_from_the_label_map_to_noise_and_back():
    labels = torch.randint(4, (1, 8, 8, 8))
    clean = encoded(labels, 4)
    noise = torch.randn_like(clean)
    torch.testing.assert_close(noised(clean, noise, torch.tensor([0])), clean, atol=0.06, rtol=0)
    late = noised(clean, noise, torch.tensor([999]))
    assert float(late.std()) == pytest.approx(1, abs=0.05) and float((late * clean).mean().abs()) < 0.1
    found = denoised(lambda x, t: clean, noise, 10)
    assert torch.equal(found.argmax(1), labels)
    asked: list[int] = []
    denoised(lambda x, t: (asked.append(int(t[0])), x)[1], noise, 5)
    assert asked[0] == 999 and asked[-1] == 0 and len(asked) == 5


def test_a_and_d_denoising_depends_on_image_and_time():
    strategy = strategy_for("a_and_d").eval()
    volumes, diffused = torch.rand(1, 1, *SIDES), torch.randn(1, 4, *SIDES)
    with torch.no_grad():
        one = strategy.denoise(volumes, diffused, torch.tensor([10]))
        assert not torch.allclose(one, strategy.denoise(volumes, diffused, torch.tensor([900])))
        assert not torch.allclose(one, strategy.denoise(volumes, -diffused, torch.tensor([10])))
        assert not torch.allclose(one, strategy.denoise(volumes.flip(2), diffused, torch.tensor([10])))


def test_a_and_d_result_decoder_follows_and_learns_from_unlabeled_patches():
    strategy = strategy_for("a_and_d")
    batch, step_state = batch_of(), strategy.step_state(50)
    answer = strategy.network.experts[0]
    before = answer.head.weight.clone()
    strategy.on_step_end(step_state)
    mean = (strategy.denoising.head.weight + strategy.labelled.head.weight) / 2
    torch.testing.assert_close(answer.head.weight, 0.99 * before + 0.01 * mean)
    # Dropout may remove both channels.
    torch.manual_seed(1)
    strategy.forward("unlabelled", batch, step_state).total.backward()
    assert answer.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for part in (strategy.denoising, strategy.labelled) for p in part.parameters())
    strategy.zero_grad()
    strategy.forward("denoising", batch, step_state).total.backward()
    strategy.forward("labelled", batch, step_state).total.backward()
    assert answer.head.weight.grad is None and strategy.denoising.head.weight.grad.abs().sum() > 0
    assert not torch.equal(strategy.difficulty.weights(), torch.full((4,), 4.0))


def test_facts_count_labels_and_name_a_partially_labeled_case():
    whole, part = case_of_balls(1), case_of_balls(2)
    facts = facts_of([whole, part], [case_of_balls(3, labeled=False)], NAMES)
    counts = whole.voxel_counts(3) + part.voxel_counts(3)
    assert facts.voxels == tuple(counts) and (facts.labeled, facts.unlabeled, facts.partial) == (2, 1, None)
    labels = np.where(part.labels == 3, 0, part.labels).astype(np.uint8)
    assert facts_of([whole, replace(part, labels=labels, unannotated=(3,))], [], NAMES).partial == part.name
