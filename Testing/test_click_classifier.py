"""The classifier that decides what a click changes: its parts, its file, its fit, and what became possible with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.evaluation.click_damage import damage_mask, make_thick_slab
from dcaseg.evaluation.click_fit import ClickSample, choose_thresholds, collect, fit_classifier
from dcaseg.evaluation.click_simulation import BallBrush, ClickMeasurement, find_next_click, measure_case
from dcaseg.interaction.click_classifier import (
    MLP,
    SHIPPED,
    Layer,
    PieceDecision,
    Thresholds,
    format_classifier,
    is_large,
    is_on_border,
    load_shipped_classifier,
    read_classifier,
    select_confident_piece,
)
from dcaseg.interaction.click_piece import PIECE_FEATURES, find_pieces, select_best_piece
from dcaseg.interaction.evidence import FEATURES, ClickFeatures, compute_evidence
from dcaseg.interaction.random_walker import RandomWalkerEngine
from dcaseg.interaction.view import View, ViewStroke
from dcaseg.json_io import DataError, load
from dcaseg.organs import AMOS, get_typical_volume
from test_interaction import SPLEEN, Scene, ball, dice

WIDTH = len(FEATURES)


def perceptron(*layers):
    return MLP((1.0,) * WIDTH, (2.0,) * WIDTH, layers)


def test_a_perceptron_computes_what_its_layers_say():
    first = Layer(((1.0, -1.0), *[(0.0, 0.0)] * (WIDTH - 1)), (0.5, 0.0))
    second = Layer(((2.0,), (3.0,)), (-1.0,))
    features = np.ones((2, WIDTH), np.float32)
    features[:, 0] = (3.0, -1.0)
    # (3 - 1) / 2 = 1: relu(1.5), relu(-1) -> 2 * 1.5 - 1. (-1 - 1) / 2 = -1: relu(-0.5), relu(1) -> 3 * 1 - 1.
    assert perceptron(first, second).predict_log_odds(features).tolist() == [2.0, 2.0]


def test_layers_that_do_not_fit_are_refused():
    good = Layer(((1.0,),) * WIDTH, (0.0,))
    with pytest.raises(DataError, match="do not fit each other"):
        perceptron(Layer(((1.0,),) * 3, (0.0,)))
    with pytest.raises(DataError, match="one output"):
        perceptron(Layer(((1.0, 1.0),) * WIDTH, (0.0, 0.0)))
    with pytest.raises(DataError, match="and scale"):
        MLP((1.0,), (1.0, 1.0), (good,))


def test_the_file_in_use_is_read_and_written_alike(tmp_path):
    classifier = load_shipped_classifier()
    path = tmp_path / "classifier.json"
    path.write_text(format_classifier(classifier))
    assert read_classifier(path) == classifier
    assert SHIPPED.read_text(encoding="utf-8") == format_classifier(classifier)
    content = json.loads(path.read_text())
    with pytest.raises(DataError, match="not those of this version"):
        load(type(classifier), {**content, "features": list(reversed(content["features"]))})
    with pytest.raises(DataError, match="do not fit the features"):
        load(
            type(classifier),
            {**content, "adding": {**content["adding"], "perceptrons": content["adding_much"]["pieces"]}},
        )


def test_the_file_in_use_is_small_enough_to_review():
    text = SHIPPED.read_text(encoding="utf-8")
    assert len(text) < 300_000 and text.count("\n") < 2500


def test_no_case_of_the_validation_was_used_for_the_fit():
    cases = load_shipped_classifier().cases
    assert len(cases) > 3
    assert not any(held_out in case for case in cases for held_out in ("bodyparts", "labelled", "slab"))


def evidence_with(wrong, **columns):
    """Evidence on a line of voxels, with a click on the first one and features of zero but for ``columns``."""
    shape = (1, 1, len(wrong))
    features = np.zeros((len(wrong), WIDTH), np.float32)
    for name, values in columns.items():
        features[:, FEATURES.index(name)] = values
    click = np.zeros(shape, bool)
    click[0, 0, 0] = True
    return ClickFeatures(np.ones(shape, bool), features, np.arange(len(wrong), dtype=np.float32), click, 100, 0.01)


def test_pieces_are_nested_and_connected_to_the_click():
    wrong = np.array((0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.1, 0.9, 0.9, 0.9), np.float32)
    pieces = find_pieces(evidence_with(wrong, distance=np.arange(12)), wrong)
    # The last three voxels are behind a gap.
    assert {1, 3, 8} == set(pieces.voxels.tolist())
    assert (np.diff(pieces.voxels) >= 0).all()
    for piece, count in enumerate(pieces.voxels):
        assert pieces.get_voxels(piece).tolist() == [index < count for index in range(12)]
    farthest = pieces.features[:, PIECE_FEATURES.index("farthest")]
    assert farthest.tolist() == (pieces.voxels - 1).tolist()


def test_pieces_are_connected_over_corners():
    candidates = np.zeros((3, 3, 3), bool)
    candidates[(0, 1, 2), (0, 1, 2), (0, 1, 2)] = True
    click = np.zeros_like(candidates)
    click[0, 0, 0] = True
    features = np.zeros((3, WIDTH), np.float32)
    pieces = find_pieces(
        ClickFeatures(candidates, features, np.arange(3.0), click, 9, 1.0), np.full(3, 0.8, np.float32)
    )
    assert pieces.voxels.max() == 3


def test_the_best_piece_has_the_largest_expected_gain():
    voxels = np.array((1, 20, 60))
    wrong = np.array((0.99, 0.9, 0.7), np.float32)
    assert select_best_piece(voxels, wrong, 1000, True, 0.0) == 2
    assert select_best_piece(voxels, wrong, 1000, True, 0.3) == 1
    assert select_best_piece(voxels, wrong - np.float32(0.5), 1000, True, 0.0) is None
    assert select_best_piece(voxels, wrong, 1000, False, 0.1) == 1
    # Nothing is gained by removing the whole mask, however wrong most of it is.
    assert select_best_piece(np.array((1, 30)), np.array((0.9, 0.8), np.float32), 30, False, 0.0) != 1


def test_clicking_again_in_the_same_direction_needs_less_caution():
    width = len(PIECE_FEATURES)
    mean = PIECE_FEATURES.index("mean")
    # The share of a piece that is wrong is the mean probability of its voxels.
    layer = Layer(tuple((1.0,) if index == mean else (0.0,) for index in range(width)), (0.0,))
    decision = PieceDecision((), (MLP((0.0,) * width, (1.0,) * width, (layer,)),), 0.3)
    wrong = np.array((0.95, *([0.72] * 12)), np.float32)
    pieces = find_pieces(evidence_with(wrong), wrong)
    changed = [pieces.voxels[decision.select_piece(pieces, 100, True, earlier)] for earlier in (0, 5)]
    assert changed[0] < changed[1] == 13


def test_a_small_change_is_one_confident_piece_around_the_click():
    wrong = np.zeros((1, 1, 12), np.float32)
    wrong[0, 0] = (0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.1, 0.9, 0.9, 0.9)
    seeds = np.zeros(wrong.shape, bool)
    seeds[0, 0, 0] = True
    # All eight voxels on this side of the gap, if their mean of 0.71 is enough; otherwise the three sure ones.
    assert select_confident_piece(wrong, seeds, Thresholds(0.5, 0.7))[1].sum() == 8
    assert select_confident_piece(wrong, seeds, Thresholds(0.5, 0.8))[1].sum() == 3
    # Not even the click is sure enough: only its voxel changes.
    assert select_confident_piece(wrong, seeds, Thresholds(0.5, 0.95))[1].sum() == 1


def test_clicking_again_needs_less_confidence_inside_an_error_and_more_on_a_border():
    once = Thresholds(0.5, 0.9)
    assert once.adapt_to_clicks(0, False, False) == once.adapt_to_clicks(0, False, True) == once
    assert 0.6 < once.adapt_to_clicks(3, True, False).mean < once.adapt_to_clicks(1, True, False).mean < 0.9
    assert once.adapt_to_clicks(20, False, False).mean > once.adapt_to_clicks(20, True, False).mean >= 0.6
    assert Thresholds(0.4, 0.5).adapt_to_clicks(9, True, False).mean == 0.5
    shipped = load_shipped_classifier()
    for decision, adds in ((shipped.adding, True), (shipped.removing, False)):
        means = [decision.thresholds.adapt_to_clicks(clicks, adds, True).mean for clicks in (0, 1, 2, 9)]
        assert means[0] == decision.thresholds.mean < means[1] < means[2] <= means[3] < 0.95


@pytest.mark.parametrize("adds", [True, False])
def test_clicks_on_the_outermost_voxels_are_on_the_border(adds):
    scene = Scene((20, 20, 20), (2.0, 2.0, 2.0))
    mask = np.zeros(scene.spleen.shape, bool)
    mask[5:15, 5:15, 5:15] = True
    hu = sitk.GetArrayFromImage(scene.ct).astype(np.float32)

    def on_border(depth, mask=mask):
        at = 14 + depth if adds else 15 - depth
        stroke = ViewStroke(np.array([(10, 10, at)]), adds, float(depth * 2 if adds else (depth - 1) * 2))
        return is_on_border(View(scene.grid, hu, mask, mask, np.zeros_like(mask), (stroke,)))

    assert on_border(1) and not on_border(2) and not on_border(3)
    # A missing organ has no border.
    assert not on_border(1, np.zeros_like(mask))


def test_clicks_deep_in_an_error_are_on_large_ones():
    scene = Scene((20, 20, 20))
    mask = ball(scene.spleen.shape, (10, 10, 10), 10.0)

    def large(adds, radius, mask=mask, ml=200.0):
        stroke = ViewStroke(np.array([(10, 10, 10)]), adds, radius)
        hu = sitk.GetArrayFromImage(scene.ct).astype(np.float32)
        return is_large(View(scene.grid, hu, mask, mask, np.zeros_like(mask), (stroke,), expected_ml=ml))

    assert large(True, 20.0) and not large(True, 9.0)
    # A leak of this size is large.
    assert large(False, 9.0) and not large(False, 3.0)
    # A missing organ has no size, and no adrenal is this deep.
    assert not large(True, 20.0, np.zeros_like(mask)) and not large(True, None)
    assert not large(True, 20.0, ml=4.0) and large(True, 20.0, ml=None)


def view_of(scene, mask, at, adds):
    depth = sitk.GetArrayFromImage(scene.ct).astype(np.float32)
    stroke = ViewStroke(np.array([at]), adds, 2.0)
    return View(scene.grid, depth, mask, mask, np.zeros_like(mask), (stroke,))


@pytest.mark.parametrize("adds", [True, False])
def test_the_evidence_covers_the_side_of_the_click_only(adds):
    scene = Scene((40, 40, 40))
    mask = ball(scene.spleen.shape, (20, 20, 20), 14.0)
    at = (20, 20, 28) if adds else (20, 20, 26)
    view = view_of(scene, mask, at, adds)
    evidence = compute_evidence(view, RandomWalkerEngine().predict_foreground(view))
    assert evidence.candidates[at]
    assert not (evidence.candidates & (mask == adds)).any()
    assert evidence.features.shape == (evidence.candidates.sum(), WIDTH) and np.isfinite(evidence.features).all()
    assert evidence.distance.min() == 0


@pytest.mark.parametrize("adds", [True, False])
def test_clicks_on_a_border_that_is_off_by_a_voxel_move_more_of_it_than_their_voxels(adds):
    """The error is a rind: each click, at its deepest voxel, is on the border itself."""
    scene = Scene((48, 48, 48), (3.0, 3.0, 3.0))
    mask = ball(scene.spleen.shape, scene.spleen_at, 20.0 - 3.0 if adds else 20.0 + 3.0, scene.spacing)
    session = scene.session(scene.labels(spleen=mask, liver=np.zeros_like(mask)))
    for _ in range(3):
        click = find_next_click(np.asarray(session.labels == SPLEEN), scene.spleen, scene.spacing)
        assert click.adds == adds
        session.apply(SPLEEN, scene.stroke(click.index, add=adds))
    after = np.asarray(session.labels == SPLEEN)
    # Removing is the more careful of the two: a wrong voxel inside costs more.
    assert (after != mask).sum() > (60 if adds else 3)
    assert dice(after, scene.spleen) > dice(mask, scene.spleen) + (0.03 if adds else 0.0)


def test_usual_volumes_are_those_of_the_vocabulary():
    low, high = AMOS.by_key["liver"].volume_ml
    assert low < get_typical_volume("liver") < high
    assert get_typical_volume("tumor") is None and get_typical_volume(None) is None


def made_up_samples(group, adds, missing, count=6):
    """Voxels nearer than 10 mm are wrong, of which some clicks have many and others few; other features are noise."""
    random = np.random.default_rng(sum(map(ord, group)) + adds + 2 * missing)
    samples = []
    for index in range(count):
        features = random.normal(size=(400, WIDTH)).astype(np.float16)
        distance = np.sort(random.uniform(0, 15 if index % 2 else 30, 400)).astype(np.float32)
        features[:, FEATURES.index("distance")] = distance / 20
        click = np.zeros((1, 1, 400), bool)
        click[0, 0, 0] = True
        masked = 0 if missing else 900
        evidence = ClickFeatures(np.ones_like(click), features, distance, click, masked, 0.027)
        wrong = distance < 10
        truth, dice = (int(wrong.sum()), 0.0) if missing else (1000, 0.8)
        samples.append(ClickSample(group, "model", evidence, wrong, adds, 0, index > 2, truth, masked, dice))
    return samples


@pytest.mark.slow
def test_the_fit_learns_which_voxels_are_wrong_and_which_piece_to_change():
    samples = [
        each
        for group in ("one", "two", "three")
        for adds, missing in ((True, False), (False, False), (True, True))
        for each in made_up_samples(group, adds, missing)
    ]
    classifier, figures = fit_classifier(samples, steps=120)
    assert classifier.cases == ("one", "three", "two")
    for name in ("adding", "removing", "finding"):
        assert figures[name]["clicks"] == 18 and figures[name]["gain"] > 0.03 and figures[name]["worse"] == 0
        features = np.zeros((2, WIDTH), np.float32)
        features[:, FEATURES.index("distance")] = (0.1, 1.3)
        near, far = getattr(classifier, name).predict_probability(features, finds=name == "finding")
        # Half of the odds on a missing organ are those of the random walker, which are even here.
        assert near > 0.6 and far < 0.46
    for name in ("adding_much", "removing_much"):
        assert figures[name]["clicks"] == 9 and figures[name]["gain"] > 0.03 and figures[name]["worse"] == 0
    assert read_back(classifier) == classifier


def test_the_choice_of_thresholds_limits_the_share_of_worse_clicks():
    (sample,) = made_up_samples("one", True, False, count=1)
    right = np.where(sample.wrong, 0.9, 0.1).astype(np.float32)
    misled = np.where(sample.wrong, 0.1, 0.55).astype(np.float32)
    thresholds, figures = choose_thresholds([(sample, right)] * 3 + [(sample, misled)] * 2, 0.05)
    assert figures["worse"] == 0 and figures["gain"] > 0.01
    assert max(thresholds.voxel, thresholds.mean) > 0.55


def read_back(classifier):
    return load(type(classifier), json.loads(format_classifier(classifier)))


def test_samples_are_collected_from_simulated_clicks():
    scene = Scene((40, 40, 40))
    bitten = scene.spleen & ~ball(scene.spleen.shape, (20, 12, 20), 10.0)
    liver = np.zeros_like(bitten)
    samples = collect(
        "scene",
        scene.ct,
        scene.labels(spleen=bitten, liver=liver),
        scene.labels(liver=liver),
        AMOS,
        np.random.default_rng(0),
    )
    first = samples[0]
    assert first.group == "scene" and first.adds and not first.missing
    assert first.dice == pytest.approx(dice(bitten, scene.spleen))
    # All voxels of the error.
    assert first.wrong.sum() == (scene.spleen & ~bitten).sum()
    right = first.wrong.sum()
    assert first.compute_dice_after(right, right) == pytest.approx(1.0)
    assert first.compute_dice_after(right, 0) < first.dice
    assert any(each.missing for each in samples)
    assert {each.start for each in samples} >= {"model", "missing", "damaged"}


def test_damage_is_large_and_of_many_kinds():
    scene = Scene((48, 48, 48), (3.0, 3.0, 3.0))
    hu = sitk.GetArrayFromImage(scene.ct)
    random = np.random.default_rng(1)
    masks = [damage_mask(scene.spleen, hu, scene.spacing, random) for _ in range(40)]
    changed = np.array([(mask != scene.spleen).mean() / scene.spleen.mean() for mask in masks])
    assert (changed > 0.1).mean() > 0.5 and (changed == 0).mean() < 0.15
    added, removed = (
        np.array([each.any() for each in errors])
        for errors in ([mask & ~scene.spleen for mask in masks], [scene.spleen & ~mask for mask in masks])
    )
    assert 0.15 < added.mean() < 0.6 and 0.4 < removed.mean() < 0.85
    # Tiny organs keep at least a voxel.
    speck = np.zeros_like(scene.spleen)
    speck[24, 24, 24] = True
    assert all(damage_mask(speck, hu, scene.spacing, random).any() for _ in range(20))


def test_a_thick_slab_has_the_hu_and_labels_of_its_height():
    scene = Scene((60, 30, 30), (3.0, 3.0, 2.0), axes=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    hu = np.broadcast_to(np.arange(60.0)[:, None, None] * 10, (60, 30, 30))
    ct, labels = make_thick_slab(scene.grid.make_image(hu.astype(np.int16)), scene.labels(), np.random.default_rng(4))
    depth, thickness = ct.GetSize()[2], ct.GetSpacing()[2]
    assert 4.0 <= thickness <= 8.0 and 45.0 < depth * thickness <= 90.0
    assert labels.GetSize() == ct.GetSize() and labels.GetSpacing() == ct.GetSpacing()
    assert (sitk.GetArrayViewFromImage(labels) == SPLEEN).any()
    # HU rise by 10 in 2 mm, so each slice has those of its middle.
    z = np.array([ct.TransformIndexToPhysicalPoint((0, 0, k))[2] for k in range(depth)])
    expected = (z - scene.grid.origin[2]) / 2.0 * 10
    assert np.abs(sitk.GetArrayFromImage(ct)[:, 5, 5] - expected).max() <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "No cases were given"), (["--synthetic", "nowhere"], "was not made by dca synthesize")],
)
def test_fit_clicks_refuses_cases_that_are_not_there(dca, tmp_path, small_bundle, arguments, message):
    run = dca("fit-clicks", "-o", tmp_path / "out", "--bundle", small_bundle, *arguments)
    assert run.code == 2 and message in run.err
    assert not (tmp_path / "out").exists()


def test_an_organ_can_be_measured_as_if_it_were_missing():
    scene = Scene((40, 40, 40))
    liver = np.zeros_like(scene.spleen)
    labels = scene.labels(liver=liver)
    measured = ClickMeasurement(clicks=1)
    arguments = (measured, "scene", scene.ct, labels, labels, AMOS, [BallBrush()])
    measure_case(*arguments)
    measure_case(*arguments, missing=True)
    assert [course.dice[0] for course in measured.courses] == [1.0, 0.0]
    assert (sitk.GetArrayViewFromImage(labels) == SPLEEN).any()
