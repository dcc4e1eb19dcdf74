"""Interrupted runs resume bit for bit, two runs never share a folder, and saved files are always complete."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.errors import OutputError, UserError
from dcaseg.evaluation.figures.curves import read_log
from dcaseg.file_lock import locked
from dcaseg.organs import AMOS
from dcaseg.training import trainer as training
from dcaseg.training.cases import load_case, prepare_case, save_case
from dcaseg.training.checkpoints import get_previous_path, load_checkpoint, save_checkpoint
from dcaseg.training.options import GridOptions
from dcaseg.training.run_folder import BEST, CHECKPOINT, LOCK, LOG
from dcaseg.training.sources import CTFile, CTFiles
from dcaseg.training.trainer import Trainer
from test_strategies import options_for, trainer_for
from test_training import OPTIONS, THREE_BALLS, case_of_balls, log_of

SHORT = replace(OPTIONS, steps=4)


def trainer_in(folder: Path, options=SHORT) -> Trainer:
    return Trainer(
        folder,
        options,
        THREE_BALLS,
        [case_of_balls(1), case_of_balls(2)],
        [case_of_balls(3, labeled=False)],
        [case_of_balls(4), case_of_balls(5)],
    )


def state_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder / name)
    return {**state["network"], **{f"averaged {key}": value for key, value in state["averaged"].items()}}


def require_same(one: Path, other: Path, name: str) -> None:
    states = state_of(one, name), state_of(other, name)
    assert [key for key, tensor in states[0].items() if not torch.equal(tensor, states[1][key])] == []


def logged(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer_in(folder).run(validate_every=2, save_every=2)
    return folder


def in_a_step(monkeypatch, send) -> None:
    plain = Trainer._backward

    def backward(trainer, *given):
        values = plain(trainer, *given)
        if trainer.step == 2:
            send()
        return values

    monkeypatch.setattr(Trainer, "_backward", backward)


def while_saving(monkeypatch, send) -> None:
    plain = torch.save

    def save(state, stream):
        send()
        plain(state, stream)

    monkeypatch.setattr(torch, "save", save)


def in_a_validation(monkeypatch, send) -> None:
    plain = training.validate

    def validate(network, cases, options, stop):
        class Cases(list):
            def __iter__(self):
                for index, case in enumerate(super().__iter__()):
                    if index == 0:
                        send()
                    yield case

        return plain(network, Cases(cases), options, stop=stop)

    monkeypatch.setattr(training, "validate", validate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(getattr(signal, name, signal.SIGTERM), marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP")),
    ],
)
@pytest.mark.parametrize("moment", [in_a_step, while_saving, in_a_validation])
def test_a_run_resumes_bit_for_bit_after_a_signal_at_any_moment(uninterrupted, tmp_path, monkeypatch, moment, number):
    sent: list[int] = []

    def send() -> None:
        if not sent:
            sent.append(number)
            signal.raise_signal(number)

    said: list[str] = []
    with monkeypatch.context() as patch:
        moment(patch, send)
        with pytest.raises(KeyboardInterrupt):
            trainer_in(tmp_path).run(validate_every=2, save_every=2, notify=said.append)
    assert sent and "Ctrl+C again" in said[0]
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] < 4
    again = trainer_in(tmp_path)
    again.resume()
    again.run(validate_every=2, save_every=2)
    for name in (CHECKPOINT, BEST):
        require_same(uninterrupted, tmp_path, name)
    assert logged(tmp_path) == logged(uninterrupted)


def test_an_interrupted_last_validation_is_repeated_after_resuming(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        in_a_validation(patch, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            trainer_in(tmp_path).run(validate_every=4)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 4 and not (tmp_path / BEST).exists()
    again = trainer_in(tmp_path)
    again.resume()
    again.run(validate_every=4)
    assert "dice" in log_of(again)[-1] and (tmp_path / BEST).exists()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_immediately_with_a_complete_checkpoint(uninterrupted, tmp_path, monkeypatch):
    from dcaseg.training import interruption

    monkeypatch.setattr(interruption, "_SAME_PRESS_SECONDS", 0.0)
    with monkeypatch.context() as patch:

        def press_twice() -> None:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.01)

        in_a_step(patch, press_twice)
        with pytest.raises(KeyboardInterrupt):
            trainer_in(tmp_path).run(validate_every=2, save_every=1)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 2
    again = trainer_in(tmp_path)
    again.resume()
    again.run(validate_every=2, save_every=1)
    require_same(uninterrupted, tmp_path, CHECKPOINT)


def test_two_signals_within_half_a_second_count_as_one(tmp_path, monkeypatch):
    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        in_a_step(patch, press_twice)
        with pytest.raises(KeyboardInterrupt):
            trainer_in(tmp_path).run(validate_every=9)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 3


def test_signal_handlers_are_restored_after_a_run(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer_in(tmp_path, replace(SHORT, steps=1)).run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_repeated_steps_after_a_kill_are_logged_once(tmp_path):
    trainer = trainer_in(tmp_path)
    trainer.run(validate_every=9)
    kept = (tmp_path / LOG).read_text()
    (tmp_path / LOG).write_text(kept + '{"step": 5, "head": 1.0}\n{"step": 6, "he')
    again = trainer_in(tmp_path, replace(SHORT, steps=5))
    again.resume()
    again.run(validate_every=9)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5]
    assert (tmp_path / LOG).read_text().startswith(kept)


def test_two_runs_cannot_train_in_one_folder(tmp_path, dca):
    with locked(tmp_path / LOCK):
        with pytest.raises(OutputError, match="Another run is using"):
            trainer_in(tmp_path).run()
        run = dca("train", "-o", tmp_path, "--steps", 1)
        assert run.code == 2 and "Another run is using" in run.err
    assert not (tmp_path / CHECKPOINT).exists() and not (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_a_longer_run_stays_in_its_stage(tmp_path):
    trainer = trainer_in(tmp_path)
    trainer.run()
    longer = trainer_in(tmp_path, replace(SHORT, steps=8))
    experts = [parameter.clone() for parameter in trainer.network.experts.parameters()]
    longer.resume()
    assert longer.strategy.get_step_state(4) == (4, "aggregation", 2, 6)
    longer.run()
    for before, after in zip(experts, longer.network.experts.parameters(), strict=True):
        assert torch.equal(before, after)
    # Again, from a checkpoint that contains the end of the stage.
    longest = trainer_in(tmp_path, replace(SHORT, steps=40))
    longest.resume()
    assert longest.strategy.get_step_state(8).stage == "aggregation"


def test_a_longer_run_extends_the_experts_stage(tmp_path):
    trainer = trainer_in(tmp_path)
    trainer._advance()
    tmp_path.mkdir(exist_ok=True)
    trainer.save()
    longer = trainer_in(tmp_path, replace(SHORT, steps=20))
    longer.resume()
    assert (
        longer.strategy.get_step_state(9).stage == "experts"
        and longer.strategy.get_step_state(10).stage == "aggregation"
    )
    shorter = trainer_in(tmp_path, replace(SHORT, steps=2, expert_stage_fraction=0.5))
    shorter.resume()
    assert shorter.strategy.get_step_state(1) == (1, "aggregation", 0, 1)


def staged_run(folder: Path, name: str, steps: int, **own) -> Trainer:
    """A run with stages: BCP, or the published CReST or SimiS."""
    return trainer_for(folder, options_for(name, steps=steps, strategy_options=own))


def stopped_at(step: int, folder: Path, name: str, steps: int, **own) -> Trainer:
    """A run that has stopped at ``step`` and saved a checkpoint."""
    trainer = staged_run(folder, name, steps, **own)
    folder.mkdir(exist_ok=True)
    while trainer.step < step:
        trainer._advance()
    trainer.save()
    return trainer


def forget_stages(folder: Path) -> None:
    """Remove what earlier versions did not store from the checkpoint in ``folder``."""
    state = load_checkpoint(folder / CHECKPOINT)
    del state["strategy"]["stages.first_steps"]
    save_checkpoint(folder / CHECKPOINT, {key: value for key, value in state.items() if key != "format"})


@pytest.mark.parametrize("is_earlier", [False, True])
def test_a_shorter_run_of_copy_paste_begins_its_second_stage_with_a_copy_of_the_student(tmp_path, is_earlier):
    before = stopped_at(4, tmp_path, "bcp", 10, pretraining=0.6)
    if is_earlier:
        forget_stages(tmp_path)
    assert before.strategy.get_step_state(4).stage == "pretraining"
    shorter = staged_run(tmp_path, "bcp", 5, pretraining=0.6)
    shorter.resume()
    assert shorter.strategy.get_step_state(4).stage == "self_training"
    start = [parameter.clone() for parameter in shorter.averaged.network.parameters()]
    shorter._advance()
    weights = zip(start, shorter.strategy.teacher.parameters(), shorter.network.parameters(), strict=True)
    for copied, teacher, student in weights:
        torch.testing.assert_close(teacher, 0.99 * copied + 0.01 * student)


@pytest.mark.parametrize("is_earlier", [False, True])
def test_a_longer_run_of_copy_paste_stays_in_its_second_stage(tmp_path, is_earlier):
    stopped_at(4, tmp_path, "bcp", 10, pretraining=0.3)
    if is_earlier:
        forget_stages(tmp_path)
    longer = staged_run(tmp_path, "bcp", 40, pretraining=0.3)
    longer.resume()
    assert longer.strategy.get_step_state(4) == (4, "self_training", 4, 40)
    teacher = [parameter.clone() for parameter in longer.strategy.teacher.parameters()]
    longer._advance()
    for one, other, student in zip(
        teacher, longer.strategy.teacher.parameters(), longer.network.parameters(), strict=True
    ):
        torch.testing.assert_close(other, 0.99 * one + 0.01 * student)
    # Again, from a checkpoint that contains the first step of the stage.
    longer.save()
    longest = staged_run(tmp_path, "bcp", 400, pretraining=0.3)
    longest.resume()
    assert longest.strategy.get_step_state(5) == (5, "self_training", 5, 400)


def test_a_longer_run_of_copy_paste_extends_its_first_stage(tmp_path):
    stopped_at(2, tmp_path, "bcp", 10)
    longer = staged_run(tmp_path, "bcp", 40)
    longer.resume()
    assert longer.strategy.get_step_state(19).stage == "pretraining"
    assert longer.strategy.get_step_state(20).stage == "self_training"


def test_a_copy_paste_run_of_an_earlier_version_keeps_its_first_stage(tmp_path):
    stopped_at(1, tmp_path, "bcp", 100)
    forget_stages(tmp_path)
    for _ in range(2):
        again = staged_run(tmp_path, "bcp", 100)
        again.resume()
        # A share of 0.118; since then, it is half of such a short run.
        assert again.strategy.get_step_state(11).stage == "pretraining"
        assert again.strategy.get_step_state(12).stage == "self_training"
        again.save()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option"), [("crest published", "generations"), ("simis published", "rounds")])
def test_a_resumed_run_neither_skips_nor_repeats_a_pseudo_labeling(tmp_path, name, option, monkeypatch):
    labeled_at: list[int] = []

    def resumed(folder: Path, steps: int) -> Trainer:
        trainer = staged_run(folder, name, steps, **{option: 2})
        trainer.resume()
        plain = trainer.strategy.select_new_cases

        def new_cases(step_state, pool):
            cases = plain(step_state, pool)
            if cases is not None:
                labeled_at.append(step_state.step)
            return cases

        monkeypatch.setattr(trainer.strategy, "select_new_cases", new_cases)
        while trainer.step < steps:
            trainer._advance()
        return trainer

    # The second generation would have begun at step 5, and begins at step 3 in the shorter run: now, at step 4.
    stopped_at(4, tmp_path / "shorter", name, 10, **{option: 2})
    resumed(tmp_path / "shorter", 6)
    assert labeled_at == [4]
    labeled_at.clear()
    # It has begun at step 3, and does not begin again at step 5.
    stopped_at(4, tmp_path / "longer", name, 6, **{option: 2})
    resumed(tmp_path / "longer", 10)
    assert labeled_at == []


@pytest.mark.parametrize("name", ["crest published", "cld", "basak", "dhc", "a_and_d", "ss_net", "magicnet"])
def test_a_skipped_step_does_not_change_the_statistics_of_a_strategy(tmp_path, name):
    trainer = trainer_for(tmp_path, options_for(name, steps=100, norm="batch", ramp_fraction=0.1))
    trainer._advance()
    before = [buffer.clone() for buffer in trainer.strategy.buffers()]
    plain = trainer._draw

    def damaged(step_state):
        batch = plain(step_state)
        return batch._replace(volumes=batch.volumes * float("nan"), unlabeled=batch.unlabeled * float("nan"))

    trainer._draw = damaged
    assert trainer._advance()["skipped"] == 1
    for one, other in zip(before, trainer.strategy.buffers(), strict=True):
        assert torch.equal(one, other)
    trainer._draw = plain
    assert "skipped" not in trainer._advance()
    assert any(not torch.equal(*each) for each in zip(before, trainer.strategy.buffers(), strict=True))


def test_the_best_weights_include_all_networks_of_a_strategy(tmp_path):
    options = replace(SHORT, strategy="cps", unsupervised_weight=0.1, unsup_weight_cutoff=0.0, ema_decay=None)
    trainer = trainer_in(tmp_path, options)
    trainer.run(validate_every=2)
    best = load_checkpoint(tmp_path / BEST)
    trainer.save(BEST)
    saved = load_checkpoint(tmp_path / BEST)["strategy"]
    assert saved and all(key.startswith("second.") for key in saved)
    marked = {key: value + 1 if value.is_floating_point() else value for key, value in best["strategy"].items()}
    save_checkpoint(
        tmp_path / BEST, {key: value for key, value in best.items() if key != "format"} | {"strategy": marked}
    )
    trainer.use_best()
    now = trainer.strategy.state_dict()
    assert [key for key, tensor in marked.items() if not torch.equal(now[key], tensor)] == []


def test_a_checkpoint_exists_at_every_moment(tmp_path, monkeypatch):
    path = tmp_path / CHECKPOINT
    save_checkpoint(path, {"step": 1})
    seen = []
    plain = Path.replace

    def watched(self, target):
        seen.append(path.exists())
        result = plain(self, target)
        seen.append(path.exists())
        return result

    monkeypatch.setattr(Path, "replace", watched)
    save_checkpoint(path, {"step": 2})
    assert seen and all(seen)
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 2 and load_checkpoint(get_previous_path(path))["step"] == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == [CHECKPOINT, get_previous_path(path).name]


KILLED = """
import os, sys, torch
from pathlib import Path
from dcaseg.training.checkpoints import save_checkpoint
path = Path(sys.argv[1])
save_checkpoint(path, {"step": 1})
plain = torch.save
def save(state, stream):
    plain(state, stream)
    stream.flush()
    os._exit(9)
torch.save = save
save_checkpoint(path, {"step": 2})
"""


@pytest.mark.slow
def test_the_next_run_removes_temporary_files_of_a_killed_process(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / CHECKPOINT)], check=False)
    assert len(list(tmp_path.iterdir())) == 2 and load_checkpoint(tmp_path / CHECKPOINT)["step"] == 1
    trainer_in(tmp_path, replace(SHORT, steps=1)).run()
    assert not [each.name for each in tmp_path.iterdir() if "partial" in each.name]


def _save_often(path: str, seed: int, times: int) -> None:
    case = case_of_balls(seed)
    for _ in range(times):
        save_case(case, Path(path))


def test_two_processes_can_prepare_the_same_case(tmp_path):
    path = tmp_path / "case.npz"
    spawning = multiprocessing.get_context("fork")
    processes = [spawning.Process(target=_save_often, args=(str(path), seed, 40)) for seed in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert load_case(path).hu.shape == (24, 40, 40)
    assert [each.name for each in tmp_path.iterdir()] == ["case.npz"]


def labeled_image(value: int) -> tuple[sitk.Image, sitk.Image]:
    hu = np.random.default_rng(0).normal(0, 300, (12, 16, 16)).astype(np.int16)
    hu[:3] = -1000
    ct = sitk.GetImageFromArray(hu)
    labels = np.zeros((12, 16, 16), np.uint16)
    labels[4] = value
    return ct, sitk.GetImageFromArray(labels)


def test_a_label_above_255_is_kept_and_rejected_by_name(tmp_path):
    ct, labels = labeled_image(262)
    case = prepare_case("ct 7", ct, labels, GridOptions(spacing=(1.0, 1.0, 1.0)))
    save_case(case, tmp_path / "case.npz")
    assert load_case(tmp_path / "case.npz").labels.max() == 262
    with pytest.raises(UserError, match="label map of ct 7 contains label 262"):
        Trainer(tmp_path, OPTIONS, AMOS, [case], [])


def test_labels_that_are_not_integers_are_rejected(tmp_path):
    ct, labels = labeled_image(2)
    with pytest.raises(UserError, match="not integers"):
        prepare_case("ct 7", ct, sitk.Cast(labels, sitk.sitkFloat32) + 0.5, GridOptions(spacing=(1.0, 1.0, 1.0)))


def files_of(tmp_path: Path, *entries: CTFile) -> CTFiles:
    return CTFiles("Some CTs", "CC0-1.0", "here", entries)


def write_pair(folder: Path, value: int) -> tuple[str, str]:
    folder.mkdir(parents=True)
    ct, labels = labeled_image(value)
    for image in (ct, labels):
        image.SetSpacing((20.0, 20.0, 20.0))
    paths = str(folder / "ct.nii.gz"), str(folder / "labels.nii.gz")
    for image, path in zip((ct, labels), paths, strict=True):
        sitk.WriteImage(image, path)
    return paths


def test_an_unannotated_label_in_the_map_is_an_error_that_names_the_ct(tmp_path):
    image, labels = write_pair(tmp_path / "patient 3", 2)
    with pytest.raises(UserError, match=r"label map of ct\.nii\.gz has voxels of label 2"):
        files_of(tmp_path, CTFile(image, labels, {}, (2,))).cases(
            tmp_path, GridOptions(spacing=(20.0, 20.0, 20.0)), True
        )


def test_cached_cases_have_the_names_of_their_cts(tmp_path):
    pairs = [write_pair(tmp_path / name, 2) for name in ("patient 1", "patient 2")]
    source = files_of(tmp_path, *(CTFile(*pair) for pair in pairs))
    for _ in range(2):
        cases = source.cases(tmp_path / "cache", GridOptions(spacing=(20.0, 20.0, 20.0)), True)
        assert [case.name for case in cases] == ["patient 1/ct.nii.gz", "patient 2/ct.nii.gz"]
    one = files_of(tmp_path, CTFile(*pairs[0])).cases(tmp_path / "cache", GridOptions(spacing=(20.0,) * 3), True)
    assert one[0].name == "ct.nii.gz"


def test_a_label_map_with_large_numbers_is_converted(tmp_path):
    image, labels = write_pair(tmp_path / "patient", 4000)
    grid = GridOptions(spacing=(20.0, 20.0, 20.0))
    [case] = files_of(tmp_path, CTFile(image, labels, {4000: 3, -1: 5})).cases(tmp_path / "cache", grid, True)
    assert set(np.unique(case.labels)) == {0, 3}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_dropout_on_the_gpu_resumes(tmp_path):
    options = replace(SHORT, strategy="ua_mt", unsupervised_weight=0.1, unsup_weight_cutoff=0.0)
    cases = [case_of_balls(1)], [case_of_balls(3, labeled=False)]
    trainer = Trainer(tmp_path, options, THREE_BALLS, *cases, device="cuda")
    trainer._advance()
    tmp_path.mkdir(exist_ok=True)
    trainer.save()
    expected = torch.rand(8, device="cuda")
    again = Trainer(tmp_path, options, THREE_BALLS, *cases, device="cuda")
    again.resume()
    assert torch.equal(torch.rand(8, device="cuda"), expected)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_validation_and_save_intervals(dca, tmp_path):
    tiny = ("--spacing", "14,14,14", "--filters", 1, "--patch", 32, "--batch", 1, "--device", "cpu")
    people = ("--labelled", 1, "--unlabelled", 0, "--validation", 1)
    out = tmp_path / "run"
    started = dca(
        *("train", "-o", out, *people, *tiny, "--steps", 6, "--minutes", 0, "--validate-every", 3, "--save-every", 2)
    )
    assert started.code == 0, started.err
    assert dca("train", "-o", out, "--resume").code == 0
    assert [line["step"] for line in logged(out) if "dice" in line] == [3, 6]
    record = json.loads((out / "run.json").read_text())
    assert (record["validate_every"], record["save_every"]) == (3, 2)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_command_ends_with_ctrl_c_between_two_steps(tmp_path):
    """A real process and a real signal: the exit code is that of a canceled run, and the checkpoint is complete."""
    tiny = ("--spacing", "14,14,14", "--filters", "1", "--patch", "32", "--batch", "1", "--device", "cpu")
    command = [sys.executable, "-m", "dcaseg.cli", "train", "-o", str(tmp_path / "run"), *tiny]
    command += ["--labelled", "1", "--unlabelled", "0", "--validation", "0", "--steps", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = tmp_path / "run" / LOG
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 2):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Ctrl+C again" in said
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT)["step"] == len(log.read_text().splitlines())


def test_a_folder_on_a_disk_without_locks_says_so(tmp_path, monkeypatch):
    """SQLite reports it as a lock of another process, for which the user would wait in vain."""
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with locked(tmp_path / "lock.sqlite"):
        with pytest.raises(OutputError, match="Another run is using"), locked(tmp_path / "lock.sqlite"):
            pass
        monkeypatch.setattr(fcntl, "lockf", no_locks)
        with pytest.raises(OutputError, match="does not support file locking"), locked(tmp_path / "lock.sqlite"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock.sqlite"]


@pytest.mark.parametrize(
    "change", [{"dice": {}}, {"dice": []}, {"total": [], "head": None}, {"step": 1e999}, {"step": "x"}]
)
def test_a_damaged_log_is_refused_in_one_line(change, tmp_path):
    line = {"step": 1, "total": 1.0, "dice": {"mean": 0.1, "liver": 0.2}}
    (tmp_path / LOG).write_text(json.dumps(line) + "\n")
    assert read_log(tmp_path / LOG) == [line]
    (tmp_path / LOG).write_text(json.dumps(line) + "\n" + json.dumps({**line, **change}) + "\n")
    with pytest.raises(UserError, match="is not the log"):
        read_log(tmp_path / LOG)


def test_a_prepared_case_in_a_zip_of_the_future_is_refused(tmp_path):
    """zipfile raises NotImplementedError, as it also does for some damaged bytes."""
    path = tmp_path / "case.npz"
    save_case(case_of_balls(1), path)
    content = bytearray(path.read_bytes())
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        at = content.find(start)
        while at >= 0:
            content[at + (4 if start[2] == 3 else 6)] = 121
            at = content.find(start, at + 4)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_case(path)
