"""Correction with simulated clicks, measured as the field does: Dice against clicks, and clicks to a Dice.

A click lies in the largest piece of what the organ lacks or has too much, at the voxel deepest inside of it; the next
one follows from what the engine made of the last. Where labels come from another network, Dice is agreement with it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..errors import UserError
from ..imaging.grid import Grid
from ..interaction.session import CorrectionSession
from ..interaction.strokes import Stroke, to_point
from ..interaction.view import Engine, FloatArray, View, distance_to
from ..organs import Vocabulary
from ..types import ProgressCallback

MOST_CLICKS = 10
REPORTED = (0, 1, 3, 5, 10)
"""Numbers of clicks for the table."""
GOALS = (0.85, 0.90)
"""Dice of NoC@85 and NoC@90."""

_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SimulatedClick:
    """Voxel ``index`` (z, y, x) in an error piece of ``voxels``; ``adds`` where the organ lacks it."""

    index: tuple[int, int, int]
    adds: bool
    voxels: int


def next_click(mask: _Mask, truth: _Mask, spacing: tuple[float, float, float]) -> SimulatedClick | None:
    """The click for the largest error of ``mask`` (z, y, x) against ``truth``; None where there is no error.

    Pieces are connected over faces. ``spacing`` is (x, y, z) in mm.
    """
    largest: tuple[int, bool, _Mask, tuple[int, int, int]] | None = None
    for adds, error in ((True, truth & ~mask), (False, mask & ~truth)):
        box = _box(error)
        if box is None:
            continue
        pieces = sitk.GetArrayFromImage(
            sitk.ConnectedComponent(sitk.GetImageFromArray(error[box].astype(np.uint8)), False)
        )
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        number = int(sizes.argmax())
        if largest is None or sizes[number] > largest[0]:
            first = (box[0].start, box[1].start, box[2].start)
            largest = (int(sizes[number]), adds, pieces == number, first)
    if largest is None:
        return None
    voxels, adds, piece, first = largest
    # The rim of the array is outside, too.
    depth = -distance_to(np.pad(piece, 1), spacing)[1:-1, 1:-1, 1:-1]
    z, y, x = np.unravel_index(int(np.where(piece, depth, -np.inf).argmax()), piece.shape)
    return SimulatedClick((int(z) + first[0], int(y) + first[1], int(x) + first[2]), adds, voxels)


@dataclass(frozen=True)
class Course:
    """One organ of one case under clicks: ``dice`` after 0, 1, 2 ... clicks, ``seconds`` of each click."""

    case: str
    organ: str
    engine: str
    dice: tuple[float, ...]
    seconds: tuple[float, ...]

    def after(self, clicks: int) -> float:
        """Dice after so many clicks; where no error was left before, that of the end."""
        return self.dice[min(clicks, len(self.dice) - 1)]

    def needed(self, goal: float, most: int = MOST_CLICKS) -> int | None:
        """Clicks to a Dice of ``goal``; None where ``most`` do not suffice."""
        return next((n for n, dice in enumerate(self.dice[: most + 1]) if dice >= goal), None)

    @property
    def worse(self) -> int:
        """Clicks after which Dice was lower than before."""
        return sum(1 for before, after in zip(self.dice[:-1], self.dice[1:], strict=True) if after < before - 1e-9)


def simulate(
    case: str,
    ct: sitk.Image,
    start: sitk.Image,
    truth: sitk.Image,
    vocabulary: Vocabulary,
    label: int,
    engine: Engine,
    clicks: int = MOST_CLICKS,
    probabilities: Mapping[int, sitk.Image] | None = None,
) -> Course:
    """Correct the organ ``label`` of ``start`` with simulated clicks; all images lie on one grid."""
    grid = Grid.of(ct)
    names = {organ.label: organ.key for organ in vocabulary}
    session = CorrectionSession(ct, start, names, probabilities=probabilities, engine=engine)
    target = sitk.GetArrayViewFromImage(truth) == label
    dice, seconds = [_dice(session.labels == label, target)], []
    for _ in range(clicks):
        click = next_click(session.labels == label, target, grid.spacing)
        if click is None:
            break
        try:
            change = session.apply(label, Stroke((to_point(click.index, grid),), click.adds))
        except UserError:
            # What a user would be told: gas in an organ without a lumen, an opposite click right there.
            break
        seconds.append(change.seconds)
        dice.append(_dice(session.labels == label, target))
    return Course(case, vocabulary.by_label[label].key, engine.name, tuple(dice), tuple(seconds))


@dataclass
class ClickMeasurement:
    """The courses of all cases, organs and engines."""

    courses: list[Course] = field(default_factory=list)

    def of(self, engine: str, organ: str | None = None) -> list[Course]:
        """The courses of an engine, of one organ or of all."""
        return [each for each in self.courses if each.engine == engine and organ in (None, each.organ)]

    @property
    def engines(self) -> list[str]:
        """Names of the engines, in the order in which they came."""
        return list(dict.fromkeys(each.engine for each in self.courses))

    def summary(self, engine: str, organ: str | None = None) -> dict[str, Any]:
        """Means over the organs of all cases (an organ of a case counts once).

        ``dice``: by number of clicks. ``noc``: mean clicks to each goal, a failure counting as ten; ``failures``:
        organs that ten clicks do not bring there. ``worse``: share of clicks that lower Dice. ``missing_one_click``:
        median Dice after one click of organs that were missing wholly. Seconds: median and most of a click.
        """
        chosen = self.of(engine, organ)
        if not chosen:
            raise ValueError(f"nothing was measured of {engine}, {organ}")
        seconds = np.array([value for each in chosen for value in each.seconds])
        missing = [each.after(1) for each in chosen if each.dice[0] == 0.0 and len(each.dice) > 1]
        noc: dict[str, float] = {}
        failures: dict[str, int] = {}
        for goal in GOALS:
            needed = [each.needed(goal) for each in chosen]
            noc[f"{goal:.2f}"] = float(np.mean([MOST_CLICKS if n is None else n for n in needed]))
            failures[f"{goal:.2f}"] = sum(1 for n in needed if n is None)
        clicks = sum(len(each.seconds) for each in chosen)
        return {
            "organs": len(chosen),
            "dice": {str(n): float(np.mean([each.after(n) for each in chosen])) for n in range(MOST_CLICKS + 1)},
            "noc": noc,
            "failures": failures,
            "clicks": clicks,
            "worse": sum(each.worse for each in chosen) / max(clicks, 1),
            "missing_one_click": float(np.median(missing)) if missing else None,
            "missing": len(missing),
            "median_seconds": float(np.median(seconds)) if len(seconds) else None,
            "most_seconds": float(seconds.max()) if len(seconds) else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Summaries by engine: of all organs, and of each."""
        organs = list(dict.fromkeys(each.organ for each in self.courses))
        return {
            engine: {
                "all": self.summary(engine),
                "organs": {organ: self.summary(engine, organ) for organ in organs if self.of(engine, organ)},
            }
            for engine in self.engines
        }

    def write_csv(self, path: Path) -> None:
        """One line for each course: Dice after each click (the last one repeated where no error was left)."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            numbers = [f"dice_{n}" for n in range(MOST_CLICKS + 1)]
            writer.writerow(["case", "organ", "engine", *numbers, "worse", "median_seconds"])
            for each in self.courses:
                values = [f"{each.after(n):.4f}" for n in range(MOST_CLICKS + 1)]
                took = f"{np.median(each.seconds):.3f}" if each.seconds else ""
                writer.writerow([each.case, each.organ, each.engine, *values, each.worse, took])


def measure_case(
    measured: ClickMeasurement,
    case: str,
    ct: sitk.Image,
    start: sitk.Image,
    truth: sitk.Image,
    vocabulary: Vocabulary,
    engines: Sequence[Engine],
    known: Sequence[int] | None = None,
    clicks: int = MOST_CLICKS,
    progress: ProgressCallback | None = None,
) -> None:
    """Add the courses of all organs of ``truth`` in a case; ``known`` are the labels that it tells of (all if None)."""
    there = set(np.unique(sitk.GetArrayViewFromImage(truth)).tolist()) - {0}
    labels = [label for label in vocabulary.by_label if label in there and (known is None or label in known)]
    for index, label in enumerate(labels):
        if progress is not None:
            progress(index / len(labels), f"{case}: {vocabulary.by_label[label].name.lower()}")
        for engine in engines:
            measured.courses.append(simulate(case, ct, start, truth, vocabulary, label, engine, clicks))


class BallBrush:
    """Painting with a ball at the click, as large as the distance to the mask's border, 20 mm at most, 10 mm without a
    mask: what a user does by hand, to compare with."""

    name = "brush"

    def foreground(self, view: View) -> FloatArray:
        """See ``interaction.view.Engine``."""
        latest = view.strokes[-1]
        seeds = np.zeros(view.mask.shape, bool)
        seeds[tuple(latest.voxels.T)] = True
        radius = 10.0 if latest.radius_mm is None else min(latest.radius_mm, 20.0)
        ball = distance_to(seeds, view.grid.spacing) <= radius
        painted = (view.mask | ball) if latest.adds else (view.mask & ~ball)
        return painted.astype(np.float32)


def _dice(one: _Mask, other: _Mask) -> float:
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2.0 * int(np.count_nonzero(one & other)) / total if total else 1.0


def _box(mask: _Mask) -> tuple[slice, slice, slice] | None:
    sides = []
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(hits):
            return None
        sides.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return sides[0], sides[1], sides[2]
