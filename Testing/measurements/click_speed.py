"""Times clicks on a CT of 512 x 512 x 150 voxels, and measures the memory: the figures of clicks.md.

Run: python Testing/measurements/click_speed.py CT LABELS [--label-table TABLE]

CT and labels are resampled to that size. Each organ of the labels gets clicks at the center of its largest error: three
on the result of the shipped model (or of the label map ``--start``); one on a result from which it was removed; and one
on its labels, of which half was erased. The last two kinds are followed into further blocks. The time includes writing
the answer, as the worker does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from click_case import half_erased, read_case, script_parser

from dcaseg.errors import UserError
from dcaseg.evaluation.click_simulation import compute_dice, find_next_click
from dcaseg.imaging.grid import Grid
from dcaseg.interaction.session import CorrectionSession
from dcaseg.interaction.session_requests import Sessions, handle
from dcaseg.interaction.strokes import to_point
from dcaseg.organs import AMOS

_SIZE = (512, 512, 150)
_CLICKS = {"errors of the model": 3, "missing organs": 1, "erased halves": 1}


def _memory(key: str) -> float:
    """VmRSS or VmHWM (the peak) of this process in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def _starts(kind: str, start: np.ndarray, target: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The label of each organ in ``target``, and the labels before its first click, all (z, y, x)."""
    for label in (organ.label for organ in AMOS):
        own = target == label
        if not own.any():
            continue
        if kind == "errors of the model":
            yield label, start
        elif kind == "missing organs":
            yield label, np.where(start == label, 0, start)
        else:
            yield label, np.where(own & ~half_erased(own, int(np.ptp(np.argwhere(own), axis=0).argmax())), 0, target)


def _measure(kind: str, ct: sitk.Image, start: np.ndarray, target: np.ndarray, patch: Path) -> float:
    """Print time and Dice of the clicks of this ``kind``. Returns the most memory during one of them, in MB."""
    names = {organ.label: organ.key for organ in AMOS}
    wall, cpu, dices, peak = [], [], [], 0.0
    sessions, grid = Sessions(), Grid.from_image(ct)
    for label, begun in _starts(kind, start, target):
        session = CorrectionSession(ct, grid.make_image(begun.astype(np.uint8)), names)
        number = sessions.add(session)
        reference = target == label
        dices.append([compute_dice(session.labels == label, reference)])
        for _ in range(_CLICKS[kind]):
            click = find_next_click(np.asarray(session.labels == label), reference, grid.spacing)
            if click is None:
                break
            request = {"type": "stroke", "session": number, "label": label, "add": click.adds,
                       "points": [to_point(click.index, grid)], "patch": str(patch)}  # fmt: skip
            Path("/proc/self/clear_refs").write_text("5")
            clocks = time.perf_counter(), time.process_time()
            try:
                handle(request, sessions)
            except UserError:
                break
            wall.append(time.perf_counter() - clocks[0])
            cpu.append(time.process_time() - clocks[1])
            peak = max(peak, _memory("VmHWM"))
            dices[-1].append(compute_dice(session.labels == label, reference))
    # The first click also loads libraries.
    wall, cpu = wall[1:] or wall, cpu[1:] or cpu
    first, last = (np.mean([each[index] for each in dices]) for index in (0, -1))
    print(
        f"{kind}: {len(wall)} clicks, wall {np.median(wall):.2f} s in the median, {max(wall):.2f} s at most, CPU "
        f"{np.median(cpu):.2f} s and {max(cpu):.2f} s, Dice {first:.3f} to {last:.3f}",
        flush=True,
    )
    return peak


def main() -> None:
    chosen = script_parser(__doc__).parse_args()
    ct, start, truth = read_case(chosen)
    assert truth is not None
    fine = sitk.Image(_SIZE, sitk.sitkInt16)
    fine.SetOrigin(ct.GetOrigin())
    fine.SetDirection(ct.GetDirection())
    fine.SetSpacing([n * s / m for n, s, m in zip(ct.GetSize(), ct.GetSpacing(), _SIZE, strict=True)])
    large = sitk.Resample(ct, fine, sitk.Transform(), sitk.sitkLinear, -1000.0)
    nearest = (fine, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    begun, target = (sitk.GetArrayFromImage(sitk.Resample(each, *nearest)) for each in (start, truth))
    before = _memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        peaks = [_measure(kind, large, begun, target, Path(folder) / "patch.nrrd") for kind in _CLICKS]
    print(f"Memory during a click: at most {max(peaks) - before:.0f} MB more than CT and labels need (Linux).")


if __name__ == "__main__":
    main()
