"""Methods that add attention or a diffusion decoder to the network: SKCDF, A&D.

The tests fail if a mechanism is removed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dcaseg.training.strategies import losses
from dcaseg.training.strategies.a_and_d import denoised, encoded, noised
from strategy_samples import SIDES, batch_of, strategy_for


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
