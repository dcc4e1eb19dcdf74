"""Large errors: half of each organ is erased from its true mask, and one click is to bring it back.

Run: python Testing/measurements/click_halves.py CT LABELS [--label-table TABLE]

The half is cut off by a plane through the middle of the organ, across each axis, at the higher indices. The click
lies at the deepest voxel of the error. Prints for each engine how much of the half comes back, Dice before and after,
and the share of clicks after which Dice is lower.
"""

from __future__ import annotations

import argparse

import numpy as np
import SimpleITK as sitk
from click_case import half_erased, script_parser

from dcaseg.evaluation.click_simulation import compute_dice, find_next_click
from dcaseg.evaluation.scoring import read_table, remap_labels
from dcaseg.imaging.grid import Grid
from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.interaction.engines import create_engine
from dcaseg.interaction.session import CorrectionSession
from dcaseg.interaction.strokes import Stroke, to_point
from dcaseg.organs import AMOS

_ENGINES = ("classifier", "random_walker")


def read(chosen: argparse.Namespace) -> tuple[sitk.Image, sitk.Image]:
    """The CT and its true labels."""
    ct, labels = read_ct(chosen.ct), read_labels(chosen.labels)
    return ct, remap_labels(labels, read_table(chosen.label_table, AMOS)) if chosen.label_table else labels


def main() -> None:
    ct, truth = read(script_parser(__doc__).parse_args())
    labels, grid = sitk.GetArrayFromImage(truth), Grid.from_image(ct)
    names = {organ.label: organ.key for organ in AMOS}
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in _ENGINES}
    for organ in AMOS:
        target = labels == organ.label
        if not target.any():
            continue
        for axis in range(3):
            kept = half_erased(target, axis)
            click = find_next_click(kept, target, grid.spacing)
            if click is None:
                continue
            start = np.where(target & ~kept, 0, labels).astype(labels.dtype)
            for name in _ENGINES:
                session = CorrectionSession(ct, grid.make_image(start), names, engine=create_engine(name))
                session.apply(organ.label, Stroke((to_point(click.index, grid),), True))
                mask = np.asarray(session.labels == organ.label)
                back = float((mask & target & ~kept).sum() / (target & ~kept).sum())
                rows[name].append((back, compute_dice(kept, target), compute_dice(mask, target)))
    for name, values in rows.items():
        back, before, after = np.array(values).T
        print(
            f"{name}: {len(back)} halves, {back.mean():.2f} of them back (median {np.median(back):.2f}), "
            f"Dice {before.mean():.3f} to {after.mean():.3f}, worse {(after < before).mean():.0%}"
        )


if __name__ == "__main__":
    main()
