"""Times clicks on a CT of 512 x 512 x 150 voxels, and measures the memory: the figures of clicks.md.

Run: python Testing/click_speed.py CT LABELS [--label-table TABLE]

CT and labels are resampled to that size. Each organ of the labels starts from the result of the shipped model, or of
the label map ``--start``, and gets three simulated clicks. The time includes writing the answer, as the worker does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from click_case import read_case, script_parser
from dcaseg.errors import UserError
from dcaseg.evaluation.click_simulation import dice_of, next_click
from dcaseg.imaging.writers import write_image
from dcaseg.interaction.session import Sessions, handle
from dcaseg.interaction.strokes import to_point
from dcaseg.organs import AMOS

_SIZE = (512, 512, 150)
_CLICKS = 3


def _memory(key: str) -> float:
    """VmRSS or VmHWM (the peak) of this process in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    chosen = script_parser(__doc__).parse_args()
    ct, start, truth = read_case(chosen)
    assert truth is not None
    grid = sitk.Image(_SIZE, sitk.sitkInt16)
    grid.SetOrigin(ct.GetOrigin())
    grid.SetDirection(ct.GetDirection())
    grid.SetSpacing([n * s / m for n, s, m in zip(ct.GetSize(), ct.GetSpacing(), _SIZE, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.nrrd" for name in ("ct", "labels", "patch")}
        write_image(sitk.Resample(ct, grid, sitk.Transform(), sitk.sitkLinear, -1000.0), paths["ct"])
        nearest = (grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        write_image(sitk.Resample(start, *nearest), paths["labels"])
        target = sitk.GetArrayFromImage(sitk.Resample(truth, *nearest))
        before, peak = _memory("VmRSS"), 0.0
        sessions = Sessions()
        names = {organ.label: organ.key for organ in AMOS}
        opened = {"type": "open", "ct": str(paths["ct"]), "labels": str(paths["labels"]), "names": names}
        number = handle(opened, sessions)["session"]
        session = sessions.get(number)
        wall, cpu, dices = [], [], []
        for organ in AMOS:
            reference = target == organ.label
            if not reference.any():
                continue
            dices.append([dice_of(np.asarray(session.labels == organ.label), reference)])
            for _ in range(_CLICKS):
                click = next_click(np.asarray(session.labels == organ.label), reference, session.grid.spacing)
                if click is None:
                    break
                request = {"type": "stroke", "session": number, "label": organ.label, "add": click.adds,
                           "points": [to_point(click.index, session.grid)], "patch": str(paths["patch"])}  # fmt: skip
                _reset_peak()
                clocks = time.perf_counter(), time.process_time()
                try:
                    handle(request, sessions)
                except UserError:
                    break
                wall.append(time.perf_counter() - clocks[0])
                cpu.append(time.process_time() - clocks[1])
                peak = max(peak, _memory("VmHWM"))
                dices[-1].append(dice_of(np.asarray(session.labels == organ.label), reference))
    # The first click also loads libraries.
    print(f"{len(cpu)} clicks: CPU {np.median(cpu[1:]):.2f} s in the median, {max(cpu[1:]):.2f} s at most;")
    print(f"wall {np.median(wall[1:]):.2f} s in the median, {max(wall[1:]):.2f} s at most.")
    first, last = (np.mean([each[index] for each in dices]) for index in (0, -1))
    print(f"Dice before {first:.3f}, after {_CLICKS} clicks {last:.3f}")
    print(f"Memory: during a click, at most {peak - before:.0f} MB more than before the session was opened (Linux).")


if __name__ == "__main__":
    main()
