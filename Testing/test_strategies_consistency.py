"""Methods that compare predictions: URPC, Basak et al., SS-Net, Co-BioNet.

The tests fail if a mechanism is removed.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dcaseg.training.strategies import losses
from dcaseg.training.strategies.basak import fuse_confidence
from dcaseg.training.strategies.co_bionet import Critic, critic_loss, selected_cross_entropy
from dcaseg.training.strategies.perturbation import compute_adversarial_direction, normalize_l2
from dcaseg.training.strategies.ss_net import compute_weighted_cosine_distance
from dcaseg.training.strategies.urpc import rectified_consistency
from strategy_samples import FACTS, SIDES, batch_of, gradient, inputs_of, randomize, strategy_for


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
    scales = strategy.predict_pyramid(batch.volumes)
    torch.testing.assert_close(scales[-1].softmax(1), strategy.network(batch.volumes).softmax(1))
    assert len(scales) == 4 and all(one.shape == scales[-1].shape for one in scales)
    for part in ("labelled", "unlabelled"):
        strategy.zero_grad()
        strategy.forward(part, batch, strategy.get_step_state(50)).total.backward()
        assert all(head.weight.grad.abs().sum() > 0 for head in strategy.heads)


@pytest.mark.parametrize("name", ["basak", "basak published"])
def test_basak_samples_most_voxels_of_the_worst_class(name):
    strategy = strategy_for(name)
    labels = torch.randint(4, (2, *SIDES))
    logits = torch.zeros(2, 4, *SIDES).scatter(1, torch.where(labels == 3, 0, labels)[:, None], 4.0)
    for step in range(8):
        strategy._observe(logits.softmax(1), labels)
        before = strategy.compute_sampling_rates().clone()
        strategy.on_step_end(strategy.get_step_state(step))
        if (step + 1) % strategy.epoch_steps:
            assert torch.equal(before, strategy.compute_sampling_rates())
    rates = strategy.compute_sampling_rates()
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
    found = fuse_confidence(torch.cat([sure, unsure], dim=1), row=False)
    assert found[0] > 0.9 > 0.5 > found[1]


def test_the_adversarial_direction_changes_the_prediction_more_than_a_random_one():
    strategy = strategy_for("ss_net").eval()
    volumes = torch.rand(2, 1, *SIDES)
    for parameter in strategy.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        clean = strategy.network(volumes).softmax(1)

    def predict(x: Tensor) -> Tensor:
        return strategy.network(x).softmax(1)

    direction = compute_adversarial_direction(predict, volumes, clean, 1.0, torch.Generator().manual_seed(0))
    assert all(bool((parameter.grad == 1).all()) for parameter in strategy.parameters())
    directions = [direction, *(normalize_l2(torch.randn_like(volumes)) for _ in range(6))]
    with torch.no_grad():
        worst, *usual = (float(losses.soft_dice_loss(predict(volumes + d), clean)) for d in directions)
    assert worst > 1.2 * max(usual) and direction.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1])


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
    loss = compute_weighted_cosine_distance(features, bank, torch.zeros(1, 1), torch.zeros(4, 1))
    moved = features - 0.1 * gradient(loss, features)
    assert compute_weighted_cosine_distance(moved, bank, torch.zeros(1, 1), torch.zeros(4, 1)) < loss
    strategy = strategy_for("ss_net")
    strategy.bank.normal_()
    strategy.filled[:] = torch.tensor([0, 32, 32, 32])
    volumes = torch.rand(2, 2, *SIDES, requires_grad=True)
    pull = strategy.contrast_loss(volumes, torch.full((2, *SIDES), 2), torch.Generator().manual_seed(0))
    assert gradient(pull, volumes).abs().sum() > 0
    strategy.filled.zero_()
    nothing = strategy.contrast_loss(volumes, torch.full((2, *SIDES), 2), torch.Generator().manual_seed(0))
    assert nothing == 0 and not gradient(nothing, volumes).any()


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
    batch, step_state = batch_of(), strategy.get_step_state(50)
    strategy.forward("networks", batch, step_state).total.backward()
    assert all(parameter.grad is None for parameter in strategy.critics.parameters())
    before = [p.grad.clone() for p in strategy.network.parameters()]
    strategy.forward("critics", batch, step_state).total.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, strategy.network.parameters(), strict=True))
    assert all(parameter.grad.abs().sum() > 0 for parameter in strategy.critics[0][0].parameters())
    factors = [group.factor for group in strategy.get_parameter_groups()]
    assert factors == [1.0, 0.1] and sum(len(g.parameters) for g in strategy.get_parameter_groups()) == len(
        list(strategy.trainable_parameters())
    )


def test_co_bionet_learns_more_where_the_critic_is_convinced():
    logits, taught = torch.randn(1, 4, 1, 1, 2, requires_grad=True), torch.randn(1, 4, 1, 1, 2).softmax(1)
    nobody, first = torch.zeros(1, 1, 1, 2, dtype=torch.bool), torch.tensor([[[[True, False]]]])
    plain = gradient(selected_cross_entropy(logits, taught, nobody), logits)
    believed = gradient(selected_cross_entropy(logits, taught, first), logits)
    torch.testing.assert_close(believed[..., 0], 2 * plain[..., 0])
    torch.testing.assert_close(believed[..., 1], plain[..., 1])


def test_urpc_consistency_is_a_weighted_distance_and_the_uncertainty():
    scales = [torch.randn(1, 3, 2, 2, 2).log_softmax(1) for _ in range(4)]
    mean = torch.stack([scale.exp() for scale in scales]).mean(0)
    expected = torch.zeros(())
    for scale in scales:
        uncertainty = (mean * (mean.log() - scale)).sum(1, keepdim=True)
        weighted = ((mean - scale.exp()) ** 2 * (-uncertainty).exp()).mean() / (-uncertainty).exp().mean()
        expected = expected + (weighted + uncertainty.mean()) / 4
    torch.testing.assert_close(rectified_consistency(scales), expected)


def test_ua_mt_learns_only_where_the_teacher_is_certain():
    strategy = strategy_for("ua_mt").eval()
    batch, step_state = batch_of(), strategy.get_step_state(50)
    target, entropy = torch.randn(2, 4, *SIDES).softmax(1), torch.full((2, *SIDES), 9.0)
    entropy[..., 0] = 0
    strategy._predict_with_teacher = lambda volumes, step_state: (target, entropy)
    loss = strategy.forward("unlabelled", batch, step_state)
    distance = ((strategy.network(batch.unlabeled).softmax(1) - target) ** 2).mean(1)[..., 0].mean()
    torch.testing.assert_close(loss.total, strategy.get_unsupervised_weight(step_state) * distance)
    assert float(loss.values["certain"]) == pytest.approx(1 / SIDES[2])
    first, last = (strategy._compute_threshold(strategy.get_step_state(step), 4) / math.log(4) for step in (0, 99))
    assert first == pytest.approx(0.75, abs=0.01) and last == pytest.approx(1, abs=0.01)


def test_the_teacher_of_ua_mt_sees_other_noise_in_each_pass():
    strategy = strategy_for("ua_mt").eval()
    volumes, seen = torch.rand(1, 1, *SIDES), inputs_of(strategy.teacher)
    strategy._predict_with_teacher(volumes, strategy.get_step_state(0))
    assert len(seen) == 8 and not torch.equal(seen[0], seen[1])
    assert all(0 < (noisy - volumes).abs().max() <= 0.2001 for noisy in seen)


@pytest.mark.parametrize("name", ["basak", "basak published"])
def test_basak_samples_and_weights_voxels_with_the_teachers_labels(name):
    strategy = strategy_for(name).eval()
    randomize(strategy.teacher)
    batch, step_state = batch_of(), strategy.get_step_state(50)
    # Rates of 0, 1, 0 and 1.
    strategy.confidence.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    loss = strategy.forward("unlabelled", batch, step_state).values["unsupervised"]
    with torch.no_grad():
        logits, labels = strategy.network(batch.unlabeled), strategy.teacher(batch.unlabeled).argmax(1)
    confidence, own = logits.softmax(1).max(1)
    assert not torch.equal(own, labels)
    sampled = (labels if "published" in name else own) % 2 == 1
    torch.testing.assert_close(loss, (losses.voxel_cross_entropy(logits, labels) * confidence**1.5 * sampled).mean())


@pytest.mark.parametrize(("name", "decay"), [("basak", 0.0), ("basak published", 0.5)])
def test_basak_averages_its_confidence_and_its_teacher(name, decay):
    strategy = strategy_for(name, FACTS._replace(unlabeled=2))
    before = [parameter.clone() for parameter in strategy.teacher.parameters()]
    randomize(strategy.network)
    strategy.confidence.fill_(0.5)
    strategy._observe(torch.randn(2, 4, *SIDES).softmax(1), torch.randint(4, (2, *SIDES)))
    fused = fuse_confidence(strategy.sums / strategy.voxels, row="published" not in name)
    strategy.on_step_end(strategy.get_step_state(0))
    torch.testing.assert_close(strategy.confidence, 0.99 * 0.5 + 0.01 * fused)
    for old, new, student in zip(before, strategy.teacher.parameters(), strategy.network.parameters(), strict=True):
        torch.testing.assert_close(new, decay * old + (1 - decay) * student)


def test_ss_net_learns_from_the_perturbed_input_and_the_contrast():
    strategy = strategy_for("ss_net", strategy_options={"radius": 0.5})
    batch, step_state = batch_of(), strategy.get_step_state(50)
    loss = strategy.forward("labelled", batch, step_state)
    contrast_loss, weight = loss.values["contrast"], strategy.get_unsupervised_weight(step_state)
    assert contrast_loss > 0 and weight > 0
    torch.testing.assert_close(loss.total.detach(), loss.values["supervised"] + 0.1 * weight * contrast_loss)
    strategy.eval()
    with torch.no_grad():
        clean = strategy.network(torch.cat([batch.volumes, batch.unlabeled])).softmax(1)
    smooth = strategy.forward("smooth", batch, step_state)
    assert smooth.values["unsupervised"] > losses.soft_dice_loss(clean, clean) + 1e-3
    smooth.total.backward()
    assert strategy.network.encoder.blocks[0][0].weight.grad.abs().sum() > 0


def test_ss_net_contrast_is_weighted_by_the_selectors():
    features, bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    even = compute_weighted_cosine_distance(features, bank, torch.zeros(2, 1), torch.zeros(1, 1))
    first = compute_weighted_cosine_distance(features, bank, torch.tensor([[9.0], [-9.0]]), torch.zeros(1, 1))
    assert float(even) == pytest.approx(0.5) and float(first) == pytest.approx(0, abs=1e-3)
    other = compute_weighted_cosine_distance(bank, features, torch.zeros(1, 1), torch.tensor([[9.0], [-9.0]]))
    assert float(other) == pytest.approx(0, abs=1e-3)


def test_co_bionet_asks_the_others_critic_and_convinces_its_own():
    strategy = strategy_for("co_bionet").eval()
    with torch.no_grad():
        for critic, score in zip(strategy.critics, (9.0, -9.0), strict=True):
            critic[-1].weight.zero_()
            critic[-1].bias.fill_(score)
    batch, step_state = batch_of(), strategy.get_step_state(50)
    loss = strategy.forward("networks", batch, step_state)
    logits = [network(batch.unlabeled) for network in (strategy.network, strategy.second)]
    # The second critic, which judges what the first network learns from, believes nothing.
    crossed = [
        selected_cross_entropy(logits[which], logits[1 - which].softmax(1), torch.full((2, *SIDES), bool(which)))
        for which in (0, 1)
    ]
    torch.testing.assert_close(loss.values["unsupervised"], sum(crossed), atol=1e-4, rtol=1e-4)
    assert float(loss.values["adversarial"]) == pytest.approx(9, abs=0.01)
    unsupervised = loss.values["unsupervised"] + 0.01 * loss.values["adversarial"]
    expected = 2 * loss.values["supervised"] + strategy.get_unsupervised_weight(step_state) * unsupervised
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.parametrize(("name", "narrow"), [("ua_mt", 0.1), ("urpc", 0.0), ("ss_net", 0.0), ("a_and_d", 0.0)])
def test_dropout_suits_the_width_of_the_network(name, narrow):
    for n_filters, expected in ((8, narrow), (16, 0.5)):
        network = strategy_for(name, n_filters=n_filters).network
        assert network.encoder.dropout.p == network.experts[0].dropout.p == expected


def test_the_adversarial_change_of_ss_net_is_without_dropout():
    strategy = strategy_for("ss_net", n_filters=16, strategy_options={"radius": 1e-6})
    strategy.train()
    # The same prediction twice; with one mask for each, the distance would be about 0.3.
    assert strategy.forward("smooth", batch_of(), strategy.get_step_state(50)).values["unsupervised"] < 0.01
    assert strategy.network.experts[0].dropout.training
