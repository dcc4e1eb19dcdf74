"""The segmentation loss and the ramp-up, compared with values computed by hand and with torch's functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from dcaseg.method.losses import compute_sigmoid_rampup, segmentation_loss


def test_the_loss_is_half_dice_and_half_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 4, (2, 3, 4, 5), generator=generator)
    probabilities = logits.softmax(dim=1).flatten(2)
    target = functional.one_hot(labels, 4).movedim(-1, 1).flatten(2)
    dice = 2 * (probabilities * target).sum(2) / (probabilities.sum(2) + target.sum(2))
    expected = (functional.cross_entropy(logits, labels) + (1 - dice).mean()) / 2
    torch.testing.assert_close(segmentation_loss(logits, labels), expected, atol=1e-5, rtol=1e-5)


def test_a_perfect_prediction_has_zero_loss():
    labels = torch.tensor([0, 1, 2, 1]).reshape(1, 1, 2, 2)
    logits = 50.0 * functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert segmentation_loss(logits, labels).item() == pytest.approx(0, abs=1e-4)


def test_absent_channels_count_only_in_the_literal_reading():
    # Two voxels, both predicted as background; channel 2 is absent and has a small probability.
    logits = torch.tensor([[[2.0, 2.0], [-40.0, -40.0], [0.0, 0.0]]]).reshape(1, 3, 1, 1, 2)
    labels = torch.zeros(1, 1, 1, 2, dtype=torch.long)
    background = 1 / (1 + math.exp(-2))
    cross_entropy = -math.log(background)
    dice_background = 1 - 2 * background / (1 + background)
    present = segmentation_loss(logits, labels, "present").item()
    assert present == pytest.approx((dice_background + cross_entropy) / 2, abs=1e-4)
    owned = segmentation_loss(logits, labels, "owned", owned=[2]).item()
    assert owned == pytest.approx(((dice_background + 1) / 2 + cross_entropy) / 2, abs=1e-3)
    assert segmentation_loss(logits, labels, "all").item() < owned  # the empty channel 1 is perfect: Dice 1


def test_an_unannotated_organ_counts_as_background():
    """If channel 2 is unannotated, the loss is that of a network without it, with its probability in the background."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, 4, generator=generator, requires_grad=True)
    labels = torch.randint(0, 2, (2, 2, 3, 4), generator=generator)
    unannotated = torch.tensor([[False, False, True]] * 2)
    loss = segmentation_loss(logits, labels, "all", class_balance=0.5, unannotated=unannotated)
    joined = torch.stack([logits[:, [0, 2]].logsumexp(1), logits[:, 1]], dim=1)
    torch.testing.assert_close(loss, segmentation_loss(joined, labels, "all", class_balance=0.5))
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    nothing = segmentation_loss(logits, labels, unannotated=torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(nothing, segmentation_loss(logits, labels))


@pytest.mark.parametrize("dice_channels", ["all", "owned", "present"])
@pytest.mark.parametrize("class_balance", [0.0, 0.75])
def test_ignored_voxels_count_like_voxels_outside_the_patch(dice_channels, class_balance):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 3, 4, 6), generator=generator)
    ignored = torch.zeros(labels.shape, dtype=torch.bool)
    ignored[..., 4:] = True
    loss = segmentation_loss(logits, labels, dice_channels, (1, 2), class_balance, ignored=ignored)
    cropped = segmentation_loss(logits[..., :4], labels[..., :4], dice_channels, (1, 2), class_balance)
    torch.testing.assert_close(loss, cropped)
    loss.backward()
    assert not logits.grad[..., 4:].any() and logits.grad[..., :4].all()


def test_a_batch_of_ignored_voxels_has_a_finite_loss_without_gradient():
    logits = torch.randn(2, 4, 2, 2, 2, requires_grad=True)
    labels = torch.zeros(2, 2, 2, 2, dtype=torch.long)
    loss = segmentation_loss(logits, labels, "present", class_balance=0.5, ignored=labels == 0)
    loss.backward()
    assert loss.isfinite() and not logits.grad.any()


def test_unknown_dice_channels_are_rejected():
    with pytest.raises(ValueError, match="dice_channels"):
        segmentation_loss(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.long), "some")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("progress", "weight"), [(0, 0.067), (0.1, 0.174), (0.25, 0.60), (0.5, 2.87), (0.75, 7.32), (1, 10), (2, 10)]
)
def test_ramp_values(progress, weight):
    assert compute_sigmoid_rampup(round(progress * 1000), 1000) == pytest.approx(weight, abs=0.005)


def test_a_ramp_of_zero_steps_starts_at_its_maximum():
    assert compute_sigmoid_rampup(0, 0, maximum=3.0) == 3.0


def test_class_balance_increases_the_cross_entropy_weight_of_small_classes():
    # Three background voxels and one organ voxel; the background has probability 0.8 everywhere.
    logits = torch.log(torch.tensor([0.8, 0.2])).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 4)
    labels = torch.tensor([0, 0, 0, 1]).reshape(1, 1, 1, 4)
    dice = segmentation_loss(logits, labels).item() * 2 - (-(3 * math.log(0.8) + math.log(0.2)) / 4)
    background, organ = 4 / 3, 4.0
    balanced = -(3 * background * math.log(0.8) + organ * math.log(0.2)) / (3 * background + organ)
    assert segmentation_loss(logits, labels, class_balance=1.0).item() == pytest.approx((dice + balanced) / 2, abs=1e-5)
    halfway = segmentation_loss(logits, labels, class_balance=0.5).item()
    assert segmentation_loss(logits, labels).item() < halfway < (dice + balanced) / 2
