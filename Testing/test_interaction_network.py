"""The click network: starts as the identity, learns, resumes exactly, and is stored like other models."""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np
import pytest
import torch

from dcaseg.errors import BundleError, UserError
from dcaseg.file_lock import locked_folder
from dcaseg.imaging.grid import Grid
from dcaseg.imaging.writers import write_image
from dcaseg.interaction import engines
from dcaseg.interaction.click_network import (
    CHANNELS,
    ClickNetwork,
    NetworkEngine,
    load_click_bundle,
    make_cube_grid,
    make_network_input,
    save_click_bundle,
)
from dcaseg.interaction.click_options import ClickNetworkOptions
from dcaseg.interaction.engines import create_default_engine, create_engine
from dcaseg.interaction.session import CorrectionSession
from dcaseg.interaction.strokes import Stroke, to_point
from dcaseg.interaction.view import View, ViewStroke
from dcaseg.models import store
from dcaseg.training.cases import Case
from dcaseg.training.click_training import (
    ClickSampler,
    ClickTrainer,
    simulate_click,
    simulate_mask,
)
from dcaseg.training.options import ClickTrainingOptions
from dcaseg.training.run_folder import LOCK, LOG
from dcaseg.worker.handlers import CorrectionHandler
from dcaseg.worker.protocol import Correct

torch.set_num_threads(1)
SMALL = ClickNetworkOptions(n_filters=4, side=16, spacing_mm=4.0)


def ball(shape, center, radius):
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape)]
    return (z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2 <= radius**2


def make_case(seed=0):
    """Two organs in fat, 4 mm voxels."""
    random = np.random.default_rng(seed)
    shape = (32, 32, 32)
    labels = np.zeros(shape, np.uint8)
    labels[ball(shape, (16, 16, 11), 6)] = 1
    labels[ball(shape, (16, 16, 22), 5)] = 2
    hu = np.array([-100, 110, 50])[labels] + random.normal(0, 10, shape)
    return Case(f"case {seed}", hu.astype(np.int16), labels)


@pytest.fixture(scope="module")
def case():
    return make_case()


def view_of(case, voxel, mask, spacing=4.0):
    grid = Grid(case.hu.shape[::-1], (spacing,) * 3, (5.0, -9.0, 3.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    stroke = ViewStroke(np.array([voxel]), True, 5.0)
    return View(grid, case.hu.astype(np.float32), mask, mask, np.zeros_like(mask), (stroke,))


def test_a_fresh_network_is_the_identity(case):
    network = ClickNetwork(4, 16, 4.0).eval()
    mask = case.labels == 1
    stroke = ViewStroke(np.array([[8, 8, 8]]), True, 5.0)
    cube = tuple(slice(8, 24) for _ in range(3))
    inputs = make_network_input(case.hu[cube].astype(np.float32), mask[cube], ~mask[cube], [stroke], 4.0)
    assert inputs.shape == (len(CHANNELS), 16, 16, 16)
    with torch.inference_mode():
        odds = network(torch.from_numpy(inputs)[None])
    assert odds.shape == (1, 16, 16, 16)
    assert np.array_equal(odds[0].numpy() > 0, mask[cube])


def test_a_network_that_repeats_the_mask_changes_only_the_clicked_voxel(case):
    network = ClickNetwork(4, 16, 4.0)
    mask = case.labels == 1
    found = NetworkEngine(network).predict_foreground(view_of(case, (16, 16, 17), mask)) > 0.5
    assert np.argwhere(found != mask).tolist() == [[16, 16, 17]]


def test_the_cube_lies_around_the_click_on_any_grid(case):
    view = view_of(case, (20, 9, 13), case.labels == 1)
    cube = make_cube_grid(view, SMALL)
    middle = np.array(cube.origin) + cube.axes @ (np.full(3, 8) * np.array(cube.spacing))
    place = np.array(view.grid.origin) + view.grid.axes @ (np.array([13, 9, 20]) * 4.0)
    assert np.allclose(middle, place)


def test_simulated_masks_have_errors_and_clicks_lie_in_them(case):
    random = np.random.default_rng(0)
    truth = case.labels == 1
    kinds = set()
    for _ in range(30):
        mask = simulate_mask(truth, case.labels, 1, 4.0, random)
        click = simulate_click(mask, truth, 4.0, random)
        if click is not None:
            at, adds = click
            assert truth[tuple(at)] == adds and mask[tuple(at)] != adds
            kinds.add(adds)
    assert kinds == {True, False}
    assert simulate_click(truth, truth, 4.0, random) is None


def test_samples_have_the_click_in_the_middle_and_an_error_there(case):
    sampler = ClickSampler([case], SMALL, np.random.default_rng(1))
    for _ in range(10):
        sample = sampler.draw()
        assert sample.features.shape == (len(CHANNELS), 16, 16, 16) and np.isfinite(sample.features).all()
        assert sample.truth[8, 8, 8] != sample.mask[8, 8, 8]
        added, removed = sample.features[2], sample.features[3]
        assert (added if sample.truth[8, 8, 8] else removed)[8, 8, 8] == 1.0


def trainer_in(folder, case, steps):
    folder.mkdir(exist_ok=True)
    return ClickTrainer(folder, ClickTrainingOptions(SMALL, steps=steps, batch=2, warmup_steps=5), [case], [case])


@pytest.mark.slow
def test_training_improves_the_clicks(case, tmp_path):
    options = ClickTrainingOptions(SMALL, steps=60, batch=4, learning_rate=5e-3, warmup_steps=5)
    (tmp_path / "run").mkdir()
    trainer = ClickTrainer(tmp_path / "run", options, [case], [case])
    before = trainer.validate(16)
    assert before["dice_before"] == before["dice_after"]
    trainer.run()
    after = trainer.validate(16)
    assert after["dice_after"] > after["dice_before"] + 0.05
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    assert lines[-1]["step"] == 60 and lines[0]["loss"] > lines[-2]["loss"]


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_uninterrupted_one(case, tmp_path):
    whole = trainer_in(tmp_path / "whole", case, 6)
    whole.run()
    first = trainer_in(tmp_path / "halves", case, 6)
    for _ in range(3):
        first._train_step()
        first.step += 1
    first.save()
    second = trainer_in(tmp_path / "halves", case, 6)
    second.resume()
    assert second.step == 3
    second.run()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[name]), name
    other = ClickTrainer(
        tmp_path / "halves", ClickTrainingOptions(SMALL, steps=6, batch=1, warmup_steps=5), [case], [case]
    )
    with pytest.raises(UserError, match="other options"):
        other.resume()


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_after_the_step_and_the_resumed_run_ends_as_the_whole_one(case, tmp_path, number):
    whole = trainer_in(tmp_path / "whole", case, 4)
    whole.run(log_every=1)
    stopped = trainer_in(tmp_path / "stopped", case, 4)
    notes = []

    def interrupt(line):
        if line["step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        stopped.run(log_every=1, report=interrupt, notify=notes.append)
    assert stopped.step == 2 and len(notes) == 1 and "saved" in notes[0]
    resumed = trainer_in(tmp_path / "stopped", case, 4)
    resumed.resume()
    assert resumed.step == 2
    resumed.run()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_two_processes_cannot_train_in_one_folder(dca, tmp_path):
    folder = tmp_path / "run"
    with locked_folder(folder, LOCK):
        run = dca("train-clicks", "-o", folder, "--phantoms", 1)
        assert run.code == 2 and "Another run is using" in run.err


def test_a_run_without_organs_is_refused(case, tmp_path):
    bare = Case("bare", case.hu, np.zeros_like(case.labels))
    with pytest.raises(UserError, match="No case has a labeled organ"):
        trainer_in(tmp_path / "run", bare, 1)


@pytest.fixture
def bundle(tmp_path):
    network = ClickNetwork(4, 16, 4.0)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    return network, save_click_bundle(tmp_path / "clicks", network, "clicks", (), 7, {"dice_after": 0.9})


def test_a_bundle_restores_the_network(bundle, case):
    network, saved = bundle
    loaded = load_click_bundle(saved.folder)
    assert (loaded.steps, loaded.options, loaded.scores) == (7, network.options, {"dice_after": 0.9})
    view = view_of(case, (16, 16, 17), case.labels == 1)
    one, other = (NetworkEngine(each).predict_foreground(view) for each in (network, loaded.network()))
    # Weights are stored as float16.
    assert ((one > 0.5) == (other > 0.5)).mean() > 0.999


def test_a_bundle_of_other_weights_is_refused(bundle):
    _, saved = bundle
    path = saved.folder / saved.weights.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match="checksum"):
        load_click_bundle(saved.folder).network()


def test_other_folders_are_not_click_bundles(bundle, small_bundle, tmp_path):
    _, saved = bundle
    with pytest.raises(BundleError, match="not the bundle of a click network"):
        load_click_bundle(small_bundle)
    with pytest.raises(BundleError, match="not the bundle of a click network"):
        load_click_bundle(tmp_path / "nowhere")
    metadata = saved.folder / "configs" / "metadata.json"
    content = json.loads(metadata.read_text())
    del content["dca_clicks"]["network"]
    metadata.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="damaged"):
        load_click_bundle(saved.folder)


def test_a_session_with_the_network_changes_nothing_outside_its_cube(bundle, case):
    network, _ = bundle
    view = view_of(case, (16, 16, 17), case.labels == 1)
    ct, labels = view.grid.make_image(case.hu), view.grid.make_image(case.labels)
    session = CorrectionSession(ct, labels, {1: "spleen", 2: "liver"}, engine=NetworkEngine(network))
    change = session.apply(1, Stroke((to_point((16, 16, 17), view.grid),)))
    assert change.engine == "network"
    changed = np.argwhere(session.labels != case.labels)
    assert len(changed) and (np.abs(changed - (16, 16, 17)) <= 8).all()
    session.undo()
    assert np.array_equal(session.labels, case.labels)


@pytest.fixture
def computer(tmp_path, monkeypatch):
    """A computer without any bundle; returns the folder of the shipped ones."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DCA_MODELS", raising=False)
    monkeypatch.setattr(store, "_get_shipped_folders", lambda: [tmp_path / "shipped"])
    return tmp_path / "shipped"


def test_a_shipped_click_network_becomes_the_default_engine(bundle, computer, monkeypatch):
    network, _ = bundle
    assert create_default_engine().name == "classifier"
    with pytest.raises(UserError, match="engine 'dca-clicks' does not exist"):
        create_engine("dca-clicks")
    save_click_bundle(computer / "dca-clicks", network, "dca-clicks", [], 5)
    assert (
        create_default_engine().name == create_engine("auto").name == create_engine("dca-clicks").name == "dca-clicks"
    )
    assert create_engine("classifier").name == "classifier"
    # It is not a model that segments.
    assert store.find_bundles() == [] and store.find_shipped_bundles() == []
    assert store.find_click_bundles() == [computer / "dca-clicks"]
    monkeypatch.setitem(sys.modules, "torch", None)
    assert create_default_engine().name == "classifier"
    with pytest.raises(UserError, match="needs PyTorch"):
        create_engine("dca-clicks")


def test_a_damaged_shipped_network_is_reported_and_clicks_still_work(bundle, computer, caplog):
    network, _ = bundle
    saved = save_click_bundle(computer / "dca-clicks", network, "dca-clicks", [], 5)
    weights = saved.folder / saved.weights.file
    weights.write_bytes(weights.read_bytes()[:-1])
    assert create_default_engine().name == "classifier"
    assert "dca-clicks" in caplog.text
    with pytest.raises(BundleError):
        create_engine("dca-clicks")


def test_the_worker_answers_with_the_shipped_network_which_it_loads_once(bundle, case, computer, tmp_path, monkeypatch):
    network, _ = bundle
    save_click_bundle(computer / "dca-clicks", network, "dca-clicks", [], 5)
    loaded, load = [], engines._create_network_engine

    def count(folder):
        loaded.append(folder)
        return load(folder)

    monkeypatch.setattr(engines, "_create_network_engine", count)
    view = view_of(case, (16, 16, 17), case.labels == 1)
    write_image(view.grid.make_image(case.hu), tmp_path / "ct.nrrd")
    write_image(view.grid.make_image(case.labels), tmp_path / "labels.nrrd")
    corrections = CorrectionHandler()

    def ask(action):
        return corrections.answer(Correct("1", action), lambda *_: None, lambda: False).answer

    for _ in range(2):
        opened = ask({"type": "open", "ct": str(tmp_path / "ct.nrrd"), "labels": str(tmp_path / "labels.nrrd")})
        points = [list(to_point((16, 16, 17), view.grid))]
        stroke = {"type": "stroke", "session": opened["session"], "label": 1, "points": points}
        assert ask({**stroke, "add": None, "patch": str(tmp_path / "patch.nrrd")})["engine"] == "dca-clicks"
    assert len(loaded) == 1


@pytest.mark.slow
def test_train_clicks_trains_resumes_and_writes_a_bundle_for_dca_correct(dca, tmp_path):
    run_folder, made = tmp_path / "run", tmp_path / "bundle"
    common = ("train-clicks", "-o", run_folder)
    run = dca(*common, "--phantoms", 1, "--steps", 3, "--batch", 1, "--filters", 2, "--side", 16, "--spacing", 6.0,
              "--minutes", 0.0)  # fmt: skip
    assert run.code == 0, run.err
    assert "at step 0 of 3" in run.out
    assert dca(*common, "--phantoms", 1).code == 2
    changed = dca(*common, "--resume", "--phantoms", 2, "--batch", 2)
    assert changed.code == 2 and "cannot be changed: --phantoms, --batch." in changed.err
    run = dca(*common, "--resume", "--steps", 4, "--bundle", made)
    assert run.code == 0, run.err
    assert "at step 4 of 4" in run.out
    run = dca(*common, "--resume")
    assert run.code == 0 and "at step 4 of 4" in run.out, run.err
    bundle = load_click_bundle(made)
    assert bundle.steps == 4 and bundle.training_data[0].synthetic
    assert create_engine(str(made)).name == "dca-clicks"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--side", "20"], "--side cannot be 20"), (["--resume"], "not contain a run of train-clicks")],
)
def test_train_clicks_refuses_invalid_options(dca, tmp_path, arguments, message):
    run = dca("train-clicks", "-o", tmp_path / "run", *arguments)
    assert run.code == 2 and message in run.err


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("weights", {"file": "../../secret.safetensors"}),
        ("weights", {"bytes": 1 << 50}),
        ("network", {"n_filters": 10**6}),
        ("network", {"n_filters": 4.5}),
        ("network", {"side": 1 << 20}),
    ],
)
def test_a_click_bundle_cannot_name_other_files_or_huge_networks(bundle, part, value):
    _, saved = bundle
    metadata = saved.folder / "configs" / "metadata.json"
    content = json.loads(metadata.read_text())
    content["dca_clicks"][part] |= value
    metadata.write_text(json.dumps(content))
    with pytest.raises(BundleError):
        load_click_bundle(saved.folder)
