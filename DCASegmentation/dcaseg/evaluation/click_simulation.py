"""Evaluates correction with simulated clicks: Dice by number of clicks, and the number of clicks (NoC) to a Dice.

Each click is placed in the largest connected component of the errors, false negative or false positive, at the voxel
farthest from its border. The next click depends on the corrected result. If the reference labels come from another
network, Dice measures agreement with it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
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
from ..interaction.view import Engine, FloatArray, View, compute_signed_distance
from ..organs import Vocabulary
from ..types import ProgressCallback

MAX_CLICKS = 10
REPORTED = (0, 1, 3, 5, 10)
"""Numbers of clicks shown in the table."""
GOALS = (0.85, 0.90)
"""Dice thresholds of NoC@85 and NoC@90."""

_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SimulatedClick:
    """A click at voxel ``index`` (z, y, x) in an error component of ``voxels``; ``adds`` for a false negative."""

    index: tuple[int, int, int]
    adds: bool
    voxels: int


def find_next_click(mask: _Mask, truth: _Mask, spacing: tuple[float, float, float]) -> SimulatedClick | None:
    """The click for the largest error of ``mask`` (z, y, x) compared with ``truth``; None without errors.

    Components are connected over faces. ``spacing`` is (x, y, z) in mm.
    """
    largest: tuple[int, bool, _Mask, tuple[int, int, int]] | None = None
    for adds, error in ((True, truth & ~mask), (False, mask & ~truth)):
        box = _compute_bounding_box(error)
        if box is None:
            continue
        components = sitk.GetArrayFromImage(
            sitk.ConnectedComponent(sitk.GetImageFromArray(error[box].astype(np.uint8)), False)
        )
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        number = int(sizes.argmax())
        if largest is None or sizes[number] > largest[0]:
            start = (box[0].start, box[1].start, box[2].start)
            largest = (int(sizes[number]), adds, components == number, start)
    if largest is None:
        return None
    voxels, adds, component, start = largest
    # The padding makes the edge of the array count as a border.
    depth = -compute_signed_distance(np.pad(component, 1), spacing)[1:-1, 1:-1, 1:-1]
    z, y, x = np.unravel_index(int(np.where(component, depth, -np.inf).argmax()), component.shape)
    return SimulatedClick((int(z) + start[0], int(y) + start[1], int(x) + start[2]), adds, voxels)


@dataclass(frozen=True)
class ClickCurve:
    """The correction of one organ in one case: ``dice`` after 0, 1, 2 ... clicks, and ``seconds`` of each click.

    ``was_missing``: the organ had no mask at the start.
    """

    case: str
    organ: str
    engine: str
    dice: tuple[float, ...]
    seconds: tuple[float, ...]
    was_missing: bool = False

    def get_dice(self, clicks: int) -> float:
        """Dice after ``clicks`` clicks, or the final Dice if there were fewer clicks."""
        return self.dice[min(clicks, len(self.dice) - 1)]

    def compute_noc(self, goal: float, most: int = MAX_CLICKS) -> int | None:
        """Number of clicks to reach a Dice of ``goal``; None if ``most`` are not enough."""
        return next((n for n, dice in enumerate(self.dice[: most + 1]) if dice >= goal), None)

    @property
    def worse(self) -> int:
        """Number of clicks that lowered Dice."""
        return sum(1 for before, after in zip(self.dice[:-1], self.dice[1:], strict=True) if after < before - 1e-9)


def simulate(
    case: str,
    ct: sitk.Image,
    start: sitk.Image,
    truth: sitk.Image,
    vocabulary: Vocabulary,
    label: int,
    engine: Engine,
    clicks: int = MAX_CLICKS,
) -> ClickCurve:
    """Correct the organ ``label`` in the label map ``start`` with simulated clicks, at most ``clicks``.

    All images must be on the same grid. Stops early when no error is left or the engine rejects a click.
    """
    grid = Grid.from_image(ct)
    names = {organ.label: organ.key for organ in vocabulary}
    session = CorrectionSession(ct, start, names, engine=engine)
    target = sitk.GetArrayViewFromImage(truth) == label
    mask = session.labels == label
    was_missing = not mask.any()
    dice, seconds = [compute_dice(mask, target)], []
    for _ in range(clicks):
        click = find_next_click(session.labels == label, target, grid.spacing)
        if click is None:
            break
        try:
            change = session.apply(label, Stroke((to_point(click.index, grid),), click.adds))
        except UserError:
            # A user would see this message, for instance about a click on gas or next to an opposite click.
            break
        seconds.append(change.seconds)
        dice.append(compute_dice(session.labels == label, target))
    return ClickCurve(case, vocabulary.by_label[label].key, engine.name, tuple(dice), tuple(seconds), was_missing)


@dataclass
class ClickMeasurement:
    """The courses of all cases, organs and engines; each has at most ``clicks`` clicks."""

    courses: list[ClickCurve] = field(default_factory=list)
    clicks: int = MAX_CLICKS

    def select_courses(self, engine: str, organ: str | None = None) -> list[ClickCurve]:
        """The courses of ``engine``, for one organ or all."""
        return [course for course in self.courses if course.engine == engine and organ in (None, course.organ)]

    @property
    def engines(self) -> list[str]:
        """Names of the engines, in the order they were measured."""
        return list(dict.fromkeys(course.engine for course in self.courses))

    def summarize(self, engine: str, organ: str | None = None) -> dict[str, Any]:
        """Means over all courses of ``engine`` (one for each organ of each case).

        ``dice``: mean by number of clicks. ``noc``: mean number of clicks to each goal, where a failure counts as
        ``clicks``; ``failures``: organs that do not reach the goal with ``clicks`` clicks. ``worse``: fraction of
        clicks that lower Dice. ``missing_one_click``: median Dice after one click (0 if it was rejected) for organs
        without a mask at the start. ``median_seconds`` and ``max_seconds``: time of a click. Raises
        ValueError if nothing was measured.
        """
        courses = self.select_courses(engine, organ)
        if not courses:
            raise ValueError(f"no measurement of engine {engine}, organ {organ}")
        seconds = np.array([value for course in courses for value in course.seconds])
        missing = [course.get_dice(1) for course in courses if course.was_missing]
        noc: dict[str, float] = {}
        failures: dict[str, int] = {}
        for goal in GOALS:
            needed = [course.compute_noc(goal, self.clicks) for course in courses]
            noc[f"{goal:.2f}"] = float(np.mean([self.clicks if n is None else n for n in needed]))
            failures[f"{goal:.2f}"] = sum(1 for n in needed if n is None)
        clicks = sum(len(course.seconds) for course in courses)
        return {
            "organs": len(courses),
            "dice": {
                str(n): float(np.mean([course.get_dice(n) for course in courses])) for n in range(self.clicks + 1)
            },
            "noc": noc,
            "failures": failures,
            "clicks": clicks,
            "worse": sum(course.worse for course in courses) / max(clicks, 1),
            "missing_one_click": float(np.median(missing)) if missing else None,
            "missing": len(missing),
            "median_seconds": float(np.median(seconds)) if len(seconds) else None,
            "max_seconds": float(seconds.max()) if len(seconds) else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Summaries by engine, for all organs together and for each organ."""
        organs = list(dict.fromkeys(course.organ for course in self.courses))
        return {
            engine: {
                "all": self.summarize(engine),
                "organs": {
                    organ: self.summarize(engine, organ) for organ in organs if self.select_courses(engine, organ)
                },
            }
            for engine in self.engines
        }

    def write_csv(self, path: Path) -> None:
        """Write one line for each course, with Dice after each click. The final Dice is repeated to fill the line."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            numbers = [f"dice_{n}" for n in range(self.clicks + 1)]
            writer.writerow(["case", "organ", "engine", *numbers, "worse", "median_seconds"])
            for course in self.courses:
                values = [f"{course.get_dice(n):.4f}" for n in range(self.clicks + 1)]
                seconds = f"{np.median(course.seconds):.3f}" if course.seconds else ""
                writer.writerow([course.case, course.organ, course.engine, *values, course.worse, seconds])


def measure_case(
    measured: ClickMeasurement,
    case: str,
    ct: sitk.Image,
    start: sitk.Image,
    truth: sitk.Image,
    vocabulary: Vocabulary,
    engines: Sequence[Engine],
    known: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
    missing: bool = False,
) -> None:
    """Add the courses of all organs in ``truth`` to ``measured``; ``known`` are its annotated labels (None: all).

    ``missing``: each organ starts without its mask, and only the other organs are as in ``start``.
    """
    present = set(np.unique(sitk.GetArrayViewFromImage(truth)).tolist()) - {0}
    labels = [label for label in vocabulary.by_label if label in present and (known is None or label in known)]
    for index, label in enumerate(labels):
        if progress is not None:
            progress(index / len(labels), f"{case}: {vocabulary.by_label[label].name.lower()}")
        begun = start
        if missing:
            array = sitk.GetArrayFromImage(start)
            array[array == label] = 0
            begun = Grid.from_image(start).make_image(array)
        for engine in engines:
            measured.courses.append(simulate(case, ct, begun, truth, vocabulary, label, engine, measured.clicks))


class BallBrush:
    """A baseline engine that paints a ball at the click, as a user would do by hand.

    The radius is the distance to the mask's border, at most 20 mm, or 10 mm without a mask.
    """

    name = "brush"

    def predict_foreground(self, view: View) -> FloatArray:
        """The mask (z, y, x) with the ball added or removed; see ``interaction.view.Engine``."""
        latest = view.strokes[-1]
        seeds = np.zeros(view.mask.shape, bool)
        seeds[tuple(latest.voxels.T)] = True
        radius = 10.0 if latest.radius_mm is None else min(latest.radius_mm, 20.0)
        ball = compute_signed_distance(seeds, view.grid.spacing) <= radius
        painted = (view.mask | ball) if latest.adds else (view.mask & ~ball)
        return painted.astype(np.float32)


def compute_dice(one: _Mask, other: _Mask) -> float:
    """Return the Dice of two masks (z, y, x), 1 if both are empty."""
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2.0 * int(np.count_nonzero(one & other)) / total if total else 1.0


def _compute_bounding_box(mask: _Mask) -> tuple[slice, slice, slice] | None:
    sides = []
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(hits):
            return None
        sides.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return sides[0], sides[1], sides[2]
