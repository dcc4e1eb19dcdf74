"""Compares our trainer with a plain MONAI loop and with nnU-Net's trainer: samples per second, CPU time, memory.

All train the V-Net of ``dca train --strategy vnet`` on one labeled phantom, with the same size and number of patches.
Ours and MONAI's use AdamW and no spatial augmentation. The MONAI loop follows its tutorials: CacheDataset,
RandCropByPosNegLabeld, three random intensity transforms, DiceCELoss, single precision, and the default memory format.
Our loop is measured with its usual precision (see ``training.mixed_precision``), in single precision, and with the
usual precision and the network compiled by TorchInductor.

nnU-Net's trainer has its own data loader, augmentation (rotation and scaling, blur, noise, gamma and others), loss and
optimizer (SGD), and single precision, its default on a CPU. It draws patches in the same process, and the V-Net has no
deep supervision.

Runs in a separate process: python -m dcaseg.benchmark.training_loops LOOP OPTIONS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..inference.backends.compiled import find_compiler
from ..organs import AMOS
from ..synthesis.phantom.case import generate
from ..training.cases import Case, prepare_case
from ..training.options import TrainingOptions
from ..training.strategies.base import Batch, StepState, build_vnet
from ..training.trainer import Trainer
from ..training.training_set import divide
from .process_cost import ProcessFailedError
from .step_cost import get_peak_mib

NNUNET = "nnU-Net's trainer"
OURS = "ours"
COMPILED = "ours, compiled"
LOOPS = (OURS, "ours, single precision", COMPILED, "monai", NNUNET)
_SCAN_MM = (4.0, 4.0, 5.0)


@dataclass(frozen=True)
class LoopCost:
    """The cost of the steps after the first.

    ``samples_per_second`` refers to wall time, ``cpu_seconds`` is the CPU time of a sample over all threads,
    ``network_share`` the fraction of time in forward pass, backward pass and optimizer, ``peak_mib`` the peak memory of
    the process in MiB.
    """

    loop: str
    samples: int
    samples_per_second: float
    cpu_seconds: float
    network_share: float
    peak_mib: float


def find_missing_requirement(loop: str) -> str | None:
    """What a loop in ``LOOPS`` needs and is not installed, or None."""
    if loop == NNUNET and find_spec("nnunetv2") is None:
        return "nnunetv2"
    return "a C++ compiler" if loop == COMPILED and find_compiler() is None else None


def measure_loop(
    loop: str, options: TrainingOptions, device: str = "cpu", steps: int = 5, threads: int | None = None
) -> LoopCost:
    """Measure ``steps`` of a loop in ``LOOPS``, in a separate process. Raises ProcessFailedError if it fails."""
    args = json.dumps({"options": options.to_json(), "device": device, "steps": steps, "threads": threads})
    command = [sys.executable, "-m", f"{__package__}.training_loops", loop, args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise ProcessFailedError(" ".join(done.stderr.strip().splitlines()[-3:]))
    return LoopCost(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure_loops(
    options: TrainingOptions, device: str, steps: int, threads: int | None, rounds: int, warn: Callable[[str], None]
) -> list[LoopCost]:
    """Measure all loops in ``LOOPS`` that can run, ``rounds`` times in turn; of each, the run of median speed.

    ``warn`` gets a sentence about each loop that is left out. Raises ProcessFailedError if our own loop fails.
    """
    names, runs = list(LOOPS), []
    for name in LOOPS:
        if (needed := find_missing_requirement(name)) is not None:
            names.remove(name)
            warn(f"{name} was skipped: {needed} is not installed.")
    for _round in range(rounds):
        for name in tuple(names):
            try:
                runs.append(measure_loop(name, options, device, steps, threads))
            except ProcessFailedError as error:
                # Other programs and compilers fail for reasons of their own; the other measurements are worth keeping.
                if name == OURS:
                    raise
                names.remove(name)
                warn(f"{name} failed and was skipped: {error}.")
    by_speed = sorted(runs, key=lambda cost: cost.samples_per_second)
    return [[cost for cost in by_speed if cost.loop == name][rounds // 2] for name in names]


class _Clock:
    """Measures wall and CPU time of the steps after the first, and the wall time in the network."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = 0
        self.network = self._started = self._cpu = 0.0

    def count_step(self) -> None:
        """Count a finished step."""
        self._wait()
        self._steps += 1
        if self._steps == 1:
            # The first step is excluded, since it also loads kernels and allocates memory.
            self.network, self._started, self._cpu = 0.0, time.perf_counter(), time.process_time()

    def measure_network_time(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` and count its time as time in the network."""
        self._wait()
        started = time.perf_counter()
        result = work()
        self._wait()
        self.network += time.perf_counter() - started
        return result

    def compute_cost(self, loop: str, batch: int) -> LoopCost:
        """The cost so far, with ``batch`` samples per step."""
        seconds, cpu = time.perf_counter() - self._started, time.process_time() - self._cpu
        samples = (self._steps - 1) * batch
        return LoopCost(
            loop,
            samples,
            samples / seconds,
            cpu / samples,
            min(self.network / seconds, 1.0),
            get_peak_mib(self._device),
        )

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _measure_our_trainer(loop: str, options: TrainingOptions, device: torch.device, case: Case) -> LoopCost:
    options = replace(options, spatial_augmentation=False)
    clock = _Clock(device)

    class Timed(Trainer):
        def _advance(self) -> dict[str, float]:
            values = super()._advance()
            clock.count_step()
            return values

        def _backward(self, batch: Batch, step_state: StepState) -> dict[str, float]:
            losses: dict[str, float] = clock.measure_network_time(
                lambda: super(Timed, self)._backward(batch, step_state)
            )
            return losses

        def _update(self, step_state: StepState, values: dict[str, float]) -> None:
            clock.measure_network_time(lambda: super(Timed, self)._update(step_state, values))

    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(Path(folder), options, AMOS, [case], [], device=str(device))
        if loop == COMPILED:
            trainer.network.compile(dynamic=False)
        costs: list[LoopCost] = []

        def report(line: dict[str, Any]) -> None:
            if line["step"] == options.steps:
                costs.append(clock.compute_cost(loop, options.labeled_per_step))

        trainer.run(save_every=10**9, report=report)
    return costs[0]


def _measure_monai_loop(options: TrainingOptions, device: torch.device, case: Case) -> LoopCost:
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DiceCELoss
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        RandCropByPosNegLabeld,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
        ScaleIntensityRanged,
        SpatialPadd,
    )

    assert case.labels is not None
    keys = ["image", "label"]
    low, high = options.grid.hu_window
    transforms = Compose(
        [
            EnsureChannelFirstd(keys, channel_dim="no_channel"),
            ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
            SpatialPadd(keys, options.patch),
            RandCropByPosNegLabeld(keys, "label", options.patch, pos=3, neg=1, num_samples=options.labeled_per_step),
            RandScaleIntensityd("image", 0.15, prob=1.0),
            RandShiftIntensityd("image", 0.06, prob=1.0),
            RandGaussianNoised("image", prob=0.6, std=0.05),
        ]
    )
    item = {"image": case.hu.astype("float32"), "label": case.labels.astype("int64")}
    dataset = CacheDataset([item] * options.steps, transforms, cache_num=1, progress=False)
    loader = DataLoader(dataset, batch_size=1, num_workers=0)
    network = build_vnet(options, divide([case], AMOS, options.partition)).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    clock = _Clock(device)
    for batch in loader:
        volumes, labels = batch["image"].to(device), batch["label"].to(device)

        def step(volumes: Any = volumes, labels: Any = labels) -> None:
            optimizer.zero_grad()
            loss_of(network(volumes), labels).backward()
            optimizer.step()

        clock.measure_network_time(step)
        clock.count_step()
    return clock.compute_cost("monai", options.labeled_per_step)


def _measure_nnunet_trainer(options: TrainingOptions, device: torch.device, case: Case) -> LoopCost:
    with tempfile.TemporaryDirectory() as folder:
        # nnU-Net reads these when it is imported. Without worker processes, the CPU time is that of this process.
        os.environ |= {"nnUNet_preprocessed": folder, "nnUNet_results": folder, "nnUNet_n_proc_DA": "0"}
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from .peers.nnunet import CONFIGURATION, generate_dataset_json, make_plans

        class WithVNet(nnUNetTrainer):
            @staticmethod
            def build_network_architecture(*args: Any, **settings: Any) -> torch.nn.Module:
                return build_vnet(options, divide([case], AMOS, options.partition))

            def set_deep_supervision_enabled(self, enabled: bool) -> None:
                pass

            def plot_network_architecture(self) -> None:
                pass

        # nnU-Net's spacing has the order of the array axes.
        model_plans = make_plans(options.grid.spacing[::-1], options.patch, options.labeled_per_step)
        _write_preprocessed(Path(folder) / model_plans["dataset_name"], model_plans, case)
        # Versions before 2.7 ignore the last entry.
        trainer = WithVNet(
            {**model_plans, "continue_training": False}, CONFIGURATION, "all", generate_dataset_json(), device
        )
        trainer.enable_deep_supervision = False
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        clock = _Clock(device)
        for _ in range(options.steps):
            batch = next(trainer.dataloader_train)

            def step(batch: Any = batch) -> None:
                trainer.train_step(batch)

            clock.measure_network_time(step)
            clock.count_step()
        return clock.compute_cost(NNUNET, options.labeled_per_step)


def _write_preprocessed(folder: Path, model_plans: dict[str, Any], case: Case) -> None:
    """Write ``case`` into ``folder`` as nnU-Net's preprocessing would."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from .peers.nnunet import CONFIGURATION, generate_dataset_json

    assert case.labels is not None
    known = model_plans["foreground_intensity_properties_per_channel"]["0"]
    clipped = np.clip(case.hu.astype(np.float32), known["percentile_00_5"], known["percentile_99_5"])
    data = ((clipped - known["mean"]) / known["std"])[None]
    segmentation = case.labels.astype(np.int16)[None]
    classes = list(range(1, len(AMOS) + 1))
    locations = DefaultPreprocessor._sample_foreground_locations(segmentation, classes)
    cases = folder / model_plans["configurations"][CONFIGURATION]["data_identifier"]
    cases.mkdir(parents=True)
    nnUNetDatasetBlosc2.save_case(data, segmentation, {"class_locations": locations}, str(cases / "case"))
    for name, content in (
        ("dataset.json", generate_dataset_json()),
        ("plans.json", model_plans),
        ("dataset_fingerprint.json", {}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _main(loop: str, json_args: str) -> None:
    args = json.loads(json_args)
    options = replace(TrainingOptions.from_json(args["options"]), strategy="vnet", steps=args["steps"] + 1)
    if args["threads"]:
        torch.set_num_threads(args["threads"])
    if loop.startswith("ours"):
        # Like dca train.
        from ..inference.process_settings import keep_freed_memory

        keep_freed_memory()
    phantom = generate(1, _SCAN_MM)
    case = prepare_case("labelled", phantom.ct, phantom.labels, options.grid)
    device = torch.device(args["device"])
    if loop == "ours, single precision":
        options = replace(options, mixed_precision=False)
    if loop == "monai":
        cost = _measure_monai_loop(options, device, case)
    elif loop == NNUNET:
        cost = _measure_nnunet_trainer(options, device, case)
    else:
        cost = _measure_our_trainer(loop, options, device, case)
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
