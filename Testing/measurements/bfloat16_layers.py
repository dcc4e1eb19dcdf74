"""Simulate bfloat16 in PyTorch with some layers in float32, to find the layers that change labels.

    python Testing/measurements/bfloat16_layers.py CT [CT ...] [--bundle NAME]

Two windows in the middle of each CT. In bfloat16, the input, weights and output of each convolution and normalization
are rounded, as OpenVINO does; products are summed in float32. Prints the share of voxels with another label than in
float32, and the mean Dice of organs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from dcaseg.imaging.grid import make_model_grid
from dcaseg.imaging.intensity import apply_window
from dcaseg.imaging.label_comparison import compute_dice_by_label
from dcaseg.imaging.readers import read_ct
from dcaseg.imaging.resampling import resample
from dcaseg.inference.backends.eager import OneDNNConvolutions
from dcaseg.inference.sliding_window import Padding
from dcaseg.models.bundle import Bundle
from dcaseg.models.metadata import Metadata
from dcaseg.models.store import find_bundle, find_default_bundle

FIRST = ("encoder.blocks.0.",)
GATES = ("aggregation.fusions.",)
HEADS = ("experts.0.head", "experts.1.head", "experts.2.head", "aggregation.head")
VARIANTS = {
    "none": (),
    "first block": FIRST,
    "gates of the DFAMs": GATES,
    "heads": HEADS,
    "first block, gates, heads": (*FIRST, *GATES, *HEADS),
    "encoder": ("encoder.",),
    "decoders": ("experts.", "aggregation."),
}
"""The layers that stay in float32, by the start of their names."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cts", type=Path, nargs="+", metavar="CT")
    parser.add_argument("--bundle", help="Folder or name of the model. Default: the default model.")
    options = parser.parse_args()
    bundle = Bundle.load(find_bundle(options.bundle) if options.bundle else find_default_bundle())
    network, count = bundle.network().eval(), len(bundle.metadata.vocabulary)
    windows = [each for ct in options.cts for each in middle_windows(ct, bundle.metadata)]
    expected = labels_of(network, windows)
    kept: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.InstanceNorm3d):
            round_layer(name, module, kept)
    for variant, kept[:] in VARIANTS.items():
        labels = labels_of(network, windows)
        changed, dice = np.mean(labels != expected), np.nanmean(compute_dice_by_label(labels, expected, count))
        print(f"float32: {variant:26} changed voxels {changed:.2e}, mean Dice {dice:.4f}", flush=True)


def middle_windows(path: Path, metadata: Metadata) -> Iterator[Tensor]:
    """Yield two windows (1, 1, depth, height, width) side by side in the middle of a CT."""
    ct = read_ct(path)
    grid = make_model_grid(ct, metadata.spacing, metadata.orientation)
    hu = sitk.GetArrayFromImage(resample(ct, grid, anti_aliasing=metadata.anti_aliasing))
    volume = torch.from_numpy(apply_window(hu, *metadata.hu_window))
    padded = Padding.to_patch(volume.shape, metadata.patch).apply(volume)
    (depth, height, width), (planes, rows, columns) = padded.shape, metadata.patch
    z, y, x = (depth - planes) // 2, (height - rows) // 2, width // 2
    for first in (max(x - columns, 0), min(x, width - columns)):
        yield padded[None, None, z : z + planes, y : y + rows, first : first + columns].contiguous()


def labels_of(network: nn.Module, windows: list[Tensor]) -> np.ndarray:
    """The labels (window, depth, height, width)."""
    with torch.inference_mode(), OneDNNConvolutions():
        return np.concatenate([network(each).argmax(1).numpy().astype(np.uint8) for each in windows])


def rounded(values: Tensor) -> Tensor:
    """``values`` with the precision of bfloat16."""
    return values.to(torch.bfloat16).float()


def round_layer(name: str, module: nn.Module, kept: list[str]) -> None:
    """Let ``module`` compute in simulated bfloat16 unless its ``name`` begins with one of ``kept``."""
    is_last = name.endswith("head")

    def is_kept() -> bool:
        return name.startswith(tuple(kept))

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if is_kept() else (rounded(inputs[0]),)

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return None if is_kept() or is_last else rounded(output)

    weight, low = module.weight, nn.Parameter(rounded(module.weight.detach()))

    def with_rounded_weight(self: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Normalization sums and scales in float32.
        if not isinstance(self, nn.InstanceNorm3d):
            self.weight = weight if is_kept() else low

    module.register_forward_pre_hook(before)
    module.register_forward_pre_hook(with_rounded_weight)
    module.register_forward_hook(after)


if __name__ == "__main__":
    main()
