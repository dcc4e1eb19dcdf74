"""Slicer's Grow from seeds as an engine of clicks, measured with simulated clicks: a baseline of clicks.md.

Run: python Testing/measurements/grow_from_seeds.py CT LABELS [--label-table TABLE]

It needs slicer-core, which contains the effect's filter, vtkImageGrowCutSegment. The seeds are those of the seeded
random walker: the deep inside of the mask, the far outside, and the clicks. Around the latest click, nothing else is a
seed, and the filter decides.
"""

from __future__ import annotations

import numpy as np
import vtk
from click_case import read_case, script_parser
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from dcaseg.evaluation.click_simulation import REPORTED, ClickMeasurement, measure_case
from dcaseg.interaction.random_walker import remove_new_islands
from dcaseg.interaction.view import FloatArray, View, compute_signed_distance
from dcaseg.organs import AMOS

_INSIDE, _OUTSIDE = 1, 2


class GrowFromSeeds:
    """The engine; see ``interaction.view.Engine``."""

    name = "grow_from_seeds"

    def predict_foreground(self, view: View) -> FloatArray:
        """The organ's probability (z, y, x), 0 or 1."""
        # slicer-core is needed here only.
        from slicer import vtkImageGrowCutSegment

        depth = compute_signed_distance(view.mask, view.grid.spacing)
        click = view.strokes[-1]
        latest = np.zeros(view.mask.shape, bool)
        latest[tuple(click.voxels.T)] = True
        radius = 14.0 if click.radius_mm is None else click.radius_mm + 2.0
        known = (np.abs(depth) > 4.0) & (compute_signed_distance(latest, view.grid.spacing) > 2.0 * radius)
        seeds = np.where(known, np.where(view.mask, _INSIDE, _OUTSIDE), 0).astype(np.int16)
        if not (seeds == _OUTSIDE).any():
            seeds[[0, -1]] = _OUTSIDE
        seeds[view.make_seed_mask(True)], seeds[view.make_seed_mask(False)] = _INSIDE, _OUTSIDE
        if not (seeds == _INSIDE).any():
            return view.mask.astype(np.float32)
        filter_ = vtkImageGrowCutSegment()
        filter_.SetIntensityVolume(_image(np.rint(view.hu).astype(np.int16), view))
        filter_.SetSeedLabelVolume(_image(seeds, view))
        filter_.Update()
        found = vtk_to_numpy(filter_.GetOutput().GetPointData().GetScalars()).reshape(view.mask.shape) == _INSIDE
        return remove_new_islands(found.astype(np.float32), view)


def _image(array: np.ndarray, view: View) -> vtk.vtkImageData:
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[::-1])
    image.SetSpacing(view.grid.spacing)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True))
    return image


def main() -> None:
    chosen = script_parser(__doc__).parse_args()
    ct, start, truth = read_case(chosen)
    assert truth is not None
    measured = ClickMeasurement()
    measure_case(measured, chosen.ct.parent.name, ct, start, truth, AMOS, [GrowFromSeeds()])
    summary = measured.summarize(GrowFromSeeds.name)
    print("Dice after", ", ".join(f"{n}: {summary['dice'][str(n)]:.3f}" for n in REPORTED), "clicks")
    print(f"NoC {summary['noc']}, failures {summary['failures']}, worse {summary['worse']:.0%}")


if __name__ == "__main__":
    main()
