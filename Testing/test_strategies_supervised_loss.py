"""The loss of the comparison methods on true labels: the run's with ``class_balance``, otherwise the published one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dcaseg.method.losses import segmentation_loss
from dcaseg.training.strategies import losses
from dcaseg.training.strategies.base import Batch, Strategy, whole_label_loss
from dcaseg.training.strategies.copy_paste import paste_with_labels
from strategy_samples import batch_of, strategy_for

LOGITS = torch.tensor([1.0, 0.5, -1.0, -2.0])


def square_dice(logits: Tensor, labels: Tensor) -> Tensor:
    return losses.squared_dice_loss(logits.softmax(1), labels)


def sum_of_both(logits: Tensor, labels: Tensor) -> Tensor:
    return 2 * losses.cross_entropy_and_square_dice(logits, labels)


# The loss and the value in the log that is computed from labels, by how much it multiplies the run's loss, and what it
# was published as, without the factor.
SUPERVISED = [
    ("urpc", "labelled", "supervised", 1, losses.cross_entropy_and_square_dice, 1),
    ("ss_net", "labelled", "supervised", 1, square_dice, 1),
    ("co_bionet", "networks", "supervised", 2, sum_of_both, 1),
    ("abd cross", "labelled", "supervised", 1, losses.cross_entropy_and_square_dice, 1),
    ("beta_fft", "differentiated", "labelled", 1, losses.cross_entropy_and_square_dice, 1),
    ("magicnet", "cubes", "cubes", 1 / 4, square_dice, 1 / 4),
    ("magicnet", "whole", "supervised", 1 / 2, sum_of_both, 1 / 4),
    ("magicnet", "crossed", "crossed", 1 / 4, square_dice, 1 / 4),
    ("adsh", "all", "supervised", 2, losses.unweighted_loss, 1),
    ("basak", "labelled", "supervised", 2, losses.unweighted_loss, 1),
    ("a_and_d", "denoising", "denoising", 2, losses.unweighted_loss, 1),
    ("skcdf", "labelled", "supervised", 2, lambda *given: 1 + losses.unweighted_loss(*given), 1),
]


@torch.no_grad()
def fix_logits(strategy: Strategy) -> None:
    """Make every decoder predict ``LOGITS`` in each voxel, so that losses depend on the labels only."""
    for module in strategy.modules():
        if isinstance(module, nn.Conv3d) and module.out_channels == len(LOGITS) and module.kernel_size == (1, 1, 1):
            module.weight.zero_()
            module.bias.copy_(LOGITS)


def labeled_batch(name: str) -> tuple[Batch, Tensor]:
    """A batch with few voxels of organs, of which one patch lacks the last, and the logits of ``fix_logits``."""
    batch = batch_of(sides=(32, 32, 32) if name == "magicnet" else (16, 16, 32))
    batch.labels[:, 2:] = 0
    batch.labels[0][batch.labels[0] == 3] = 2
    return batch, LOGITS[None, :, None, None, None].expand(2, 4, *batch.labels.shape[1:])


@pytest.mark.parametrize(("name", "loss_name", "key", "scale", "published", "factor"), SUPERVISED)
def test_labels_are_learned_with_the_loss_of_the_run(name, loss_name, key, scale, published, factor):
    for options in ({"class_balance": 0.75}, {"class_balance": 0.0}, {"class_balance": 0.0, "dice_channels": "all"}):
        strategy = strategy_for(name, **options)
        fix_logits(strategy)
        batch, logits = labeled_batch(name)
        step_state = strategy.get_step_state(60)
        if loss_name == "crossed":
            strategy.forward("cubes", batch, step_state)
        found = strategy.forward(loss_name, batch, step_state).values[key]
        run_loss = whole_label_loss(logits, batch, strategy.options, step_state)
        expected = scale * run_loss if options["class_balance"] else factor * published(logits, batch.labels)
        torch.testing.assert_close(found, expected)
        # Otherwise the two could not be told apart.
        assert abs(scale * run_loss - factor * published(logits, batch.labels)) > 1e-3


@pytest.mark.parametrize("name", ["bcp", "abd", "beta_fft"])
def test_pretraining_learns_with_the_loss_of_the_run(name):
    for class_balance in (0.75, 0.0):
        strategy = strategy_for(name, class_balance=class_balance)
        fix_logits(strategy)
        batch, logits = labeled_batch(name)
        step_state = strategy.get_step_state(10)
        found = strategy.forward("pretraining", batch, step_state).values["supervised"]
        halves = [(batch.volumes[index : index + 1], batch.labels[index : index + 1]) for index in (0, 1)]
        box = strategy.draw_box_mask(batch.volumes, step_state)
        labels = torch.cat([paste_with_labels(*halves, box).labels, paste_with_labels(*halves[::-1], box).labels])
        balance = class_balance * (1 - step_state.stage_step / step_state.stage_steps)
        # The published loss is that of the paper, with all channels.
        channels = "present" if class_balance else "all"
        torch.testing.assert_close(found, segmentation_loss(logits, labels, channels, (), balance))
