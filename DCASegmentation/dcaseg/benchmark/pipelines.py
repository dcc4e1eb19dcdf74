"""The pipelines that are compared: ``dca segment`` with several settings, and those of other projects.

The plain pipeline covers the whole volume with windows that overlap by half (MONAI's ``sliding_window_inference``),
resamples the probabilities of all channels to the CT's grid as whole volumes, and then takes the label with the
highest.
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

from ..imaging.grid import Grid, make_model_grid
from ..imaging.intensity import apply_window
from ..imaging.resampling import resample
from ..method.network import DCANet
from ..method.variants import Norm
from ..models.bundle import Bundle
from ..models.store import find_default_bundle
from .inputs import PATCH, create_random_bundle


def segment_with_plain_pipeline(ct: sitk.Image, bundle: Bundle, network: DCANet) -> sitk.Image:
    """Segment ``ct`` with the plain pipeline on the CPU: labels (uint8) on its own grid.

    ``network`` is the network of ``bundle``.
    """
    metadata = bundle.metadata
    grid = make_model_grid(ct, metadata.spacing, metadata.orientation)
    # A view does not keep its image alive, so each image needs a variable while its view is in use.
    resampled = resample(ct, grid, anti_aliasing=metadata.anti_aliasing)
    volume = apply_window(sitk.GetArrayViewFromImage(resampled), *metadata.hu_window)
    with torch.inference_mode():
        logits: Any = sliding_window_inference(
            torch.from_numpy(volume)[None, None], metadata.patch, 1, network, overlap=0.5, mode="gaussian"
        )
        probabilities = torch.softmax(logits, dim=1)[0].numpy()
    ct_grid = Grid.from_image(ct)
    labels = np.zeros(ct_grid.shape, dtype=np.uint8)
    highest = np.full(ct_grid.shape, -1.0, dtype=np.float32)
    # A running argmax over the channels avoids sixteen CT-sized volumes.
    for label, channel in enumerate(probabilities):
        # As in MONAI, voxels beyond the outermost voxel centers get the outermost probabilities.
        on_ct_grid = resample(_pad_edges(grid.make_image(channel)), ct_grid, outside=0.0)
        values = sitk.GetArrayViewFromImage(on_ct_grid)
        wins = values > highest
        labels[wins] = label
        highest[wins] = values[wins]
    return ct_grid.make_image(labels)


def _pad_edges(image: sitk.Image) -> sitk.Image:
    return sitk.ZeroFluxNeumannPad(image, [1] * 3, [1] * 3)


@dataclass(frozen=True)
class _Options:
    """Options of ``dca segment``: as command-line ``args``, and as ``fields`` of
    ``inference.options.SegmentOptions``."""

    args: tuple[str, ...]
    fields: Mapping[str, Any]


_LABELS_ONLY = _Options(("--attention-levels", "none", "--no-dominant-expert", "--no-entropy", "--no-disagreement"), {})
_MAPS = _Options(
    ("--attention-levels", "4"),
    {"attention_levels": [4], "dominant_expert": True, "entropy": True, "disagreement": True},
)
_BFLOAT16 = _Options((*_LABELS_ONLY.args, "--backend", "openvino-bf16"), {})
_EVERYTHING = _Options((*_MAPS.args, "--review"), {**_MAPS.fields, "review": True})
# The plain sliding window of the other pipelines, over the whole volume.
_EQUAL = _Options((*_LABELS_ONLY.args, "--overlap", "0.5", "--no-body-box"), {"overlap": 0.5, "body_box": False})


FASTEST_MM = 6.0
"""The grid of TotalSegmentator's --fastest."""
# nnU-Net's planner makes no patch larger than the usual scan, which has about 70 voxels along each side at 6 mm.
_FASTEST_PATCH = 80


@dataclass(frozen=True)
class Setting:
    """The settings shared by all pipelines.

    ``ct`` is the CT file, ``folder`` contains the models, ``windows`` and ``our_windows`` are the numbers of windows
    that the peers and our program really compute (None: all). ``fine_mm`` and ``coarse_mm`` are the spacings of the
    models.
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

    def get_bundle_folder(self, spacing_mm: float | None) -> Path:
        """The folder of our model with random weights at this spacing, or of the shipped model for None."""
        if spacing_mm is None:
            return find_default_bundle()
        return create_random_bundle(self.folder, spacing_mm, self.n_filters, self.norm, self.patch).folder


@dataclass(frozen=True)
class Pipeline:
    """A program to measure.

    ``command(out, report)`` returns its command line, where ``out`` is a folder for its output and ``report`` a JSON
    file for the times of its windows (not written if no windows are replayed). ``needs`` lists the modules that it
    imports. ``labels`` is the label map that it writes, relative to ``out``. ``reference`` is the key of the pipeline
    that runs the same weights in the plain way, with which its labels should agree; empty for none.
    """

    key: str
    name: str
    command: Callable[[Path, Path], list[str]]
    is_peer: bool = False
    needs: tuple[str, ...] = field(default=())
    labels: str = "labels.nii.gz"
    reference: str = ""

    @property
    def missing(self) -> str | None:
        """The first module that is not installed, or None."""
        return next((module for module in self.needs if find_spec(module) is None), None)


def list_pipelines(setting: Setting) -> list[Pipeline]:
    """All pipelines, ours first. Models are created only when a command is requested."""
    fine, coarse = setting.fine_mm, setting.coarse_mm
    return [
        _make_dca_pipeline("ours_equal", f"DCA {fine:g} mm, full grid, overlap 0.5", setting, fine, _EQUAL),
        _make_dca_pipeline("ours", f"DCA {fine:g} mm", setting, fine, _LABELS_ONLY),
        _make_dca_pipeline("ours_maps", f"DCA {fine:g} mm, with maps", setting, fine, _MAPS),
        _make_dca_pipeline("ours_coarse", f"DCA {coarse:g} mm", setting, coarse, _LABELS_ONLY),
        # Only the shipped model has a review, since the output of random weights is noise and full of findings.
        _make_dca_pipeline("shipped", "shipped model", setting, None, _LABELS_ONLY),
        _make_dca_pipeline("shipped_bf16", "shipped model, bfloat16", setting, None, _BFLOAT16),
        _make_dca_pipeline("shipped_maps", "shipped model, with maps and review", setting, None, _EVERYTHING),
        _make_nnunet_pipeline("nnunet", "nnU-Net", "nnunet", setting, fine),
        _make_nnunet_pipeline(
            "nnunet_mirroring", "nnU-Net with mirroring", "nnunet", setting, fine, extra=("--mirroring",)
        ),
        _make_nnunet_pipeline(
            "totalsegmentator", "TotalSegmentator's settings, one model", "totalsegmentator", setting, fine
        ),
        _make_monai_pipeline("monai", f"MONAI with our network, {fine:g} mm", setting, fine),
        _make_nnunet_pipeline("nnunet_coarse", "nnU-Net", "nnunet", setting, coarse),
        _make_nnunet_pipeline(
            "totalsegmentator_fast", "TotalSegmentator's fast settings", "totalsegmentator", setting, coarse
        ),
        _make_nnunet_pipeline(
            "totalsegmentator_fastest",
            "TotalSegmentator's fastest settings",
            "totalsegmentator",
            setting,
            FASTEST_MM,
            patch=_FASTEST_PATCH,
        ),
        _make_monai_pipeline("monai_shipped", "MONAI with the shipped model", setting, None),
    ]


def _make_dca_pipeline(key: str, name: str, setting: Setting, spacing_mm: float | None, options: _Options) -> Pipeline:
    def command(out: Path, report: Path) -> list[str]:
        bundle = setting.get_bundle_folder(spacing_mm)
        # The shipped model has real weights, so its labels are compared, too: it computes all windows.
        if setting.our_windows is not None and spacing_mm is not None:
            args = [str(setting.ct), str(out / "result"), "--model", str(bundle), "--report", str(report)]
            args += ["--windows", str(setting.our_windows), "--options", json.dumps(options.fields)]
            return [sys.executable, "-m", f"{__package__}.window_replay", *args]
        segment = [sys.executable, "-m", "dcaseg.cli", "segment", str(setting.ct)]
        args = ["-o", str(out / "result"), "--bundle", str(bundle), "--device", "cpu"]
        return [*segment, *args, "--no-scene", "--format", ".nii.gz", *options.args]

    reference = {None: "monai_shipped", setting.fine_mm: "monai"}.get(spacing_mm, "")
    return Pipeline(key, name, command, labels="result/labels.nii.gz", reference=reference)


def _make_nnunet_pipeline(
    key: str,
    name: str,
    module: str,
    setting: Setting,
    spacing_mm: float,
    patch: int = 128,
    extra: tuple[str, ...] = (),
) -> Pipeline:
    def command(out: Path, report: Path) -> list[str]:
        # This imports nnU-Net, which may not be installed.
        from .peers.nnunet import create_nnunet_model

        model = create_nnunet_model(setting.folder, spacing_mm, patch)
        return [
            *_build_peer_command(module, setting, setting.windows, model, out, report),
            "--spacing",
            str(spacing_mm),
            *extra,
        ]

    needs = ("nnunetv2", "nibabel", "scipy")
    return Pipeline(key, f"{name}, {spacing_mm:g} mm", command, is_peer=True, needs=needs)


def _make_monai_pipeline(key: str, name: str, setting: Setting, spacing_mm: float | None) -> Pipeline:
    def command(out: Path, report: Path) -> list[str]:
        windows = None if spacing_mm is None else setting.windows
        return _build_peer_command(
            "monai_reference", setting, windows, setting.get_bundle_folder(spacing_mm), out, report
        )

    return Pipeline(key, name, command, is_peer=True, needs=("monai", "nibabel"))


def _build_peer_command(
    module: str, setting: Setting, windows: int | None, model: Path, out: Path, report: Path
) -> list[str]:
    counted = [] if windows is None else ["--windows", str(windows)]
    program = [sys.executable, "-m", f"{__package__}.peers.{module}", str(setting.ct), str(out / "labels.nii.gz")]
    return [*program, "--model", str(model), "--report", str(report), *counted]
