"""Methods that mix patches: BCP, ABD, beta-FFT, MagicNet.

The tests fail if a mechanism is removed.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from dcaseg.method.losses import segmentation_loss
from dcaseg.training.strategies import losses, mixing
from dcaseg.training.strategies.beta_fft import interpolate
from dcaseg.training.strategies.magicnet import blend_pseudo_labels
from dcaseg.training.strategies.perturbation import augment_strongly
from strategy_samples import SIDES, batch_of, gradient, inputs_of, randomize, strategy_for, volume_of
from test_strategies import options_for, trainer_for


def test_bcp_pastes_both_ways_with_half_weight_for_pseudo_labels():
    strategy = strategy_for("bcp")
    batch, generator = batch_of(), torch.Generator().manual_seed(1)
    mask = mixing.make_box_mask(SIDES, 2 / 3, generator)
    assert (~mask).sum() == 10 * 10 * 21
    pseudo = torch.randint(4, (2, *SIDES))
    inward, outward = strategy.make_mixtures((batch.volumes, batch.labels), (batch.unlabeled, pseudo), mask)
    assert torch.equal(inward.volumes[0, 0][mask], batch.volumes[0, 0][mask])
    assert torch.equal(inward.volumes[0, 0][~mask], batch.unlabeled[0, 0][~mask])
    assert torch.equal(outward.volumes[0, 0][mask], batch.unlabeled[1, 0][mask])
    assert torch.equal(outward.labels[0][~mask], batch.labels[1][~mask])
    assert torch.equal(outward.labels[0][mask], pseudo[1][mask])
    logits = torch.zeros(1, 4, *SIDES, requires_grad=True)
    step_state = strategy.get_step_state(50)
    labeled, half = (
        gradient(strategy.mixture_loss(logits, inward, step_state, 1.0, weight), logits) for weight in (1.0, 0.5)
    )
    torch.testing.assert_close(half[:, :, mask], labeled[:, :, mask])
    torch.testing.assert_close(half[:, :, ~mask], labeled[:, :, ~mask] / 2)


def test_bcp_copies_the_student_to_the_teacher_at_the_second_stage():
    strategy = strategy_for("bcp")
    border = 50
    assert (
        strategy.get_step_state(border - 1).stage == "pretraining"
        and strategy.get_unsupervised_weight(strategy.get_step_state(border - 1)) == 0
    )
    with torch.no_grad():
        for parameter in strategy.network.parameters():
            parameter.add_(1)
    strategy.on_step_end(strategy.get_step_state(border - 1))
    pairs = list(zip(strategy.network.parameters(), strategy.teacher.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in pairs)
    step_state = strategy.get_step_state(border)
    # Optimizer and averaged weights continue.
    assert not strategy.on_step_start(step_state, None)
    assert all(torch.equal(a, b) for a, b in pairs)
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
    one, other = mixing.displace_blocks((views[0], answers[0]), (views[1], answers[1]), 3, [True])
    assert [k for k in range(8) if not torch.equal(one[k], views[0][k])] == [1] and torch.equal(one[1], views[1][7])
    assert [k for k in range(8) if not torch.equal(other[k], views[1][k])] == [6]
    assert any(torch.equal(other[6], views[0][k]) for k in (0, 2, 3))
    plain, _ = mixing.displace_blocks((views[0], answers[0]), (views[1], answers[1]), 3, [False])
    assert torch.equal(plain[1], views[1][1])


def test_abd_moves_labels_along_with_blocks_of_labeled_patches():
    views = [torch.rand(8, 2, 1, 2, 2, 2) for _ in range(2)]
    answers = [torch.randn(8, 2, 4, 2, 2, 2).softmax(2) for _ in range(2)]
    labels = torch.randint(4, (8, 2, 1, 2, 2, 2))
    new = mixing.displace_labeled_blocks((views[0], answers[0]), (views[1], answers[1]), labels, [True, False])
    confidence = [answer.amax(2).flatten(2).mean(2)[:, 0] for answer in answers]
    best, worst = int(confidence[0].argmax()), int(confidence[1].argmin())
    assert torch.equal(new[0][0][best, 0], views[1][worst, 0]) and torch.equal(new[0][1][best, 0], labels[worst, 0])
    assert torch.equal(new[0][0][:, 1], views[0][:, 1]) and torch.equal(new[0][1][:, 1], labels[:, 1])


def test_abd_teaches_both_networks_on_displaced_mixtures():
    strategy = strategy_for("abd")
    batch, step_state = batch_of(), strategy.get_step_state(50)
    strategy.forward("mixed", batch, step_state)
    assert not torch.equal(strategy.views[0][0], strategy.views[1][0])
    strategy.forward("displaced", batch, step_state).total.backward()
    for network in strategy.students:
        assert network.encoder.blocks[0][0].weight.grad.abs().sum() > 0


def test_beta_fft_swaps_low_frequencies():
    one, other = torch.rand(1, 1, *SIDES), torch.rand(1, 1, *SIDES)
    new, new_other = mixing.swap_low_frequencies(one, other, 0.125)
    torch.testing.assert_close(new + new_other, one + other)
    low = mixing.filter_low_frequencies
    torch.testing.assert_close(low(new, 0.125), low(other, 0.125), atol=1e-5, rtol=0)
    torch.testing.assert_close(new - low(new, 0.125), one - low(one, 0.125), atol=1e-5, rtol=0)
    back, _ = mixing.swap_low_frequencies(new, new_other, 0.125)
    torch.testing.assert_close(back, one, atol=1e-5, rtol=0)
    waves = torch.cos(2 * torch.pi * 5 * torch.arange(32) / 32).expand(1, 1, *SIDES)
    assert low(waves, 0.125).abs().max() < 1e-5 and torch.allclose(low(waves, 0.16), waves, atol=1e-5)


def test_beta_fft_has_additional_losses_for_the_first_network():
    strategy = strategy_for("beta_fft")
    batch, step_state = batch_of(), strategy.get_step_state(60)
    strategy.forward("mixed", batch, step_state)
    strategy.forward("differentiated", batch, step_state).total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in strategy.network.parameters())
    assert all(p.grad is None for p in strategy.second.parameters())
    strategy.forward("swapped", batch, step_state).total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in strategy.second.parameters())
    ends = interpolate(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, 1.0]))
    assert ends.flatten().tolist() == [0, 1]


def test_cubes_are_exchanged_and_returned_to_their_positions():
    volumes = torch.rand(4, 2, 6, 9, 12)
    parts = mixing.split_into_cubes(volumes, 3)
    torch.testing.assert_close(parts[1][:, :, 0, 0, 0], volumes[:, :, 0, 0, 4])
    torch.testing.assert_close(parts[9][:, :, 0, 0, 0], volumes[:, :, 2, 0, 0])
    assert torch.equal(mixing.assemble_cubes(parts), volumes)
    order = mixing.draw_permutations(27, 4, torch.Generator().manual_seed(0))
    mixture = mixing.swap_cubes(parts, order)
    for place in range(27):
        assert sorted(order[place].tolist()) == [0, 1, 2, 3]
        for patch in range(4):
            assert torch.equal(mixture[place, patch], parts[place, order[place, patch]])
    assert not torch.equal(mixture, parts) and torch.equal(mixing.swap_cubes_back(mixture, order), parts)


def test_magicnet_returns_features_to_their_positions():
    strategy = strategy_for("magicnet").eval()
    batch = batch_of(sides=(32, 32, 32))
    volumes = torch.cat([batch.volumes, batch.unlabeled])
    found = {}
    strategy._compute_pseudo_labels = lambda unlabeled, of_cubes, step_state: found.setdefault("logits", of_cubes)
    strategy._compute_cube_loss(volumes, batch.labels, strategy.get_step_state(0))
    with torch.no_grad():
        alone = strategy.network(mixing.split_into_cubes(volumes, 2)[3, 2:])
    torch.testing.assert_close(
        mixing.split_into_cubes(found["logits"], 2)[3].softmax(1), alone.softmax(1), atol=1e-4, rtol=0
    )


def test_magicnet_blends_the_teacher_with_the_cubes_by_class():
    teacher = volume_of([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]], channels=True)
    of_cubes = volume_of([[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]], channels=True)
    assert blend_pseudo_labels(teacher, of_cubes, torch.zeros(3)).flatten().tolist() == [0, 1]
    assert blend_pseudo_labels(teacher, of_cubes, torch.ones(3)).flatten().tolist() == [2, 2]
    assert blend_pseudo_labels(teacher, of_cubes, torch.tensor([1.0, 0.0, 0.0])).flatten().tolist() == [2, 1]


def test_bcp_pretrains_on_mixtures_of_labeled_patches():
    strategy = strategy_for("bcp")
    batch, step_state, seen = batch_of(), strategy.get_step_state(0), inputs_of(strategy.network)
    strategy.forward("pretraining", batch, step_state)
    mask = strategy.draw_box_mask(batch.volumes, step_state)
    assert torch.equal(seen[0][0, 0][mask], batch.volumes[0, 0][mask])
    assert torch.equal(seen[0][0, 0][~mask], batch.volumes[1, 0][~mask]) and not mask.all()


def test_bcp_starts_from_averaged_weights_and_its_teacher_follows():
    strategy = strategy_for("bcp")
    averaged = copy.deepcopy(strategy.network)
    randomize(averaged)
    border = strategy.get_step_state(50)
    strategy.on_step_start(border, averaged)
    for start, student, teacher in zip(
        averaged.parameters(), strategy.network.parameters(), strategy.teacher.parameters(), strict=True
    ):
        assert torch.equal(start, student) and torch.equal(start, teacher)
    randomize(strategy.network, seed=8)
    strategy.on_step_end(border)
    for start, student, teacher in zip(
        averaged.parameters(), strategy.network.parameters(), strategy.teacher.parameters(), strict=True
    ):
        torch.testing.assert_close(teacher, 0.99 * start + 0.01 * student)


def test_bcp_can_keep_only_the_largest_component_of_an_organ():
    labels = torch.zeros(1, 1, 1, 9, dtype=torch.long)
    labels[..., 1:4], labels[..., 6], labels[..., 8] = 1, 1, 2
    strategy = strategy_for("bcp", strategy_options={"largest_part": True})
    strategy.teacher.forward = lambda volumes: functional.one_hot(labels, 4).movedim(-1, 1).float()
    assert strategy.compute_pseudo_labels(torch.zeros(1)).flatten().tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 2]
    strategy.strategy_options = strategy_for("bcp").strategy_options
    assert torch.equal(strategy.compute_pseudo_labels(torch.zeros(1)), labels)


def test_two_students_teach_each_other_on_mixtures():
    strategy = strategy_for("abd")
    loss = strategy.forward("mixed", batch_of(), strategy.get_step_state(50))
    expected = 2 * loss.values["supervised"] + loss.values["unsupervised"]
    torch.testing.assert_close(loss.total.detach(), expected)
    assert loss.values["unsupervised"] > 0


def test_abd_learns_displaced_mixtures_that_differ_in_one_block():
    strategy = strategy_for("abd").eval()
    batch, step_state = batch_of(), strategy.get_step_state(50)
    strategy.forward("mixed", batch, step_state)
    seen = inputs_of(strategy.network)
    strategy.forward("displaced", batch, step_state)
    views = torch.cat([view for view, _ in strategy.views])
    same = (mixing.split_into_cubes(seen[0], 4) == mixing.split_into_cubes(views, 4)).flatten(2).all(dim=2)
    assert (same.sum(dim=0) == 4**3 - 1).all()


def test_abd_on_cross_teaching_also_learns_displaced_labeled_patches_at_first():
    strategy = strategy_for("abd cross")
    batch = batch_of()
    for step, passes in ((60, 2), (70, 1)):
        seen = inputs_of(strategy.second)
        loss = strategy.forward("labelled", batch, strategy.get_step_state(step))
        extra = loss.total.detach() - 2 * loss.values["supervised"]
        assert len(seen) == passes and (extra > 0.1) == (passes == 2)
    step_state = strategy.get_step_state(60)
    loss = strategy.forward("unlabelled", batch, step_state)
    weight = strategy.get_unsupervised_weight(step_state)
    torch.testing.assert_close(loss.total.detach(), weight * loss.values["unsupervised"])


def test_beta_fft_learns_swapped_mixtures():
    strategy = strategy_for("beta_fft").eval()
    batch, step_state = batch_of(), strategy.get_step_state(60)
    strategy.forward("mixed", batch, step_state)
    seen = [inputs_of(student) for student in strategy.students]
    strategy.forward("swapped", batch, step_state)
    one, other = (view for view, _ in strategy.views)
    expected = torch.cat(mixing.swap_low_frequencies(one, other, strategy.strategy_options.low_share))
    assert not torch.allclose(expected, torch.cat([one, other]), atol=1e-3)
    for inputs in seen:
        torch.testing.assert_close(inputs[0], expected)


def test_beta_fft_interpolates_images_and_targets_alike():
    strategy = strategy_for("beta_fft", strategy_options={"beta": 5.0}).eval()
    randomize(strategy.teacher)
    batch, step_state = batch_of(), strategy.get_step_state(60)
    seen = inputs_of(strategy.network)
    loss = strategy.forward("differentiated", batch, step_state)
    weight = strategy.get_unsupervised_weight(step_state)
    expected = 2 * loss.values["labelled"] + 2 * weight * loss.values["interpolated"]
    assert weight > 0
    torch.testing.assert_close(loss.total.detach(), expected)
    distances = []
    # For each view, the network sees the labeled patches, then the mixture.
    for mixture, view in zip(
        seen[1::2],
        (batch.unlabeled, augment_strongly(batch.unlabeled, strategy.make_generator(step_state, 2))),
        strict=True,
    ):
        one, other = view[:1], view[1:]
        share = float(((mixture - one) * (other - one)).sum() / ((other - one) ** 2).sum())
        assert 0.05 < share < 0.95
        with torch.no_grad():
            target = strategy.teacher(view).softmax(1)
            predicted = strategy.network(mixture).softmax(1)
        distances.append(((predicted - (1 - share) * target[:1] - share * target[1:]) ** 2).mean())
    torch.testing.assert_close(loss.values["interpolated"], sum(distances) / 2, atol=1e-5, rtol=1e-4)


def test_magicnet_predicts_exchanged_cubes_and_learns_the_pseudo_label():
    strategy = strategy_for("magicnet", class_balance=0.0).eval()
    batch, step_state = batch_of(sides=(32, 32, 32)), strategy.get_step_state(50)
    randomize(strategy.network)
    seen = inputs_of(strategy.network.encoder)
    strategy._pseudo = torch.randint(4, (2, 32, 32, 32))
    loss = strategy.forward("crossed", batch, step_state)
    volumes = torch.cat([batch.volumes, batch.unlabeled])
    order = mixing.draw_permutations(8, 4, strategy.make_generator(step_state))
    torch.testing.assert_close(
        seen[0], mixing.assemble_cubes(mixing.swap_cubes(mixing.split_into_cubes(volumes, 2), order))
    )
    decoder = strategy.network.experts[0]
    with torch.no_grad():
        features = decoder(strategy.network.encoder(seen[0])).features[-1]
        features = mixing.assemble_cubes(mixing.swap_cubes_back(mixing.split_into_cubes(features, 2), order))
        probabilities = decoder.head(features).softmax(1)
    torch.testing.assert_close(loss.values["crossed"], losses.squared_dice_loss(probabilities[:2], batch.labels) / 4)
    unsupervised = losses.squared_dice_loss(probabilities[2:], strategy._pseudo)
    weight = strategy.get_unsupervised_weight(step_state)
    torch.testing.assert_close(loss.total.detach(), loss.values["crossed"] + weight * unsupervised)


def test_magicnet_classifies_the_position_of_each_cube():
    strategy = strategy_for("magicnet").eval()
    batch = batch_of(sides=(32, 32, 32))
    randomize(strategy)
    encoded, placed = inputs_of(strategy.network.encoder), []
    strategy.place.register_forward_hook(lambda _, inputs, output: placed.append(output.detach()))
    loss = strategy.forward("cubes", batch, strategy.get_step_state(50))
    parts = mixing.split_into_cubes(torch.cat([batch.volumes, batch.unlabeled]), 2)
    positions = [int((parts == cube).flatten(2).all(dim=2).nonzero()[0, 0]) for cube in encoded[0]]
    assert positions != sorted(positions) and set(positions) == set(range(8))
    place = functional.cross_entropy(placed[0], torch.tensor(positions))
    torch.testing.assert_close(loss.values["place"], place)
    torch.testing.assert_close(loss.total.detach(), loss.values["cubes"] + 0.1 * place)


def test_magicnet_blends_from_the_shares_of_the_last_labels():
    strategy = strategy_for("magicnet", strategy_options={"blend_from": 1, "cubes": 2}).eval()
    unlabeled, seen = torch.rand(2, 1, 32, 32, 32), inputs_of(strategy.teacher)
    from_cubes = 9 * torch.randn(2, 4, 32, 32, 32)
    plain = strategy._compute_pseudo_labels(unlabeled, from_cubes, strategy.get_step_state(5))
    assert 0 < (seen[0] - unlabeled).abs().max() <= 0.2001
    with torch.no_grad():
        teacher = strategy.teacher(seen[0])
    # No label is known yet.
    assert torch.equal(plain, teacher.argmax(1)) and int(strategy.counts.sum()) == 2 * 32**3
    share = strategy.counts.sum(0) / strategy.counts.sum(0).max()
    found = strategy._compute_pseudo_labels(unlabeled, from_cubes, strategy.get_step_state(6))
    with torch.no_grad():
        teacher = strategy.teacher(seen[-1])
    assert torch.equal(found, blend_pseudo_labels(teacher, from_cubes, share)) and not torch.equal(
        found, teacher.argmax(1)
    )


@pytest.mark.parametrize("class_balance", [0.0, 0.75])
def test_bcp_trusts_pseudo_labels_half_as_much_in_both_mixtures(class_balance):
    strategy = strategy_for("bcp", class_balance=class_balance).eval()
    randomize(strategy.network)
    batch, pseudo, step_state = batch_of(), torch.randint(4, (2, *SIDES)) ** 2 // 3, strategy.get_step_state(50)
    mask = strategy.draw_box_mask(batch.volumes, step_state)
    pair = strategy.make_mixtures((batch.volumes, batch.labels), (batch.unlabeled, pseudo), mask)
    loss, logits = strategy.compute_mixture_losses(strategy.network, pair, step_state)

    def of_region(logits, labels, region):
        if not class_balance:
            return losses.region_loss(logits, labels, region)
        ignored = ~region.expand_as(labels)
        return segmentation_loss(logits, labels, "present", (1, 2, 3), class_balance / 2, ignored=ignored)

    inward = [of_region(logits[:1], pair[0].labels, region) for region in (mask, ~mask)]
    outward = [of_region(logits[1:], pair[1].labels, region) for region in (mask, ~mask)]
    torch.testing.assert_close(loss, inward[0] + inward[1] / 2 + outward[0] / 2 + outward[1])


def test_pretraining_takes_the_published_steps_or_half_of_a_short_run():
    def pretraining_steps(steps: int, **own) -> int:
        strategy = strategy_for("bcp", steps=steps, strategy_options=own)
        return sum(strategy.get_step_state(step).stage == "pretraining" for step in range(steps))

    assert [pretraining_steps(steps) for steps in (100, 2000, 8000, 17000)] == [50, 1000, 2000, 2006]
    assert pretraining_steps(2000, pretraining=0.118) == 236 and pretraining_steps(100, pretraining="0") == 0


@pytest.mark.parametrize("name", ["bcp", "abd", "beta_fft"])
def test_learning_rate_and_class_balance_have_one_schedule_over_both_stages(name):
    strategy = strategy_for(name)
    states = [strategy.get_step_state(step) for step in range(100)]
    assert [state.stage for state in states] == 50 * ["pretraining"] + 50 * ["self_training"]
    assert all((state.stage_step, state.stage_steps) == (state.step, 100) for state in states)


def test_the_ramp_of_beta_fft_begins_with_its_second_stage():
    strategy = strategy_for("beta_fft")
    weights = [strategy.get_unsupervised_weight(strategy.get_step_state(step)) for step in range(100)]
    assert not any(weights[:50]) and weights[50:] == sorted(weights[50:])
    assert weights[51] < 0.02 * strategy.options.unsupervised_weight < 0.9 * weights[99]


@pytest.mark.parametrize(("name", "warmup"), [("bcp", 40), ("crest published", 5), ("abd cross", 40), ("dca", 40)])
def test_only_stages_of_comparison_methods_have_a_short_warmup(name, warmup, tmp_path):
    trainer = trainer_for(tmp_path, options_for(name, steps=100, warmup_steps=40, expert_stage_fraction=0.5))
    trainer._advance()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(trainer.options.learning_rate / warmup)


def test_the_second_student_sees_strong_views_of_all_patches():
    strategy = strategy_for("abd").eval()
    batch, step_state = batch_of(), strategy.get_step_state(50)
    strategy.forward("mixed", batch, step_state)
    mask = strategy.draw_box_mask(batch.unlabeled, step_state)
    plain, strong = (view for view, _ in strategy.views)
    labeled = augment_strongly(batch.volumes, strategy.make_generator(step_state, 1))
    unlabeled = augment_strongly(batch.unlabeled, strategy.make_generator(step_state, 2))
    assert torch.equal(plain[0, 0][~mask], batch.unlabeled[0, 0][~mask])
    assert torch.equal(strong[0, 0][mask], labeled[0, 0][mask])
    assert torch.equal(strong[0, 0][~mask], unlabeled[0, 0][~mask])
    assert torch.equal(strong[1, 0][mask], unlabeled[1, 0][mask])


def test_magicnet_normalizes_a_single_deepest_voxel_over_its_channels():
    strategy = strategy_for("magicnet", norm="instance")
    plain = strategy_for("vnet", norm="instance").network
    assert strategy.network.state_dict().keys() == plain.state_dict().keys()
    strategy.train()
    loss = strategy.forward("cubes", batch_of(sides=(32, 32, 32)), strategy.get_step_state(0)).total
    loss.backward()
    deepest = strategy.network.encoder.blocks[-1][0].weight.grad
    assert torch.isfinite(loss) and deepest is not None and deepest.abs().sum() > 0
    # With more voxels it is instance norm.
    plain.load_state_dict(strategy.network.state_dict())
    volumes = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(strategy.network(volumes), plain.train()(volumes))
