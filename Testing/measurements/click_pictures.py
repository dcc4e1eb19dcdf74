"""Draw an organ of a CT before and after clicks, as in Resources/Docs/measurements/clicks.md.

Run: python Testing/measurements/click_pictures.py CT PICTURE --organ KEY --labels LABELS [--label-table TABLE]
    [--clicks 3]
  or: python Testing/measurements/click_pictures.py CT PICTURE --organ KEY --stroke=+x,y,z --stroke=-x,y,z

This segments CT with the shipped model, or takes the label map ``--start``, and applies clicks of the default engine:
up to ``--clicks`` at the centers of the largest errors compared with LABELS, or those given (RAS, mm). The picture
shows the slice of each click, with the organ's outline before and after all clicks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from click_case import read_case, script_parser

from dcaseg.evaluation.click_simulation import find_next_click
from dcaseg.imaging.grid import Grid
from dcaseg.interaction.engines import create_default_engine
from dcaseg.interaction.result_correction import find_organ
from dcaseg.interaction.session import CorrectionSession
from dcaseg.interaction.strokes import Stroke, to_indices, to_point
from dcaseg.organs import AMOS

_HALF_MM = 75.0
_BEFORE, _AFTER, _LABELS = "#ff7f00", "#00e5ff", "white"


def draw(chosen: argparse.Namespace) -> None:
    """Correct the organ and write the picture. Raises UserError for clicks that are refused."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ct, start, truth = read_case(chosen)
    organ = find_organ(AMOS, chosen.organ)
    reference = None if truth is None else sitk.GetArrayFromImage(truth) == organ.label
    session = CorrectionSession(ct, start, {each.label: each.key for each in AMOS}, engine=create_default_engine())
    before = np.asarray(session.labels == organ.label)
    clicks, seconds = _apply(session, organ.label, chosen, reference)
    after = np.asarray(session.labels == organ.label)

    grid = Grid.from_image(ct)
    hu = sitk.GetArrayViewFromImage(ct)
    figure, axes = plt.subplots(1, len(clicks), figsize=(3.2 * len(clicks), 3.6), squeeze=False)
    for number, (axis, (index, adds)) in enumerate(zip(axes[0], clicks, strict=True), start=1):
        z, y, x = index
        sx, sy, _sz = grid.spacing
        axis.imshow(hu[z], cmap="gray", vmin=-120, vmax=220, aspect=sy / sx, interpolation="bilinear")
        for mask, color, style in ((before, _BEFORE, "-"), (after, _AFTER, "-"), (reference, _LABELS, ":")):
            if mask is not None and mask[z].any():
                axis.contour(mask[z], [0.5], colors=color, linewidths=1.3, linestyles=style)
        axis.plot(x, y, "+" if adds else "_", color="yellow", markersize=9, markeredgewidth=2)
        # As in Slicer: the patient's left on the right, anterior at the top.
        left = _HALF_MM / sx * (1 if grid.axes[0, 0] > 0 else -1)
        axis.set_xlim(x - left, x + left)
        down = _HALF_MM / sy * (1 if grid.axes[1, 1] > 0 else -1)
        axis.set_ylim(y + down, y - down)
        axis.set_title(f"click {number}: {'add' if adds else 'remove'}", fontsize=9)
        axis.axis("off")
    dice = ""
    if reference is not None:
        dice = f", Dice {_dice(before, reference):.2f} before, {_dice(after, reference):.2f} after"
    legend = "orange: before, blue: after" + ("" if reference is None else ", dotted: labels")
    figure.suptitle(f"{organ.name}{dice} ({legend})", fontsize=9)
    figure.tight_layout()
    figure.savefig(chosen.picture, dpi=100)
    volumes = " to ".join(f"{mask.sum() * grid.volume_ml_per_voxel:.1f}" for mask in (before, after))
    print(f"{organ.name}{dice}; {volumes} ml; {sum(seconds):.2f} s for {len(clicks)} clicks")


def _apply(
    session: CorrectionSession, label: int, chosen: argparse.Namespace, reference: np.ndarray | None
) -> tuple[list[tuple[tuple[int, ...], bool]], list[float]]:
    """Apply the clicks; returns the voxel (z, y, x) of each, whether it adds, and its time in seconds."""
    clicks: list[tuple[tuple[int, ...], bool]] = []
    seconds = []
    for number in range(len(chosen.stroke) or chosen.clicks):
        if chosen.stroke:
            text = chosen.stroke[number]
            point, adds = tuple(float(each) for each in text[1:].split(",")), text[0] == "+"
            index = tuple(int(each) for each in to_indices([point], session.grid)[0])
        else:
            assert reference is not None, "--labels or --stroke is needed"
            click = find_next_click(np.asarray(session.labels == label), reference, session.grid.spacing)
            if click is None:
                break
            index, adds = click.index, click.adds
        change = session.apply(label, Stroke((to_point(index, session.grid),), adds))
        clicks.append((index, adds))
        seconds.append(change.seconds)
    return clicks, seconds


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2.0 * float((one & other).sum()) / float(one.sum() + other.sum())


def main() -> None:
    parser = script_parser(__doc__, labels_required=False)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--organ", required=True)
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--stroke", action="append", default=[])
    draw(parser.parse_args())


if __name__ == "__main__":
    main()
