"""Prefetching of patches, out-of-memory handling, custom samplers, and compact states."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcaseg.errors import OutputError, UserError
from dcaseg.training import compact_state
from dcaseg.training.activation_checkpointing import save_memory
from dcaseg.training.cases import Case
from dcaseg.training.checkpoints import load_checkpoint
from dcaseg.training.compact_state import is_compact, read_compact, write_compact
from dcaseg.training.options import TrainingOptions
from dcaseg.training.run_folder import CHECKPOINT
from dcaseg.training.sampling import MixedSampler, PatchSampler, Prefetcher, StepSampler
from dcaseg.training.trainer import Trainer
from test_training import OPTIONS, THREE_BALLS, case_of_balls, log_of

SHORT = replace(OPTIONS, steps=4)
CASES = [case_of_balls(1), case_of_balls(2)], [case_of_balls(3, labeled=False)]


def sampler_of(options=SHORT) -> StepSampler:
    return StepSampler(PatchSampler(CASES[0], options), PatchSampler(CASES[1], options), options)


def same(one, other) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        np.array_equal(a.volumes, b.volumes) and (a.labels is None or np.array_equal(a.labels, b.labels))
        for a, b in pairs
    )


def test_the_patches_of_a_step_do_not_depend_on_the_order_of_draws():
    one, other = sampler_of(), sampler_of()
    later = [one.draw(step, True) for step in (0, 1, 2)]
    assert same(other.draw(2, True), later[2])
    assert not same(later[0], later[1])
    assert other.draw(1, False).unlabeled is None
    # Two processes with half of the batch each have the patches of one process with the whole batch.
    halves = [
        StepSampler(PatchSampler(CASES[0], SHORT), None, SHORT, lambda indices, k=k: indices[k : k + 1]) for k in (0, 1)
    ]
    joined = np.concatenate([half.draw(1, False).labeled.volumes for half in halves])
    assert np.array_equal(joined, later[1].labeled.volumes)


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetched_patches_are_those_of_their_step(workers):
    ahead = Prefetcher(sampler_of(), lambda step: step >= 2, 5, workers)
    try:
        for step in range(5):
            assert same(
                [p for p in ahead.take(step, step >= 2) if p], [p for p in sampler_of().draw(step, step >= 2) if p]
            )
        # Steps that were not prefetched are drawn, too.
        assert ahead.take(4, False).unlabeled is None
    finally:
        ahead.close()


def test_the_next_step_is_drawn_during_the_current_one():
    class Slow:
        def draw(self, count, generator):
            time.sleep(0.2)
            return PatchSampler(CASES[0], SHORT).draw(count, generator)

    ahead = Prefetcher(StepSampler(Slow(), None, SHORT), lambda step: False, 10)
    ahead.take(0, False)
    time.sleep(0.9)
    started = time.monotonic()
    ahead.take(1, False)
    assert time.monotonic() - started < 0.2
    ahead.close()


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced_with_one_message(tmp_path):
    said: list[str] = []
    whole = Trainer(tmp_path / "whole", SHORT, THREE_BALLS, *CASES)
    whole.run()
    trainer = Trainer(tmp_path / "killed", SHORT, THREE_BALLS, *CASES)

    def kill(line: dict) -> None:
        if line["step"] == 1:
            for process in list(trainer._prefetcher._executor._processes.values()):
                os.kill(process.pid, signal.SIGKILL)

    trainer.run(report=kill, notify=said.append, workers=1)
    assert len(said) == 1 and "A process that draws patches has ended" in said[0]
    pairs = zip(whole.evaluated_network.parameters(), trainer.evaluated_network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_worker_processes_end_with_the_run_even_if_it_is_killed(tmp_path):
    pid = os.fork()
    if pid == 0:  # the run
        ahead = Prefetcher(sampler_of(), lambda step: False, 99, 1)
        (tmp_path / "worker").write_text(str(next(iter(ahead._executor._processes))))
        time.sleep(60)
        os._exit(0)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "worker").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    worker = int((tmp_path / "worker").read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while time.monotonic() < deadline and Path(f"/proc/{worker}").exists() and not _zombie(worker):
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists() or _zombie(worker)


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    step_state = trainer.strategy.get_step_state(0)
    trainer.strategy.train()
    trainer.optimizer.zero_grad(set_to_none=True)
    # In double precision, because rounding differs between convolutions of one patch and of two.
    trainer.strategy.double()
    batch = trainer._draw(step_state)
    batch = batch._replace(volumes=batch.volumes.double(), unlabeled=batch.unlabeled.double())
    trainer._backward(batch, step_state)
    return [parameter.grad.clone() for parameter in trainer.strategy.parameters() if parameter.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "norm"),
    [
        (1, "instance"),
        (2, "batch"),
        pytest.param(1, "batch", marks=pytest.mark.slow),
        pytest.param(2, "instance", marks=pytest.mark.slow),
    ],
)
def test_less_memory_gives_the_same_gradient(tmp_path, level, norm):
    options = replace(SHORT, expert_stage_fraction=0.0, norm=norm, unsup_weight_cutoff=0.0, ramp_fraction=0.0)
    plain, saving = (Trainer(tmp_path, options, THREE_BALLS, *CASES) for _ in range(2))
    save_memory(saving.strategy, level)
    saving._memory_level = level
    one, other = (torch.cat([each.flatten() for each in gradients(trainer)]) for trainer in (plain, saving))
    assert (one - other).norm() < 1e-5 * one.norm()
    for one, other in zip(plain.strategy.buffers(), saving.strategy.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_checkpointing_stores_less_for_the_backward_pass(tmp_path):
    kept = []
    for level in (0, 1):
        options = replace(SHORT, expert_stage_fraction=0.0, n_filters=4, n_stages=TrainingOptions().n_stages)
        trainer = Trainer(tmp_path, options, THREE_BALLS, *CASES)
        save_memory(trainer.strategy, level)
        storages = {}

        def note(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = trainer._draw(trainer.strategy.get_step_state(0))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = trainer.strategy("labelled", batch, trainer.strategy.get_step_state(0))
        kept.append(sum(storages.values()))
        del loss
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.slow
def test_a_run_out_of_memory_continues_with_less_and_one_message(tmp_path, monkeypatch):
    said: list[str] = []
    whole = Trainer(tmp_path / "whole", SHORT, THREE_BALLS, *CASES)
    whole.run()
    trainer = Trainer(tmp_path / "short", SHORT, THREE_BALLS, *CASES)
    plain, failures = trainer.strategy.forward, [1, 1]

    def forward(*given):
        loss = plain(*given)
        if trainer.step == 1 and failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    monkeypatch.setattr(trainer.strategy, "forward", forward)
    trainer.run(notify=said.append)
    assert len(said) == 1 and "not enough memory" in said[0] and trainer.step == 4
    for line, other in zip(log_of(whole), log_of(trainer), strict=True):
        assert {**line, "seconds": 0} == pytest.approx({**other, "seconds": 0}, rel=1e-2)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), r"2\.00 GiB"),
        # What oneDNN raised in a process with a limit on its memory.
        (RuntimeError("could not create a primitive"), "primitive"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["cuda", "onednn", "allocator"],
)
def test_a_run_that_still_runs_out_of_memory_ends_with_a_checkpoint(tmp_path, monkeypatch, error, problem):
    trainer = Trainer(tmp_path, SHORT, THREE_BALLS, *CASES)

    def forward(*given):
        raise error

    def break_it(line: dict) -> None:
        monkeypatch.setattr(trainer.strategy, "forward", forward)

    with pytest.raises(UserError, match=rf"not enough memory for a step .*{problem}"):
        trainer.run(report=break_it)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == 1


class PaintedSampler:
    """Returns tensors that differ in each draw, like a sampler that renders on the device."""

    def draw(self, count, generator):
        drawn = PatchSampler([case_of_balls(int(generator.integers(1000)))], SHORT).draw(count, generator)
        return drawn._replace(volumes=torch.from_numpy(drawn.volumes), labels=torch.from_numpy(drawn.labels))


@pytest.mark.slow
def test_a_run_trains_on_any_sampler_and_resumes_bit_for_bit(tmp_path):
    def trainer(name: str) -> Trainer:
        groups = Trainer(tmp_path, SHORT, THREE_BALLS, *CASES).partition
        mixed = MixedSampler([PaintedSampler(), PatchSampler(CASES[0], SHORT)], [3, 1])
        return Trainer(tmp_path / name, SHORT, THREE_BALLS, [], [], groups=groups, sampler=mixed)

    whole = trainer("whole")
    whole.run()
    first = trainer("parts")
    first._advance()
    first.folder.mkdir()
    first.save()
    second = trainer("parts")
    second.resume()
    second.run()
    pairs = zip(whole.evaluated_network.parameters(), second.evaluated_network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def starts(crop: str, **changes) -> np.ndarray:
    """The start positions of 2,000 patches of 8 voxels on the first axis of a case with 24 voxels."""
    hu = np.broadcast_to(np.arange(24, dtype=np.int16)[:, None, None], (24, 40, 40)).copy()
    options = replace(OPTIONS, patch=(8, 8, 8), foreground_fraction=0.0, crop=crop, augment=False, **changes)
    options = replace(options, grid=replace(options.grid, hu_window=(0.0, 32.0)))
    volumes = PatchSampler([Case("slope", hu, None)], options).draw(2000, np.random.default_rng(0)).volumes
    return np.rint(volumes[:, 0, 0, 0, 0] * 32).astype(int)


def test_crop_position_makes_all_positions_equally_likely():
    counts = np.bincount(starts("position"), minlength=17)
    assert len(counts) == 17 and counts.min() > 70 and counts.max() < 170
    centered = np.bincount(starts("center"), minlength=17)
    # Five of the 24 centers are moved to each of the two ends.
    assert centered[0] > 300 and centered[16] > 200


def test_short_scans_repeat_pads_with_end_slices():
    hu = np.stack([np.full((40, 40), value, np.int16) for value in (10, 20, 30, 40)])
    labels = np.stack([np.full((40, 40), value, np.uint8) for value in (1, 2, 3, 3)])
    options = replace(OPTIONS, patch=(16, 48, 32), short_scans="repeat", foreground_fraction=0.0)
    options = replace(options, grid=replace(options.grid, hu_window=(0.0, 50.0)))
    volumes, drawn, *_ = PatchSampler([Case("short", hu, labels)], options).draw(1, np.random.default_rng(0))
    assert drawn[0, :, 24, 16].tolist() == [1] * 7 + [2, 3] + [3] * 7
    assert np.rint(volumes[0, 0, :, 24, 16] * 50).astype(int).tolist() == [10] * 7 + [20, 30] + [40] * 7
    # In the other axes, it is padded with air.
    assert (drawn[0, :, :4] == 0).all() and (volumes[0, 0, :, :4] == 0).all()


@pytest.mark.slow
def test_norms_and_biases_do_not_decay(tmp_path):
    trainer = Trainer(tmp_path, SHORT, THREE_BALLS, *CASES)
    decaying, spared = trainer.optimizer.param_groups
    assert spared["weight_decay"] == 0 and decaying["weight_decay"] == SHORT.weight_decay
    assert {parameter.ndim for parameter in spared["params"]} == {1}
    assert {parameter.ndim for parameter in decaying["params"]} == {5}
    trainer.run()
    again = Trainer(tmp_path, replace(SHORT, steps=5), THREE_BALLS, *CASES)
    again.resume()
    again.run()


def test_all_parameters_decay_in_the_papers_preset_and_in_runs_of_earlier_versions():
    assert TrainingOptions.make_paper_preset().decay == "all"
    written = SHORT.to_json()
    del written["decay"]
    assert TrainingOptions.from_json(written).decay == "all"


@pytest.mark.slow
def test_the_fused_optimizer_takes_the_same_steps_as_the_plain_one(tmp_path):
    fused = Trainer(tmp_path / "fused", SHORT, THREE_BALLS, *CASES)
    plain = Trainer(tmp_path / "plain", SHORT, THREE_BALLS, *CASES)
    assert fused.optimizer.defaults["fused"]
    for group in plain.optimizer.param_groups:
        group["fused"] = False
    for _ in range(3):
        fused._advance()
        plain._advance()
    for ours, theirs in zip(fused.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def after_three_steps(tmp_path_factory) -> Trainer:
    trainer = Trainer(tmp_path_factory.mktemp("run"), SHORT, THREE_BALLS, *CASES)
    for _ in range(3):
        trainer._advance()
    return trainer


@pytest.mark.parametrize("detail", compact_state._DETAILS, ids=str)
def test_a_run_continues_from_a_compact_state(after_three_steps, tmp_path, monkeypatch, detail):
    monkeypatch.setattr(compact_state, "_DETAILS", (detail,))
    trainer = after_three_steps
    assert trainer.export(tmp_path / "state", {"name": "a run"}) == detail
    assert is_compact(tmp_path / "state")
    assert read_compact(tmp_path / "state")[1] == {"name": "a run"}
    again = Trainer(tmp_path / "again", SHORT, THREE_BALLS, *CASES)
    again.resume(tmp_path / "state")
    assert again.step == 3 and again.averaged.updates == trainer.averaged.updates
    # A 16-bit floating-point number has 11 significant bits.
    digits = min(detail.weights, 11)
    for one, other in zip(trainer.evaluated_network.parameters(), again.evaluated_network.parameters(), strict=True):
        assert (one - other).abs().max() <= one.abs().max() * 2.0 ** (1 - digits) + 1e-7
    if detail.second_moments == "whole":
        before, now = trainer.optimizer.state_dict()["state"], again.optimizer.state_dict()["state"]
        assert before.keys() == now.keys()
        for index, moments in before.items():
            for name, value in moments.items():
                torch.testing.assert_close(
                    now[index][name].float(), value.float(), rtol=2e-3, atol=1e-3 * float(value.abs().max())
                )
    again.run()
    assert again.step == 4 and all(torch.isfinite(value).all() for value in again.network.parameters())


def test_second_moments_are_approximated_by_means_of_rows_and_columns(tmp_path):
    rows, columns = torch.rand(6, 1) + 0.1, torch.rand(1, 4000) + 0.1
    moments = {"step": torch.tensor(7.0), "exp_avg": torch.randn(6, 4000), "exp_avg_sq": rows * columns * 1e-9}
    optimizer = {"state": {0: moments}, "param_groups": [{"params": [0]}]}
    state = {"network": {}, "strategy": {}, "optimizer": optimizer, "step": 7}
    whole, means = write_compact(tmp_path / "a", state), write_compact(tmp_path / "b", state, None, 60_000)
    assert (whole.second_moments, means.second_moments) == ("whole", "means")
    for name in ("a", "b"):
        [read] = read_compact(tmp_path / name)[0]["optimizer"]["state"].values()
        torch.testing.assert_close(read["exp_avg_sq"], moments["exp_avg_sq"], rtol=5e-3, atol=0)
        assert read["step"] == 7


def test_a_damaged_or_foreign_state_is_rejected(tmp_path):
    trainer = Trainer(tmp_path / "run", SHORT, THREE_BALLS, *CASES)
    trainer.export(tmp_path / "state")
    content = (tmp_path / "state").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "text").write_text("no state")
    for name in ("cut", "text", "missing"):
        with pytest.raises(UserError, match=r"export-state"):
            trainer.resume(tmp_path / name)
    with pytest.raises(OutputError, match="does not fit"):
        trainer.export(tmp_path / "small", limit_bytes=1000)
    with pytest.raises(OutputError, match="There is no folder"):
        trainer.export(tmp_path / "no folder" / "state")


@pytest.mark.slow
def test_the_command_exports_a_state_and_continues_from_it(dca, tmp_path):
    tiny = ("--spacing", "14,14,14", "--filters", 1, "--patch", 32, "--batch", 1, "--device", "cpu")
    people = ("--labelled", 1, "--unlabelled", 0, "--validation", 1)
    cache = ("--cache", tmp_path / "cases")
    state = tmp_path / "state"
    first = dca("train", "-o", tmp_path / "a", *people, *tiny, *cache, "--steps", 2, "--export-state", state)
    assert first.code == 0, first.err
    assert f"Written: {state} (" in first.out.replace("\n", "")
    second = dca("train", "-o", tmp_path / "b", "--from-state", state, *cache, "--steps", 3)
    assert second.code == 0, second.err
    assert "at step 3 of 3" in second.out
    assert json.loads((tmp_path / "b" / "run.json").read_text())["options"]["n_filters"] == 1
    third = dca("train", "-o", tmp_path / "c", "--init", state, *people, *tiny, *cache, "--steps", 1)
    assert third.code == 0, third.err
    assert json.loads((tmp_path / "c" / "run.json").read_text())["initial"]["name"] == "state"
    for wrong in (("--from-state", state), ("--from-state", tmp_path / "none"), ("--resume", "--from-state", state)):
        assert dca("train", "-o", tmp_path / "b", *wrong).code == 2
