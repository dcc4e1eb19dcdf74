"""What is compared: ``dca segment`` in several settings, and other projects' pipelines.

The whole volume is covered with windows that overlap by half, by MONAI's ``sliding_window_inference``; probabilities
of all channels are resampled to the CT's grid as whole volumes, and only then the largest one gives the label.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.inferers import sliding_window_inference

from ..imaging.grid import Grid, model_grid
from ..imaging.intensity import window
from ..imaging.resampling import resample
from ..method.network import DCANet
from ..method.vnet import Norm
from ..models.bundle import Bundle
from ..models.store import default_bundle
from .subject import PATCH, random_bundle


def plain_segmentation(ct: sitk.Image, bundle: Bundle, network: DCANet) -> sitk.Image:
    """Labels (uint8) of ``ct`` on its own grid by ``network``, which is the bundle's, on the CPU."""
    metadata = bundle.metadata
    grid = model_grid(ct, metadata.spacing, metadata.orientation)
    # A view does not keep its image alive: each image has a name for as long as its view is used.
    resampled = resample(ct, grid, anti_aliasing=metadata.anti_aliasing)
    volume = window(sitk.GetArrayViewFromImage(resampled), *metadata.hu_window)
    with torch.inference_mode():
        logits: Any = sliding_window_inference(
            torch.from_numpy(volume)[None, None], metadata.patch, 1, network, overlap=0.5, mode="gaussian"
        )
        probabilities = torch.softmax(logits, dim=1)[0].numpy()
    ct_grid = Grid.of(ct)
    labels = np.zeros(ct_grid.shape, dtype=np.uint8)
    highest = np.full(ct_grid.shape, -1.0, dtype=np.float32)
    # Channel by channel, the largest so far kept: the same argmax without sixteen CT-sized volumes.
    for label, channel in enumerate(probabilities):
        # Beyond the outermost voxel centers the outermost probabilities hold, as MONAI has it.
        on_ct_grid = resample(_with_rim(grid.image_of(channel)), ct_grid, outside=0.0)
        values = sitk.GetArrayViewFromImage(on_ct_grid)
        wins = values > highest
        labels[wins] = label
        highest[wins] = values[wins]
    return ct_grid.image_of(labels)


def _with_rim(image: sitk.Image) -> sitk.Image:
    return sitk.ZeroFluxNeumannPad(image, [1] * 3, [1] * 3)


@dataclass(frozen=True)
class _Options:
    """What ``dca segment`` is asked for: on its command line, and as fields of ``inference.options.SegmentOptions``."""

    typed: tuple[str, ...]
    fields: Mapping[str, Any]


_LABELS_ALONE = _Options(
    ("--attention-levels", "none", "--no-dominant-expert", "--no-entropy", "--no-disagreement"), {}
)
_MAPS = _Options(
    ("--attention-levels", "4"),
    {"attention_levels": [4], "dominant_expert": True, "entropy": True, "disagreement": True},
)
_EVERYTHING = _Options((*_MAPS.typed, "--review"), {**_MAPS.fields, "review": True})
# The plain sliding window that the others do, over the whole volume.
_EQUAL = _Options((*_LABELS_ALONE.typed, "--overlap", "0.5", "--no-body-box"), {"overlap": 0.5, "body_box": False})


@dataclass(frozen=True)
class Setting:
    """What all pipelines have in common.

    ``ct`` is the CT file, ``folder`` holds the models, ``windows`` and ``our_windows`` say how many the peers and we
    really compute (None: all). ``fine_mm`` and ``coarse_mm`` are the spacings of the models.
    """

    ct: Path
    folder: Path
    windows: int | None = None
    our_windows: int | None = None
    n_filters: int = 16
    norm: Norm = "batch"
    patch: tuple[int, int, int] = PATCH
    fine_mm: float = 1.5
    coarse_mm: float = 3.0

    def bundle(self, spacing_mm: float | None) -> Path:
        """Our model with random weights at this spacing; the shipped one for None."""
        if spacing_mm is None:
            return default_bundle()
        return random_bundle(self.folder, spacing_mm, self.n_filters, self.norm, self.patch).folder


@dataclass(frozen=True)
class Pipeline:
    """One program to measure.

    ``command(out, report)`` is its command line: ``out`` is a folder that it may fill, ``report`` the JSON file for the
    times of its windows, which stays away if nothing is replayed. ``needs`` are the modules it imports.
    """

    key: str
    name: str
    command: Callable[[Path, Path], list[str]]
    is_peer: bool = False
    needs: tuple[str, ...] = field(default=())

    @property
    def missing(self) -> str | None:
        """The first module that is not installed."""
        return next((module for module in self.needs if find_spec(module) is None), None)


def pipelines(setting: Setting) -> list[Pipeline]:
    """All of them, ours first. Making the list makes nothing else: models are made when a command is asked for."""
    fine, coarse = setting.fine_mm, setting.coarse_mm
    return [
        _ours("ours", f"DCA {fine:g} mm", setting, fine, _LABELS_ALONE),
        _ours("ours_equal", f"DCA {fine:g} mm, full grid, overlap 0.5", setting, fine, _EQUAL),
        _ours("ours_maps", f"DCA {fine:g} mm, with maps", setting, fine, _MAPS),
        _ours("ours_coarse", f"DCA {coarse:g} mm", setting, coarse, _LABELS_ALONE),
        # With findings here alone: what random weights give is noise, and all of noise is a finding.
        _ours("shipped", "shipped model", setting, None, _LABELS_ALONE),
        _ours("shipped_maps", "shipped model, with maps and review", setting, None, _EVERYTHING),
        _nnunet("nnunet", "nnU-Net", "nnunet", setting, fine),
        _nnunet("totalsegmentator", "TotalSegmentator's settings, one model", "totalsegmentator", setting, fine),
        _monai(setting),
        _nnunet("nnunet_coarse", "nnU-Net", "nnunet", setting, coarse),
        _nnunet("totalsegmentator_fast", "TotalSegmentator's fast settings", "totalsegmentator", setting, coarse),
    ]


def _ours(key: str, name: str, setting: Setting, spacing_mm: float | None, options: _Options) -> Pipeline:
    def command(out: Path, report: Path) -> list[str]:
        bundle = setting.bundle(spacing_mm)
        if setting.our_windows is not None:
            told = [str(setting.ct), str(out / "result"), "--model", str(bundle), "--report", str(report)]
            counted = ["--windows", str(setting.our_windows), "--options", json.dumps(options.fields)]
            return [sys.executable, "-m", f"{__package__}.ours", *told, *counted]
        segment = [sys.executable, "-m", "dcaseg.cli", "segment", str(setting.ct)]
        where = ["-o", str(out / "result"), "--bundle", str(bundle), "--device", "cpu"]
        return [*segment, *where, "--no-scene", "--format", ".nii.gz", *options.typed]

    return Pipeline(key, name, command)


def _nnunet(key: str, name: str, module: str, setting: Setting, spacing_mm: float) -> Pipeline:
    def command(out: Path, report: Path) -> list[str]:
        # Imports nnU-Net, which may not be there: only when it is asked for.
        from .peers.nnunet import nnunet_model

        return _peer(module, setting, spacing_mm, nnunet_model(setting.folder, spacing_mm), out, report)

    needs = ("nnunetv2", "nibabel", "scipy")
    return Pipeline(key, f"{name}, {spacing_mm:g} mm", command, is_peer=True, needs=needs)


def _monai(setting: Setting) -> Pipeline:
    def command(out: Path, report: Path) -> list[str]:
        bundle = setting.bundle(setting.fine_mm)
        return _peer("monai_reference", setting, setting.fine_mm, bundle, out, report)

    name = f"MONAI with our network, {setting.fine_mm:g} mm"
    return Pipeline("monai", name, command, is_peer=True, needs=("monai", "nibabel"))


def _peer(module: str, setting: Setting, spacing_mm: float, model: Path, out: Path, report: Path) -> list[str]:
    windows = [] if setting.windows is None else ["--windows", str(setting.windows)]
    program = [sys.executable, "-m", f"{__package__}.peers.{module}", str(setting.ct), str(out / "labels.nii.gz")]
    return [*program, "--spacing", str(spacing_mm), "--model", str(model), "--report", str(report), *windows]
