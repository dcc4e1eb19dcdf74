"""Measure how many synthetic patches a second training gets, and draw pictures of synthetic CTs.

    python Testing/measurements/synthesis_rate.py LABELMAP_FOLDER... --patches 40 --pictures pictures.png

Prints CPU seconds and wall seconds for each part of a patch with labels. With --pictures, draws axial and coronal
slices of several recipes with their labels outlined; with --real, also CTs from files, drawn in the same way.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from dcaseg.imaging.grid import get_canonical_view
from dcaseg.imaging.readers import read_ct
from dcaseg.organs import AMOS
from dcaseg.synthesis.label_to_ct.anatomy import load_anatomy
from dcaseg.synthesis.label_to_ct.registration import read_warps
from dcaseg.synthesis.label_to_ct.renderer import Renderer
from dcaseg.training.options import GridOptions, TrainingOptions
from dcaseg.training.synthetic_sampling import RecipeSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_maps", nargs="+", type=Path)
    parser.add_argument("--warps", type=Path, help="folder of dca register-label-maps")
    parser.add_argument("--cache", type=Path, help="folder that keeps prepared label maps")
    parser.add_argument("--patches", type=int, default=20)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--spacing", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--recipes", type=int, nargs="*", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--real", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warps = read_warps(options.warps) if options.warps else {}
    anatomies = [load_anatomy(path, cache=options.cache) for path in options.label_maps]
    renderer = Renderer(anatomies, (options.spacing,) * 3, device=options.device, warps=warps)
    if options.patches:
        _measure(renderer, options)
    if options.pictures:
        _draw(renderer, options)


def _measure(renderer: Renderer, options: argparse.Namespace) -> None:
    grid = GridOptions(spacing=(options.spacing,) * 3)
    training = TrainingOptions(grid=grid, patch=(options.patch,) * 3)
    sampler = RecipeSampler(renderer, training, np.random.default_rng(0))
    sampler.draw(2)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(options.patches):
        volumes = sampler.draw(1).volumes
    float(volumes.sum())
    cpu, wall = (time.process_time() - cpu) / options.patches, (time.perf_counter() - wall) / options.patches
    print(
        f"{options.patch}x{options.patch}x{options.patch} at {options.spacing:g} mm on {options.device}, "
        f"{options.threads} thread(s): {cpu * 1e3:.0f} CPU ms and {wall * 1e3:.0f} ms a patch, {1 / wall:.1f} patches/s"
    )
    parts = {"recipe": 0.0, "scene": 0.0, "patch": 0.0}
    for seed in range(options.patches):
        times = [time.process_time()]
        recipe = renderer.draw_recipe(seed)
        times.append(time.process_time())
        scene = renderer.prepare(recipe)
        times.append(time.process_time())
        start = [max(0, (n - options.patch) // 2) for n in scene.shape]
        float(scene.render_patch(start, (options.patch,) * 3).hu[0, 0, 0])
        times.append(time.process_time())
        for name, before, after in zip(parts, times, times[1:], strict=False):
            parts[name] += (after - before) / options.patches
    print("CPU ms: " + ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in parts.items()))


def _draw(renderer: Renderer, options: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns: list[tuple[str, np.ndarray, np.ndarray, tuple[float, ...]]] = []
    for path in options.real:
        image = read_ct(path)
        x, y, z = image.GetSpacing()
        hu = get_canonical_view(sitk.GetArrayFromImage(image), image)
        columns.append((path.parent.name, hu, np.zeros(hu.shape, np.uint8), (z, y, x)))
    for seed in options.recipes:
        recipe = renderer.draw_recipe(seed)
        made = renderer.render_case(recipe)
        toward = " ".join(f"{name[7:15]} {share:.1f}" for name, share in recipe.deformation.blend.items())
        title = f"{seed} {recipe.anatomy}\n{recipe.appearance.phase} {recipe.scanner.slice_mm:.1f} mm {toward}"
        columns.append((title, made.hu.cpu().numpy(), made.labels.cpu().numpy(), (options.spacing,) * 3))
    figure, axes = plt.subplots(2, len(columns), figsize=(4.5 * len(columns), 9.5), facecolor="black", squeeze=False)
    for column, (title, hu, labels, (dz, dy, dx)) in enumerate(columns):
        shown = [np.bincount(plane.ravel(), minlength=len(AMOS) + 1)[1:] > 0 for plane in labels]
        k = int(np.argmax([found.sum() for found in shown])) if labels.any() else len(hu) // 2
        j = int(np.argmax((labels > 0).sum(axis=(0, 2)))) if labels.any() else hu.shape[1] // 2
        views = ((hu[k], labels[k], dy / dx), (hu[:, j], labels[:, j], dz / dx))
        for row, (plane, outlined, aspect) in enumerate(views):
            view = axes[row][column]
            view.imshow(
                plane, cmap="gray", vmin=-150, vmax=250, origin="lower", aspect=aspect, interpolation="bilinear"
            )
            for organ in AMOS:
                if (outlined == organ.label).any():
                    color = [value / 255 for value in organ.color]
                    view.contour(outlined == organ.label, [0.5], colors=[color], linewidths=0.8)
            view.invert_xaxis()
            view.axis("off")
        axes[0][column].set_title(title, color="white", fontsize=9)
    figure.tight_layout()
    figure.savefig(options.pictures, dpi=60, facecolor="black")
    print(f"{len(columns)} CTs are drawn in {options.pictures}")


if __name__ == "__main__":
    main()
