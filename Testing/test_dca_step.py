"""One training step of DCA: which parts learn from which patches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dcaseg.method.log_gap import partition
from dcaseg.method.losses import segmentation_loss
from dcaseg.method.network import LEVELS, DCANet
from dcaseg.method.stitching import split_labels
from dcaseg.training.options import TrainingOptions
from dcaseg.training.strategies.base import Batch, StepState
from dcaseg.training.strategies.dca import DCA
from dcaseg.training.strategies.dca_losses import (
    attention_loss,
    compute_pseudo_labels,
    compute_stitched_pseudo_labels,
    compute_supervised_losses,
    pseudo_supervised_loss,
    unsupervised_loss,
)

OWNERS = ((1,), (2, 3), (4,))


@pytest.fixture
def options() -> TrainingOptions:
    # An untrained network is certain of nothing.
    return TrainingOptions(n_filters=2, patch=(16, 16, 32), pseudo_label_source="experts", pseudo_label_confidence=0.0)


@pytest.fixture
def network() -> DCANet:
    torch.manual_seed(0)
    return DCANet(OWNERS, n_filters=2, norm="instance")


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(2, 1, 16, 16, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, 5, (2, 16, 16, 32), generator=torch.Generator().manual_seed(2))


def has_gradient(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def test_the_aggregation_loss_leaves_no_gradient_in_any_expert(network, volumes, options):
    loss, _ = unsupervised_loss(network, volumes, options)
    loss.backward()
    assert not any(has_gradient(expert) for expert in network.experts)
    assert has_gradient(network.aggregation)
    assert has_gradient(network.encoder)


def test_supervising_the_aggregation_leaves_no_gradient_in_any_expert(network, volumes, labels, options):
    compute_supervised_losses(network, volumes, labels, options)["aggregation"].backward()
    assert not any(has_gradient(expert) for expert in network.experts)
    assert has_gradient(network.aggregation)


def test_each_expert_learns_from_its_own_loss_only(network, volumes, labels, options):
    compute_supervised_losses(network, volumes, labels, options)["medium"].backward()
    assert [has_gradient(expert) for expert in network.experts] == [False, True, False]
    assert not has_gradient(network.aggregation)


def test_the_loss_of_an_expert_uses_its_split_labels(network, volumes, labels, options):
    losses = compute_supervised_losses(network, volumes, labels, options)
    logits = network.forward_all(volumes).experts[0]
    expected = segmentation_loss(logits, split_labels(labels, (1,)), options.dice_channels, (1,))
    torch.testing.assert_close(losses["head"], expected)


def test_an_unannotated_organ_is_background_only_for_the_other_experts(network, volumes, labels, options):
    labels[labels == 4] = 0
    known = compute_supervised_losses(network, volumes, labels, options)
    unannotated = compute_supervised_losses(network, volumes, labels, options, unannotated=[(4,), (4,)])
    assert unannotated["head"] == known["head"] and unannotated["medium"] == known["medium"]
    assert unannotated["tail"] < known["tail"] - 0.01
    assert unannotated["aggregation"] != known["aggregation"]


def test_the_paper_preset_does_not_supervise_the_aggregation_decoder(network, volumes, labels):
    assert "aggregation" not in compute_supervised_losses(network, volumes, labels, TrainingOptions.make_paper_preset())


def test_two_graphs_give_the_gradients_of_one(network, volumes, labels, options):
    """One graph, with the experts' features detached at the input of the aggregation decoder."""
    joint = DCANet(**network.options)
    joint.load_state_dict(network.state_dict())
    unlabeled = torch.rand(2, 1, 16, 16, 32)

    sum(compute_supervised_losses(network, volumes, labels, options).values()).backward()
    (0.5 * unsupervised_loss(network, unlabeled, options)[0]).backward()

    encoded = joint.encoder(torch.cat([volumes, unlabeled]))
    decoded = joint.decode_experts(encoded)
    assert joint.aggregation is not None
    features = [[feature.detach() for feature in expert.features] for expert in decoded]
    aggregated, attention = joint.aggregation(encoded, features, LEVELS)
    pseudo = joint.stitch([expert.logits[2:] for expert in decoded]).argmax(dim=1)
    loss = segmentation_loss(aggregated[:2], labels, "present") + 0.5 * segmentation_loss(
        aggregated[2:], pseudo, "present"
    )
    for chosen, target, weight in ((slice(2), labels, 1.0), (slice(2, 4), pseudo, 0.5)):
        of_chosen = {level: weights[chosen] for level, weights in attention.items()}
        loss = loss + weight * options.attention_weight * attention_loss(of_chosen, target, OWNERS)
    for owned, expert in zip(OWNERS, decoded, strict=True):
        loss = loss + segmentation_loss(expert.logits[:2], split_labels(labels, owned), "present")
    loss.backward()
    for one, other in zip(network.parameters(), joint.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("supervised", [True, False])
def test_with_joint_statistics_a_step_is_one_graph_with_the_same_gradient(network, volumes, labels, supervised):
    """With instance norm, whose statistics are per patch. Organ 3 is unannotated in the first patch."""
    options = replace(
        TrainingOptions.make_paper_preset(n_filters=2, patch=(16, 16, 32), norm="instance", steps=1),
        unsupervised_weight=2.0, supervise_aggregation=supervised, class_balance=0.5, partition="top2",
    )  # fmt: skip
    labels[0][labels[0] == 3] = 0
    batch = Batch(volumes, labels, ((3,), ()), torch.rand(2, 1, 16, 16, 32))
    step_state = StepState(0, "joint", 0, 1)
    gradients = []
    for joint in (True, False):
        strategy = DCA(replace(options, joint_statistics=joint), partition({1: 900, 2: 90, 3: 80, 4: 1}, "top2"))
        strategy.network = DCANet(**network.options)
        strategy.network.load_state_dict(network.state_dict())
        parts = strategy.get_loss_names(step_state, batch)
        assert (parts == ("all",)) == joint
        for part in parts:
            strategy.forward(part, batch, step_state).total.backward()
        gradients.append([parameter.grad for parameter in strategy.network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def test_joint_statistics_give_batch_norm_all_patches():
    options = TrainingOptions.make_paper_preset(n_filters=2, patch=(16, 16, 32), steps=1, joint_statistics=True)
    volumes, unlabeled = torch.zeros(2, 1, 16, 16, 32), torch.rand(2, 1, 16, 16, 32)
    batch = Batch(volumes, torch.randint(0, 5, (2, 16, 16, 32)), ((), ()), unlabeled)
    torch.manual_seed(0)
    strategy = DCA(options, partition({1: 900, 2: 90, 3: 80, 4: 1}, "top2"))
    first = strategy.network.encoder.blocks[0]
    strategy.forward("all", batch, StepState(0, "joint", 0, 1))
    expected = first[0](torch.cat([volumes, unlabeled])).mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(first[1].running_mean, 0.1 * expected)


def test_the_experts_stage_leaves_out_the_aggregation_decoder(network, volumes, labels, options):
    assert sorted(compute_supervised_losses(network, volumes, labels, options, "experts")) == ["head", "medium", "tail"]


def test_encoder_and_experts_get_no_gradient_in_the_aggregation_stage(network, volumes, labels, options):
    losses = compute_supervised_losses(network, volumes, labels, options, "aggregation")
    assert list(losses) == ["aggregation", "attention"]
    (losses["aggregation"] + unsupervised_loss(network, volumes, options, "aggregation")[0]).backward()
    assert has_gradient(network.aggregation)
    assert not has_gradient(network.encoder) and not has_gradient(network.experts)


def test_the_experts_learn_their_split_of_the_teachers_stitched_labels(network, volumes, options):
    torch.manual_seed(5)
    teacher = DCANet(OWNERS, n_filters=2, norm="instance")
    for expert in teacher.experts:
        torch.nn.init.normal_(expert.head.weight)
    pseudo, ignored = compute_stitched_pseudo_labels(teacher, volumes)
    assert ignored is None
    assert len(pseudo.unique()) > 2, "pseudo-labels of one class would agree with any split"
    loss, agreement = pseudo_supervised_loss(network, teacher, volumes, options)
    logits = network.forward_all(volumes).experts
    expected = sum(
        segmentation_loss(one, split_labels(pseudo, owned), options.dice_channels, owned)
        for one, owned in zip(logits, OWNERS, strict=True)
    )
    torch.testing.assert_close(loss, expected)
    assert 0 <= float(agreement) <= 1
    loss.backward()
    assert all(has_gradient(expert) for expert in network.experts) and has_gradient(network.encoder)
    assert not has_gradient(network.aggregation) and not has_gradient(teacher)


def test_uncertain_pseudo_labels_are_left_out(network, volumes, options):
    torch.manual_seed(5)
    for expert in network.experts:
        torch.nn.init.normal_(expert.head.weight)
    stitched = network.stitch(list(network.forward_all(volumes).experts)).detach()
    confidence = float(stitched.softmax(dim=1).amax(dim=1).median())
    pseudo, ignored = compute_pseudo_labels(stitched, confidence)
    assert torch.equal(pseudo, stitched.argmax(dim=1)) and 0.3 < ignored.float().mean() < 0.7
    confident = replace(options, pseudo_label_confidence=confidence, attention_weight=0.0)
    for loss, _ in (
        unsupervised_loss(network, volumes, confident),
        pseudo_supervised_loss(network, network, volumes, confident, 0.75),
    ):
        assert loss.isfinite() and loss.requires_grad
    logits = network.forward_all(volumes).aggregated
    expected = segmentation_loss(logits, pseudo, options.dice_channels, range(1, 5), ignored=ignored)
    torch.testing.assert_close(unsupervised_loss(network, volumes, confident)[0], expected)
    certain_of_nothing = replace(confident, pseudo_label_confidence=1.0)
    assert float(unsupervised_loss(network, volumes, certain_of_nothing)[0]) == 0


def test_the_experts_learn_from_a_strong_view_of_an_unlabeled_patch(volumes, labels):
    options = TrainingOptions(n_filters=2, steps=100, expert_pseudo_labels=True, expert_stage_fraction=1.0)
    strategy = DCA(options, partition({1: 100, 2: 20, 3: 20, 4: 1}, "top2"))
    seen = []
    strategy.network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = Batch(volumes, labels, ((), ()), volumes)
    strategy.forward("experts", batch, strategy.get_step_state(99))
    teacher_volumes, student_volumes = seen
    assert torch.equal(teacher_volumes, volumes) and not torch.equal(student_volumes, volumes)


def test_the_decoder_can_learn_its_own_pseudo_labels_from_a_strong_view(network, volumes, labels, options):
    torch.manual_seed(6)
    # The network is its experts' result plus the decoder's logits, which make label 1 the most probable everywhere.
    torch.nn.init.zeros_(network.aggregation.head.weight)
    network.aggregation.head.bias.data = 50.0 * torch.eye(5)[1]
    network.residual = True
    own = replace(options, pseudo_label_source="decoder", attention_weight=0.0)
    from_experts, agreement = unsupervised_loss(network, volumes, replace(own, pseudo_label_source="experts"))
    assert agreement < 0.9
    from_itself, agreement = unsupervised_loss(network, volumes, own)
    assert agreement == 1 and from_itself < from_experts
    strategy = DCA(replace(own, expert_stage_fraction=0.0), partition({1: 100, 2: 20, 3: 20, 4: 1}, "top2"))
    seen = []
    strategy.network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    strategy.forward("unlabelled", Batch(volumes, labels, ((), ()), volumes), strategy.get_step_state(99))
    weak, strong = seen
    assert torch.equal(weak, volumes) and not torch.equal(strong, volumes)


def test_unlabeled_patches_are_used_in_the_stages_that_learn_from_them():
    options = TrainingOptions(n_filters=2, steps=1000, expert_pseudo_labels=True)
    strategy = DCA(options, partition({1: 100, 2: 20, 3: 20, 4: 1}, "top2"))
    weights = [strategy.get_unsupervised_weight(strategy.get_step_state(step)) for step in range(1000)]
    border = 650
    assert sum(weight > 0 for weight in weights[:border]) > 0.8 * border
    assert sum(weight > 0 for weight in weights[border:]) > 0.8 * (1000 - border)
    assert weights[border - 1] == weights[-1] == options.unsupervised_weight


def test_batch_and_initialization_of_the_paper_preset():
    paper = TrainingOptions.make_paper_preset()
    assert paper.joint_statistics and paper.initialization == "kaiming" and paper.upsampling == "transposed"
    assert paper.crop == "position"
    assert not paper.residual and not paper.expert_pseudo_labels and not paper.grid.anti_aliasing
    strategy = DCA(
        TrainingOptions.make_paper_preset(n_filters=4, norm="instance"), partition({1: 9, 2: 5, 3: 5, 4: 1}, "top2")
    )
    wide = strategy.network.encoder.blocks[3][3]
    assert wide.weight.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.03)
    batch = Batch(torch.zeros(1), torch.zeros(1), [()], torch.zeros(1))
    assert strategy.get_loss_names(strategy.get_step_state(5000), batch) == ("all",)


def test_the_attention_loss_is_zero_where_each_organ_has_the_attention_of_its_own_expert(labels):
    owner = torch.tensor([0, 0, 1, 1, 2])[labels]
    own = torch.nn.functional.one_hot(owner, 3).movedim(-1, 1).float()
    assert attention_loss({4: own, 3: own[:, :, ::2, ::2, ::2]}, labels, OWNERS) == 0
    even = torch.full_like(own, 1 / 3)
    assert attention_loss({4: even}, labels, OWNERS) == pytest.approx(math.log(3))
    # All voxels without an organ are free.
    assert attention_loss({4: own.roll(1, dims=1)}, torch.zeros_like(labels), OWNERS) == 0


def test_small_organs_count_as_much_as_large_ones_in_the_attention_loss():
    labels = torch.ones(1, 4, 4, 4, dtype=torch.long)
    labels[0, 0, 0, 0] = 4
    attention = torch.zeros(1, 3, 4, 4, 4)
    attention[:, 0] = 1
    wrong_in_one_voxel = -math.log(1e-6) / 2
    assert attention_loss({4: attention}, labels, OWNERS) == pytest.approx(wrong_in_one_voxel)


def test_the_attention_learns_from_labels_and_pseudo_labels_alike(network, volumes, labels, options):
    losses = compute_supervised_losses(network, volumes, labels, options)
    assert losses["attention"].item() == pytest.approx(options.attention_weight * math.log(3), rel=1e-5)
    with_attention, _ = unsupervised_loss(network, volumes, options)
    without, _ = unsupervised_loss(network, volumes, replace(options, attention_weight=0.0))
    assert (with_attention - without).item() == pytest.approx(options.attention_weight * math.log(3), rel=1e-4)
    losses["attention"].backward()
    assert not any(has_gradient(expert) for expert in network.experts)
    # The gates start at zero, so they are what learns in the first step.
    assert all(has_gradient(fusion.gate) for fusion in network.aggregation.fusions)


def test_the_paper_and_other_fusions_have_no_attention_loss(volumes, labels, options):
    paper = TrainingOptions.make_paper_preset(supervise_aggregation=True)
    torch.manual_seed(0)
    assert "attention" not in compute_supervised_losses(DCANet(OWNERS, n_filters=2), volumes, labels, paper)
    average = DCANet(OWNERS, n_filters=2, norm="instance", fusion="average")
    assert "attention" not in compute_supervised_losses(average, volumes, labels, options)
