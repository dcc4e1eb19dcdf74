"""What bounds clicks: Dice if each one repaired all errors of its kind within k radii, but no others.

Run: python Testing/measurements/click_limits.py CT LABELS [--label-table TABLE]

Clicks are simulated as in dca evaluate-clicks. The radius is the distance of the click to the border of its error, and
at least half a voxel. It also prints the share of clicks whose error is hardly thicker than a voxel.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from click_case import read_case, script_parser

from dcaseg.evaluation.click_simulation import REPORTED, compute_dice, find_next_click
from dcaseg.interaction.view import compute_signed_distance
from dcaseg.organs import AMOS

_RADII = (2, 4, 8)


def main() -> None:
    chosen = script_parser(__doc__).parse_args()
    ct, start, truth = read_case(chosen)
    assert truth is not None
    first, labels, spacing = sitk.GetArrayFromImage(start), sitk.GetArrayFromImage(truth), ct.GetSpacing()
    organs = [organ.label for organ in AMOS if (labels == organ.label).any()]
    for radii in _RADII:
        courses, thin = [], []
        for label in organs:
            mask, target = first == label, labels == label
            dices = [compute_dice(mask, target)]
            for _ in range(max(REPORTED)):
                click = find_next_click(mask, target, spacing)
                if click is not None:
                    error = target & ~mask if click.adds else mask & ~target
                    seed = np.zeros(mask.shape, bool)
                    seed[click.index] = True
                    depth = -float(compute_signed_distance(error, spacing)[click.index])
                    thin.append(depth < max(spacing) / 2)
                    near = compute_signed_distance(seed, spacing) <= radii * (depth + min(spacing) / 2)
                    mask = np.where(error & near, target, mask)
                dices.append(compute_dice(mask, target))
            courses.append(dices)
        means = np.mean(courses, axis=0)
        print(f"Within {radii} radii:", ", ".join(f"{n}: {means[n]:.3f}" for n in REPORTED), end="; ")
        print(f"errors about a voxel thick: {np.mean(thin):.0%} of clicks")


if __name__ == "__main__":
    main()
