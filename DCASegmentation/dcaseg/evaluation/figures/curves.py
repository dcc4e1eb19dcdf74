"""Plots curves: Dice by number of clicks, errors reached by a review, and the learning curve of a training run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...errors import UserError
from ...organs import Vocabulary
from ..click_simulation import ClickMeasurement
from ..review_evaluation import CURVE, ORDERS, OURS, ReviewMeasurement


def plot_click_curve(measured: ClickMeasurement, title: str) -> Figure:
    """Plot Dice by number of clicks: the mean over organs for each engine, and each organ for the first engine."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    clicks = range(measured.clicks + 1)
    for number, engine in enumerate(measured.engines):
        means = measured.summarize(engine)["dice"]
        left.plot(clicks, [means[str(n)] for n in clicks], label=engine, marker="o", linewidth=1.2 + 1.3 * (not number))
    if measured.engines:
        first = measured.engines[0]
        for number, organ in enumerate(dict.fromkeys(course.organ for course in measured.select_courses(first))):
            means = measured.summarize(first, organ)["dice"]
            style = "-" if number < 10 else "--"
            right.plot(clicks, [means[str(n)] for n in clicks], style, label=organ.replace("_", " "))
        right.set_title(f"each organ, {first}", fontsize="medium")
    for panel in (left, right):
        panel.set(xlabel="clicks", ylim=(0, 1))
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", frameon=False)
    left.set_ylabel("Dice")
    return figure


_PANELS = (
    ("errors", "fraction of erroneous voxels"),
    ("gross", "fraction of gross errors"),
    ("organs", "fraction of wrongly segmented organs"),
    ("ml", "checked volume (ml)"),
)


def plot_review_curve(measured: ReviewMeasurement, title: str) -> Figure:
    """Plot errors, gross errors, organs and volume reached, by number of findings."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for panel, (name, label) in zip(figure.subplots(2, 2).ravel(), _PANELS, strict=True):
        for order in ORDERS:
            values = [measured.mean(order, first)[name] for first in CURVE]
            panel.plot(CURVE, values, label=order, linewidth=2.5 if order == OURS else 1.2)
        panel.set(xlabel="first findings", ylabel=label)
        panel.grid(alpha=0.3)
        if name != "ml":
            panel.set_ylim(0, 1)
    figure.axes[0].legend(fontsize="small", frameon=False)
    return figure


_LOSSES = ("head", "medium", "tail", "aggregation", "unsupervised")
# Number of steps over which a loss is averaged, since single patches vary a lot.
_SMOOTHING = 25


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, by step. If a step was repeated after an interruption, its last line counts.

    Raises UserError if the log does not exist or is invalid.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        by_step = {int(line["step"]): _check_line(line) for line in lines}
    except FileNotFoundError as error:
        raise UserError(f"The training log {path} does not exist.", "Specify the folder of a run.") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is not the log of a training run ({error}).", "Specify the folder of a run."
        ) from error
    return [by_step[step] for step in sorted(by_step)]


def _check_line(line: dict[str, Any]) -> dict[str, Any]:
    """``line`` of the log. Raises ValueError or OverflowError if what is plotted of it are not numbers."""
    dice = line.get("dice", {"mean": 0.0})
    for value in [line["step"], *(line[name] for name in _LOSSES if name in line), dice["mean"], *dice.values()]:
        if not isinstance(value, int | float):
            raise ValueError(f"{value} is not a number")
        float(value)
    return line


def plot_training_curve(log: Iterable[dict[str, Any]], vocabulary: Vocabulary, title: str) -> Figure:
    """Plot the losses (top), and Dice of each organ with the mean (bottom), by step."""
    lines = list(log)
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    losses, dice = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    for name in _LOSSES:
        steps = np.array([line["step"] for line in lines if name in line])
        values = np.array([line[name] for line in lines if name in line])
        if len(values):
            losses.plot(steps, _smooth(values), label=name)
    # Logarithmic, since the loss of a newly started decoder is a hundred times its final value.
    losses.set(ylabel=f"loss, mean of {_SMOOTHING} steps", yscale="log")
    if losses.lines:  # the losses of a baseline have other names
        losses.legend(ncols=len(_LOSSES), fontsize="small", frameon=False)

    validated = [line for line in lines if "dice" in line]
    steps = np.array([line["step"] for line in validated])
    colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for organ, color in zip(vocabulary, colors, strict=False):
        values = np.array([line["dice"].get(organ.key, np.nan) for line in validated])
        dice.plot(steps, values, color=color, linewidth=1, label=organ.name)
    dice.plot(steps, [line["dice"]["mean"] for line in validated], color="black", linewidth=2.5, label="Mean")
    dice.set(xlabel="step", ylabel="Dice on validation cases", ylim=(0, 1))
    dice.legend(ncols=4, fontsize="x-small", frameon=False)
    return figure


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running mean over the last ``_SMOOTHING`` values."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - _SMOOTHING, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
