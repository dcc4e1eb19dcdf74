"""The classifier that decides what a click changes: its parts, its file, its fit, and what became possible with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.evaluation.click_fit import ClickSample, choose_sureness, collect, fit_classifier
from dcaseg.evaluation.click_simulation import BallBrush, ClickMeasurement, measure_case, next_click
from dcaseg.interaction.click_classifier import (
    SHIPPED,
    Layer,
    Perceptron,
    Sureness,
    read_classifier,
    shipped_classifier,
    sure_piece,
)
from dcaseg.interaction.evidence import FEATURES, evidence_of
from dcaseg.interaction.random_walker import RandomWalkerEngine
from dcaseg.interaction.view import SeenStroke, View
from dcaseg.json_io import DataError, dump, load
from dcaseg.organs import AMOS, usual_volume
from test_interaction import SPLEEN, Scene, ball, dice

WIDTH = len(FEATURES)


def perceptron(*layers):
    return Perceptron((1.0,) * WIDTH, (2.0,) * WIDTH, layers)


def test_a_perceptron_computes_what_its_layers_say():
    first = Layer(((1.0, -1.0), *[(0.0, 0.0)] * (WIDTH - 1)), (0.5, 0.0))
    second = Layer(((2.0,), (3.0,)), (-1.0,))
    features = np.ones((2, WIDTH), np.float32)
    features[:, 0] = (3.0, -1.0)
    # (3 - 1) / 2 = 1: relu(1.5), relu(-1) -> 2 * 1.5 - 1. (-1 - 1) / 2 = -1: relu(-0.5), relu(1) -> 3 * 1 - 1.
    assert perceptron(first, second).odds(features).tolist() == [2.0, 2.0]


def test_layers_that_do_not_fit_are_refused():
    good = Layer(((1.0,),) * WIDTH, (0.0,))
    with pytest.raises(DataError, match="do not fit each other"):
        perceptron(Layer(((1.0,),) * 3, (0.0,)))
    with pytest.raises(DataError, match="one output"):
        perceptron(Layer(((1.0, 1.0),) * WIDTH, (0.0, 0.0)))
    with pytest.raises(DataError, match="features"):
        Perceptron((1.0,), (1.0,), (good,))


def test_the_file_in_use_is_read_and_written_alike(tmp_path):
    classifier = shipped_classifier()
    assert SHIPPED.stat().st_size < 1_000_000
    path = tmp_path / "classifier.json"
    path.write_text(json.dumps(dump(classifier)))
    assert read_classifier(path) == classifier
    content = json.loads(path.read_text())
    with pytest.raises(DataError, match="not those of this version"):
        load(type(classifier), {**content, "features": list(reversed(content["features"]))})


def test_no_case_of_the_validation_was_used_for_the_fit():
    cases = shipped_classifier().cases
    assert len(cases) > 3
    assert not any(held_out in case for case in cases for held_out in ("bodyparts", "labelled", "slab"))


def test_a_change_is_one_sure_piece_around_the_click():
    wrong = np.zeros((1, 1, 12), np.float32)
    wrong[0, 0] = (0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.6, 0.1, 0.9, 0.9, 0.9)
    seeds = np.zeros(wrong.shape, bool)
    seeds[0, 0, 0] = True
    # All eight voxels on this side of the gap, if their mean of 0.71 is enough; otherwise the three sure ones.
    assert sure_piece(wrong, seeds, Sureness(0.5, 0.7))[1].sum() == 8
    assert sure_piece(wrong, seeds, Sureness(0.5, 0.8))[1].sum() == 3
    # Not even the click is sure enough: only its voxel changes.
    assert sure_piece(wrong, seeds, Sureness(0.5, 0.95))[1].sum() == 1


def test_clicking_again_in_the_same_direction_needs_less_sureness():
    once = Sureness(0.5, 0.9)
    assert once.after(0, False) == once
    assert 0.6 < once.after(3, True).mean < once.after(1, True).mean < 0.9
    assert once.after(20, False).mean > once.after(20, True).mean >= 0.6
    assert Sureness(0.4, 0.5).after(9, True).mean == 0.5


def view_of(scene, mask, at, adds):
    depth = sitk.GetArrayFromImage(scene.ct).astype(np.float32)
    stroke = SeenStroke(np.array([at]), adds, 2.0)
    return View(scene.grid, depth, mask, mask, np.zeros_like(mask), (stroke,))


@pytest.mark.parametrize("adds", [True, False])
def test_the_evidence_covers_the_side_of_the_click_only(adds):
    scene = Scene((40, 40, 40))
    mask = ball(scene.spleen.shape, (20, 20, 20), 14.0)
    at = (20, 20, 28) if adds else (20, 20, 26)
    view = view_of(scene, mask, at, adds)
    evidence = evidence_of(view, RandomWalkerEngine().foreground(view))
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
        click = next_click(np.asarray(session.labels == SPLEEN), scene.spleen, scene.spacing)
        assert click.adds == adds
        session.apply(SPLEEN, scene.stroke(click.index, add=adds))
    after = np.asarray(session.labels == SPLEEN)
    # Removing is the more careful of the two: a wrong voxel inside costs more.
    assert (after != mask).sum() > (60 if adds else 6)
    assert dice(after, scene.spleen) > dice(mask, scene.spleen) + (0.03 if adds else 0.0)


def test_usual_volumes_are_those_of_the_vocabulary():
    low, high = AMOS.by_key["liver"].volume_ml
    assert low < usual_volume("liver") < high
    assert usual_volume("tumor") is None and usual_volume(None) is None


def made_up_samples(group, adds, missing, count=6):
    """Voxels nearer than 10 mm are wrong; the second half of the features is noise."""
    random = np.random.default_rng(sum(map(ord, group)) + adds + 2 * missing)
    samples = []
    for _ in range(count):
        features = random.normal(size=(400, WIDTH)).astype(np.float16)
        distance = random.uniform(0, 30, 400)
        features[:, FEATURES.index("distance")] = distance / 20
        weight = np.ones(400, np.float32)
        samples.append(ClickSample(group, features, distance < 10, weight, adds, missing, 1000, 900, 0.8))
    return samples


def test_the_fit_learns_which_voxels_are_wrong_and_how_sure_that_is():
    samples = [
        each
        for group in ("one", "two", "three")
        for adds, missing in ((True, False), (False, False), (True, True))
        for each in made_up_samples(group, adds, missing)
    ]
    classifier, figures = fit_classifier(samples, steps=150)
    assert classifier.cases == ("one", "three", "two")
    for name in ("adding", "removing", "finding"):
        assert figures[name]["clicks"] == 18 and figures[name]["gain"] > 0.03 and figures[name]["worse"] == 0
        features = np.zeros((2, WIDTH), np.float32)
        features[:, FEATURES.index("distance")] = (0.1, 1.3)
        near, far = getattr(classifier, name).probability(features, finds=name == "finding")
        assert near > 0.6 and far < 0.3


def test_the_choice_of_sureness_limits_the_share_of_worse_clicks():
    (sample,) = made_up_samples("one", True, False, count=1)
    right = np.where(sample.wrong, 0.9, 0.1).astype(np.float32)
    misled = np.where(sample.wrong, 0.1, 0.55).astype(np.float32)
    sureness, figures = choose_sureness([(sample, right)] * 3 + [(sample, misled)] * 2, 0.05)
    assert figures["worse"] == 0 and figures["gain"] > 0.01
    assert max(sureness.voxel, sureness.mean) > 0.55


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
    # The weights stand for all voxels of the error that the click may repair.
    error = (scene.spleen & ~bitten).sum()
    assert 0.7 * error < first.weight[first.wrong].sum() < 1.3 * error
    assert first.gain(first.wrong) > 0.01 > 0 > first.gain(~first.wrong)
    assert any(each.missing for each in samples)


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
    measured = ClickMeasurement()
    arguments = (measured, "scene", scene.ct, labels, labels, AMOS, [BallBrush()])
    measure_case(*arguments, clicks=1)
    measure_case(*arguments, clicks=1, missing=True)
    assert [course.dice[0] for course in measured.courses] == [1.0, 0.0]
    assert (sitk.GetArrayViewFromImage(labels) == SPLEEN).any()
