"""Methods that balance classes: GA, DHC, CReST and SimiS (their rows of the table), CLD, Adsh.

The tests fail if a mechanism is removed.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dcaseg.training.strategies import class_statistics as counted
from dcaseg.training.strategies import losses
from dcaseg.training.strategies.base import Batch
from dcaseg.training.strategies.ga import gradient_aware_cross_entropy, gradient_aware_dice_loss
from strategy_samples import FACTS, SIDES, batch_of, gradient, strategy_for, volume_of


def test_ga_dice_of_an_absent_class_has_a_proportional_gradient():
    logits = volume_of([[2.0, 0.0], [2.0, 1.0], [2.0, 2.0]], channels=True).requires_grad_(True)
    labels = torch.zeros(1, 1, 1, 3, dtype=torch.long)
    found = gradient(gradient_aware_dice_loss(logits, labels), logits)[0, 1].flatten()
    # p/(C N) times the softmax derivative p (1 - p), and the same again from the present class.
    assert (found > 0).all() and found[0] < found[1] < found[2]
    probability = logits.detach().softmax(1)
    absent = (probability.detach() * logits.softmax(1))[:, 1].sum() / 3 / 2
    present = 1 - (2 * logits.softmax(1)[:, 0].sum()) / ((logits.softmax(1)[:, 0] ** 2).sum() + 3)
    torch.testing.assert_close(gradient_aware_dice_loss(logits, labels), absent + present / 2)


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
    loss = strategy_for("ga").compute_supervised_loss(
        0, logits, Batch(logits, labels, [()], None), strategy_for("ga").get_step_state(0)
    )
    loss = loss - gradient_aware_dice_loss(logits, labels)
    seen = gradient(loss, logits).abs().sum(dim=1)[0].flatten() > 1e-9
    hardest = losses.voxel_cross_entropy(logits, labels).flatten().topk(10).indices
    assert seen.sum() == 10 and seen[hardest].all()


def test_dhc_gives_more_weight_to_classes_that_get_worse():
    difficulty = counted.ClassDifficulty(3)
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
    batch, step_state = batch_of(), strategy.get_step_state(50)
    torch.testing.assert_close(
        strategy.distribution, counted.compute_distribution_weights(torch.tensor(FACTS.voxels).float())
    )
    empty = torch.zeros(4, 4, *SIDES)
    empty[:, 0] = 9
    before = strategy.distribution.clone()
    strategy.observe([empty, empty], batch, step_state)
    background_alone = counted.compute_distribution_weights(torch.tensor([2.0 * 8192, 0, 0, 0]))
    torch.testing.assert_close(strategy.distribution, 0.99 * before + 0.01 * background_alone)
    logits = torch.randn(4, 4, *SIDES)
    one, other = (strategy.compute_supervised_loss(which, logits[:2], batch, step_state) for which in (0, 1))
    assert one != other
    background = torch.zeros(4, *SIDES, dtype=torch.long)
    assert torch.isfinite(strategy.compute_cross_supervision_loss(1, logits, background, step_state))


@pytest.mark.parametrize("average", ["counts", "weights"])
def test_crest_row_weights_by_reversed_frequency_with_a_running_mean(average):
    strategy = strategy_for("crest", strategy_options={"average": average})
    voxels = torch.tensor(FACTS.voxels).float()
    start = counted.compute_reversed_weights(voxels)
    torch.testing.assert_close(strategy.weights, start.expand(2, -1))
    answers = [torch.randn(4, 4, *SIDES) for _ in range(2)]
    strategy.observe(answers, batch_of(), strategy.get_step_state(0))
    for kept, answer in zip(strategy.weights, answers, strict=True):
        of_unlabeled = counted.count_voxels(answer[2:].argmax(1), 4)
        mean = 0.99 * voxels / voxels.sum() + 0.01 * of_unlabeled / of_unlabeled.sum()
        of_steps = 0.99 * start + 0.01 * counted.compute_reversed_weights(of_unlabeled)
        torch.testing.assert_close(kept, counted.compute_reversed_weights(mean) if average == "counts" else of_steps)
    batch = batch_of()
    rare, often = (
        strategy.compute_cross_supervision_loss(0, answers[0], torch.full((4, *SIDES), k), strategy.get_step_state(0))
        for k in (3, 0)
    )
    torch.testing.assert_close(rare, functional.cross_entropy(answers[0], torch.full((4, *SIDES), 3)))
    assert (
        torch.isfinite(often)
        and strategy.compute_supervised_loss(0, answers[0][:2], batch, strategy.get_step_state(0)) != 0
    )


@pytest.mark.slow
def test_crest_row_does_not_take_an_organ_that_is_absent_from_some_patches_for_the_rarest():
    strategy = strategy_for("crest")
    for step in range(300):
        # In each step, one of the three organs is absent.
        answers = torch.zeros(4, 4, *SIDES)
        answers[:, 0] = 1
        for label in (1, 2, 3):
            answers[:, label, 0, 0, : 0 if label == 1 + step % 3 else 8 - 2 * label] = 2
        strategy.observe([answers, answers], batch_of(), strategy.get_step_state(0))
    background, *organs = strategy.weights[0].tolist()
    assert organs[2] == 1 and organs == sorted(organs) and organs[0] > background > 0.01


def test_simis_row_gives_organs_equal_weight_and_the_background_none():
    strategy = strategy_for("simis")
    assert strategy.weights.max() == pytest.approx(4, abs=0.05) and strategy.weights[0, 0] == pytest.approx(0.99 * 4)
    strategy.weights.fill_(4)
    answers = torch.zeros(4, 4, *SIDES)
    answers[:, 0] = 1
    for label in (1, 2, 3):
        answers[:, label, 0, 0, : 4 * label] = 2
    backgrounds = []
    for step in range(3):
        strategy.observe([answers, answers], batch_of(), strategy.get_step_state(step))
        backgrounds.append(float(strategy.weights[0, 0]))
    organs = strategy.weights[0, 1:]
    assert backgrounds == pytest.approx([4 * 0.99**n for n in (1, 2, 3)]) and organs.min() > 0.95 * organs.max()


def test_cld_keeps_more_voxels_of_classes_with_low_confidence():
    strategy = strategy_for("cld")
    torch.testing.assert_close(strategy.weights, counted.compute_cube_root_weights(torch.tensor(FACTS.voxels).float()))
    bank = strategy.banks[0]
    bank.confidence.copy_(torch.tensor([1.0, 0.9, 0.5, 0.1]))
    torch.testing.assert_close(bank.compute_sampling_rates(), torch.tensor([0.0, 1 / 3, (5 / 9) ** 0.5, 1.0]))
    logits = torch.zeros(4, 4, *SIDES)
    own = torch.randint(4, (4, *SIDES))
    logits = logits.scatter(1, own[:, None], 3.0).requires_grad_(True)
    labels = torch.randint(4, (4, *SIDES))
    loss = strategy.compute_cross_supervision_loss(0, logits, labels, strategy.get_step_state(0))
    seen = gradient(loss, logits).abs().sum(dim=1) > 0
    for label, rate in enumerate(bank.compute_sampling_rates().tolist()):
        assert float(seen[own == label].float().mean()) == pytest.approx(rate, abs=0.03)


def test_cld_bank_does_not_change_absent_classes():
    bank = counted.ClassConfidence(3, period=1)
    probabilities = torch.full((1, 3, 1, 1, 4), 0.2)
    bank.observe(probabilities, torch.tensor([[[[0, 0, 1, 1]]]]))
    assert bank.confidence.tolist() == pytest.approx([0.2, 0.2, -1]) and bank.compute_sampling_rates()[2] == 1
    bank.observe(torch.full((1, 3, 1, 1, 4), 0.7), torch.tensor([[[[0, 0, 0, 0]]]]))
    assert bank.confidence.tolist() == pytest.approx([(0.2 + 0.7) / 2, 0.2, -1])


def test_cld_bank_follows_the_network_in_a_short_run():
    bank = counted.ClassConfidence(2, period=8)
    labels = torch.tensor([[[[0, 1]]]])
    for step in range(2000):
        # As in training: undecided in the first steps, then sure of class 0 and unsure of class 1.
        first, second = (0.5, 0.5) if step < 8 else (0.99, 0.1)
        probabilities = torch.tensor([[first, 1 - second], [1 - first, second]])[None, :, None, None]
        bank.observe(probabilities, labels)
    assert bank.confidence.tolist() == pytest.approx([0.99, 0.1], abs=0.01)
    bank.batches.fill_(100_000)
    before = bank.confidence.clone()
    for _ in range(8):
        bank.observe(torch.full((1, 2, 1, 1, 2), 0.5), labels)
    torch.testing.assert_close(bank.confidence, 0.999 * before + 0.001 * 0.5)


def test_adsh_keeps_the_same_share_of_every_class():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(torch.tensor([50_000, 3000, 2000, 1000]))
    confidence = torch.rand(len(labels), generator=generator)
    confidence[labels == 0] = torch.where(confidence[labels == 0] < 0.6, 0.5, 0.95)
    confidence[labels == 3] *= 0.5
    quantiles = counted.ConfidenceHistogram(4)
    quantiles.observe(confidence, labels)
    share = quantiles.compute_fraction_above(0, 0.9)
    thresholds = quantiles.compute_thresholds(share)
    for label in range(4):
        kept = (confidence[labels == label] >= thresholds[label]).float().mean()
        assert float(kept) == pytest.approx(0.4, abs=0.015)
    assert thresholds[3] < thresholds[1] < thresholds[0]


def test_adsh_masks_the_loss_by_the_other_networks_thresholds():
    strategy = strategy_for("adsh")
    strategy.thresholds[1] = torch.tensor([0.0, 1.1, 0.0, 1.1])
    answers = [torch.randn(4, 4, *SIDES) for _ in range(2)]
    strategy.observe(answers, batch_of(), strategy.get_step_state(0))
    logits, labels = answers[0].clone().requires_grad_(True), answers[1].argmax(1)
    loss = strategy.compute_cross_supervision_loss(0, logits, labels, strategy.get_step_state(0))
    seen = gradient(loss, logits).abs().sum(dim=1) > 0
    assert torch.equal(seen, (labels == 0) | (labels == 2))


def test_adsh_updates_its_thresholds_every_quarter_of_an_epoch():
    strategy = strategy_for("adsh", FACTS._replace(unlabeled=16))
    assert strategy.epoch_steps == 8
    strategy.observe([torch.randn(4, 4, *SIDES) for _ in range(2)], batch_of(), strategy.get_step_state(0))
    strategy.on_step_end(strategy.get_step_state(0))
    assert not strategy.thresholds.any()
    strategy.on_step_end(strategy.get_step_state(1))
    assert strategy.thresholds.all() and not strategy.quantiles[0].histogram.any()


@pytest.mark.parametrize("name", ["crest", "simis", "dhc", "cld"])
def test_class_weights_are_in_both_losses(name):
    strategy = strategy_for(name)
    batch, step_state, weights = batch_of(), strategy.get_step_state(50), torch.tensor([0.1, 1.0, 2.0, 4.0])
    strategy._current = strategy._weights = weights.expand(2, -1)
    if name == "cld":
        strategy.weights.copy_(weights)
    logits, labels = torch.randn(4, 4, *SIDES), torch.randint(4, (4, *SIDES))
    supervised = functional.cross_entropy(logits[:2], batch.labels, weight=weights)
    supervised = supervised + losses.foreground_dice_loss(logits[:2], batch.labels, weights)
    torch.testing.assert_close(strategy.compute_supervised_loss(0, logits[:2], batch, step_state), supervised)
    crossed = functional.cross_entropy(logits, labels, weight=weights, reduction="none")
    # CLD's mean is over all voxels, whatever they weigh.
    crossed = crossed.mean() if name == "cld" else crossed.sum() / weights[labels].sum()
    torch.testing.assert_close(strategy.compute_cross_supervision_loss(0, logits, labels, step_state), crossed)


@pytest.mark.parametrize(("name", "period"), [("cld", 8), ("cld published", 2)])
def test_cld_fills_its_banks_from_labeled_patches(name, period):
    strategy = strategy_for(name)
    outputs = [torch.randn(4, 4, *SIDES), torch.randn(4, 4, *SIDES)]
    for step in range(period):
        assert (strategy.banks[0].confidence < 0).all()
        strategy.observe(outputs, batch_of(), strategy.get_step_state(step))
    for bank, logits in zip(strategy.banks, outputs, strict=True):
        true = logits[:2].softmax(1).gather(1, batch_of().labels[:, None])[:, 0]
        expected = [float(true[batch_of().labels == label].mean()) for label in range(4)]
        assert bank.confidence.tolist() == pytest.approx(expected, abs=1e-4)


def test_cld_can_choose_voxels_by_the_pseudo_label():
    strategy = strategy_for("cld", strategy_options={"mask_by": "pseudo"})
    strategy.banks[0].confidence.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    logits, labels = torch.randn(4, 4, *SIDES, requires_grad=True), torch.randint(4, (4, *SIDES))
    loss = strategy.compute_cross_supervision_loss(0, logits, labels, strategy.get_step_state(0))
    seen = gradient(loss, logits).abs().sum(dim=1) > 0
    assert torch.equal(seen, labels % 2 == 1)


def test_ga_crossed_loss_balances_pseudo_labels():
    strategy = strategy_for("ga")
    logits, labels = torch.randn(2, 4, *SIDES), (torch.rand(2, *SIDES) < 0.1).long()
    loss = losses.voxel_cross_entropy(logits, labels)
    expected = sum((labels == label).float().mean().sqrt() * loss[labels == label].mean() for label in (0, 1))
    found = strategy.compute_cross_supervision_loss(0, logits, labels, strategy.get_step_state(0))
    torch.testing.assert_close(found, expected)


def test_difficulty_depends_on_learning_and_on_the_distance():
    difficulty = counted.ClassDifficulty(2)
    difficulty.distance.copy_(torch.tensor([0.2, 0.4]))
    torch.testing.assert_close(difficulty.compute_weights(), torch.tensor([1.0, 2.0]))
    difficulty.distance.fill_(1)
    difficulty.unlearn.copy_(torch.tensor([1.0, 0.0]))
    difficulty.learn.copy_(torch.tensor([0.0, 1.0]))
    first, second = difficulty.compute_weights().tolist()
    assert first == pytest.approx(2) and second < 0.01


def test_published_adsh_updates_its_thresholds_after_an_epoch():
    strategy = strategy_for("adsh published")
    assert strategy.epoch_steps == 4
    strategy.compute_confidence_mask(torch.tensor([0.99] * 50 + [0.6] * 50), torch.tensor([0] * 50 + [1] * 50))
    for step in range(4):
        assert strategy.thresholds.tolist() == pytest.approx([0.95] * 4)
        strategy.on_step_end(strategy.get_step_state(step))
    assert strategy.thresholds[1] == pytest.approx(0.6, abs=0.002) and not strategy.quantiles.histogram.any()
