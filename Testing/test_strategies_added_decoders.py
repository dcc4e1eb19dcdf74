"""Methods that add attention or a diffusion decoder to the network: SKCDF, A&D.

The tests fail if a mechanism is removed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dcaseg.method.channel_attention import ChannelAttention
from dcaseg.training.strategies import losses
from dcaseg.training.strategies.a_and_d import add_noise, encode_labels, sample_ddim
from strategy_samples import SIDES, batch_of, inputs_of, strategy_for


def test_skcdf_balances_classes_and_anneals():
    strategy = strategy_for("skcdf")
    torch.testing.assert_close(strategy.ratio, torch.tensor([0.001, 0.0125, 0.1, 1.0]))
    labels = torch.arange(4).repeat_interleave(20_000)
    kept = losses.sample_mask(labels, strategy.ratio, torch.Generator().manual_seed(0))
    shares = [float(kept[labels == label].float().mean()) for label in range(4)]
    assert shares == pytest.approx(strategy.ratio.tolist(), abs=0.01)
    seen: list[Tensor] = []
    strategy._compute_loss = lambda logits, labels, mask: (seen.append(mask), logits.sum() * 0)[1]
    batch = batch_of()
    for step in (0, 99):
        strategy.forward("labelled", batch, strategy.get_step_state(step))
        strategy.forward("unlabelled", batch, strategy.get_step_state(step))
    # Each step has a mask for the balanced head on labels, none for head u, and a mask for its balanced head.
    assert seen[2].all() and not seen[5].all()


def test_skcdf_decoder_u_follows_decoder_l():
    strategy = strategy_for("skcdf")
    decoder = strategy.network.experts[0]
    kept, leader = decoder.blocks[0][0].weight.clone(), strategy.labelled.blocks[0][0].weight.clone()
    strategy.on_step_end(strategy.get_step_state(0))
    torch.testing.assert_close(decoder.blocks[0][0].weight, 0.99 * kept + 0.01 * leader)


def test_skcdf_labeled_patches_attend_to_unlabeled_ones_without_a_gradient():
    strategy = strategy_for("skcdf").eval()
    batch, step_state = batch_of(), strategy.get_step_state(50)
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


def test_diffusion_goes_from_the_label_map_to_noise_and_back():
    labels = torch.randint(4, (1, 8, 8, 8))
    clean = encode_labels(labels, 4)
    noise = torch.randn_like(clean)
    torch.testing.assert_close(add_noise(clean, noise, torch.tensor([0])), clean, atol=0.06, rtol=0)
    late = add_noise(clean, noise, torch.tensor([999]))
    assert float(late.std()) == pytest.approx(1, abs=0.05) and float((late * clean).mean().abs()) < 0.1
    found = sample_ddim(lambda x, t: clean, noise, 10)
    assert torch.equal(found.argmax(1), labels)
    asked: list[int] = []
    sample_ddim(lambda x, t: (asked.append(int(t[0])), x)[1], noise, 5)
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
    batch, step_state = batch_of(), strategy.get_step_state(50)
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
    assert not torch.equal(strategy.difficulty.compute_weights(), torch.full((4,), 4.0))


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.99), ("adamw", 0.999)])
def test_skcdf_heads_and_decoders_follow_in_order(optimizer, decay):
    strategy = strategy_for("skcdf", optimizer=optimizer)
    decoder, balanced = strategy.network.experts[0], strategy.balanced
    weights = (strategy.labelled.head, decoder.head, balanced["labelled"], balanced["unlabelled"])
    labelled, unlabelled, balanced_l, balanced_u = (head.weight.clone() for head in weights)
    strategy.on_step_end(strategy.get_step_state(0))

    def follow(one: Tensor, other: Tensor, decay: float = decay) -> Tensor:
        return decay * one + (1 - decay) * other

    labelled = follow(labelled, balanced_l)
    balanced_u = follow(balanced_u, balanced_l)
    torch.testing.assert_close(balanced["unlabelled"].weight, balanced_u)
    torch.testing.assert_close(decoder.head.weight, follow(follow(unlabelled, labelled, 0.99), balanced_u))


def test_skcdf_balanced_heads_learn_from_labels_of_their_own():
    strategy = strategy_for("skcdf").eval()
    batch, step_state = batch_of(), strategy.get_step_state(99)
    loss = strategy.forward("labelled", batch, step_state)
    torch.testing.assert_close(loss.total.detach(), loss.values["supervised"] + loss.values["balanced"])
    masks: list[Tensor | None] = []
    plain_loss = strategy._compute_loss
    strategy._compute_loss = lambda logits, labels, mask: (masks.append(mask), plain_loss(logits, labels, mask))[1]
    strategy.forward("labelled", batch, step_state)
    strategy.forward("unlabelled", batch, step_state).total.backward()
    assert [mask is None for mask in masks] == [False, True, False] and not masks[0].all()
    one, other = strategy._pseudo
    assert not torch.equal(one, other)
    assert strategy.balanced["unlabelled"].weight.grad.abs().sum() > 0


def test_skcdf_pseudo_labels_depend_on_the_labeled_patches():
    strategy = strategy_for("skcdf").eval()
    unlabeled, seen = torch.rand(2, 1, *SIDES), []
    strategy.labelled.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][-1]))
    deepest = strategy.network.encoder(unlabeled)[-1]
    for others in (deepest.flip(0), torch.randn_like(deepest)):
        strategy._compute_pseudo_labels(unlabeled, others)
    assert not torch.allclose(seen[0], seen[1])


def test_skcdf_attention_is_normalized_and_used_in_inference():
    strategy = strategy_for("skcdf").eval()
    volume, features = torch.rand(1, 1, *SIDES), torch.randn(1, 4, 2, 2, 2)
    attention = ChannelAttention(4, (2, 2, 2), (1, 1, 1)).eval()
    with torch.no_grad():
        plain = attention(features)
        attention.query.weight.mul_(50)
        attention.query.bias.mul_(50)
        # Without the normalization, the softmax would select a single channel.
        torch.testing.assert_close(attention(features), plain, atol=1e-2, rtol=0)
        before = strategy.network(volume)
        strategy.network.attention[1].mix[0].weight.mul_(-3)
        assert not torch.allclose(strategy.network(volume), before, atol=1e-3)


def test_ddim_follows_the_way_from_noise_to_the_clean_map():
    clean, noise = encode_labels(torch.randint(4, (1, 8, 8, 8)), 4), torch.randn(1, 4, 8, 8, 8)
    seen: dict[int, Tensor] = {}
    start = add_noise(clean, noise, torch.tensor([999]))
    sample_ddim(lambda x, t: (seen.setdefault(int(t[0]), x), clean)[1], start, 4)
    for time, found in seen.items():
        torch.testing.assert_close(found, add_noise(clean, noise, torch.tensor([time])), atol=2e-3, rtol=0)


def test_a_and_d_denoises_a_noised_map_at_every_level():
    strategy = strategy_for("a_and_d").eval()
    batch, seen = batch_of(), inputs_of(strategy.noised_input)
    strategy.forward("denoising", batch, strategy.get_step_state(50))
    image, diffused = seen[0][:, :1], seen[0][:, 1:]
    assert torch.equal(image, batch.volumes) and not torch.isin(diffused, torch.tensor([-1.0, 1.0])).any()
    with torch.no_grad():
        for parameter in strategy.time_of_level[0].parameters():
            parameter.zero_()
        one, other = (strategy.denoise(image, diffused, torch.tensor([t, t])) for t in (10, 900))
    assert not torch.allclose(one, other)


def test_a_and_d_weights_labeled_patches_by_difficulty():
    strategy = strategy_for("a_and_d").eval()
    strategy.difficulty.distance.copy_(torch.tensor([0.1, 0.2, 0.5, 1.0]))
    batch = batch_of()
    with torch.no_grad():
        logits = strategy.labelled(strategy.network.encoder(batch.volumes)).logits
    expected = losses.weighted_loss(logits, batch.labels, torch.tensor([0.4, 0.8, 2.0, 4.0]))
    torch.testing.assert_close(strategy.forward("labelled", batch, strategy.get_step_state(0)).total.detach(), expected)


def test_a_and_d_pseudo_labels_come_from_both_decoders():
    strategy = strategy_for("a_and_d", strategy_options={"denoising_steps": 1}).eval()
    volumes, step_state = torch.rand(1, 1, *SIDES), strategy.get_step_state(50)
    logits = torch.zeros(1, 4, *SIDES)
    strategy.denoise = lambda volumes, diffused, times: logits
    head = strategy.labelled.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    # Both are undecided: the noise decides, and smoothing makes neighbors similar.
    labels = strategy.compute_pseudo_labels(volumes, step_state)
    assert len(labels.unique()) == 4 and not torch.equal(
        labels, strategy.compute_pseudo_labels(volumes, strategy.get_step_state(51))
    )
    assert (labels[..., 1:] == labels[..., :-1]).float().mean() > 0.4
    with torch.no_grad():
        head.bias[2] = 9
    # Now the second decoder is sure, and the first one is undecided.
    assert (strategy.compute_pseudo_labels(volumes, step_state) == 2).float().mean() > 0.9
    with torch.no_grad():
        head.bias[2] = 0
    logits[:, 1] = 30
    assert (strategy.compute_pseudo_labels(volumes, step_state) == 1).all()


@pytest.mark.parametrize("name", ["skcdf", "a_and_d"])
def test_all_decoders_have_the_initialization_of_the_run(name):
    plain, kaiming = (strategy_for(name, initialization=mode) for mode in ("torch", "kaiming"))
    for part in ("network.experts.0.blocks.0.0.weight", "labelled.blocks.0.0.weight"):
        deviations = [float(strategy.get_parameter(part).std()) for strategy in (plain, kaiming)]
        # PyTorch's default has a variance of 1 / (3 fan-in), Kaiming's 2 / fan-in.
        assert deviations[1] / deviations[0] == pytest.approx(6**0.5, rel=0.1)


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.99), ("adamw", 0.999)])
def test_a_and_d_follows_the_mean_of_decoders_with_the_same_start(optimizer, decay):
    strategy = strategy_for("a_and_d", optimizer=optimizer)
    decoders = [strategy.network.experts[0], strategy.denoising, strategy.labelled]
    for weights in zip(*(decoder.parameters() for decoder in decoders), strict=True):
        assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    start = strategy.denoising.head.weight.clone()
    with torch.no_grad():
        strategy.denoising.head.weight.add_(1)
        strategy.labelled.head.weight.add_(3)
    strategy.on_step_end(strategy.get_step_state(0))
    torch.testing.assert_close(decoders[0].head.weight, start + 2 * (1 - decay))
