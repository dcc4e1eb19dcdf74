"""Writes a measurement as Markdown and as a plot: runs, targets and machine."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .pipelines import Pipeline
from .rates import Rates
from .runs import Runs


@dataclass(frozen=True)
class Target:
    """A target: ``value`` (None if not measured) is to be at most ``limit``, or at least, if ``at_least``."""

    name: str
    limit: float
    value: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def words(self) -> str:
        """The result in words: met, missed by a percentage of the limit, or not measured."""
        if self.value is None:
            return "not measured"
        return "met" if self.met else f"missed by {abs(self.value / self.limit - 1):.0%}"


# Name, our pipeline, the pipeline to compare with, the quantity, and the largest ratio.
_RATIOS: tuple[tuple[str, str, str, str, float], ...] = (
    ("CPU time, 1.5 mm, equal settings (full grid, overlap 0.5) / nnU-Net", "ours_equal", "nnunet", "cpu_s", 0.25),
    ("CPU time, 1.5 mm, our defaults / nnU-Net", "ours", "nnunet", "cpu_s", 0.10),
    ("the same / MONAI with the same network", "ours", "monai", "cpu_s", 0.15),
    ("CPU time, 3 mm, our defaults / nnU-Net", "ours_coarse", "nnunet_coarse", "cpu_s", 0.12),
    ("the same / TotalSegmentator's fast settings", "ours_coarse", "totalsegmentator_fast", "cpu_s", 0.22),
    ("CPU time, shipped model / TotalSegmentator's fast settings", "shipped", "totalsegmentator_fast", "cpu_s", 0.15),
    ("the same, bfloat16", "shipped_bf16", "totalsegmentator_fast", "cpu_s", 0.15),
    (
        "peak memory, shipped model / TotalSegmentator's fast settings",
        "shipped",
        "totalsegmentator_fast",
        "peak_mib",
        0.30,
    ),
    (
        "CPU time, shipped model / TotalSegmentator's fastest settings",
        "shipped",
        "totalsegmentator_fastest",
        "cpu_s",
        1.0,
    ),
    ("peak memory, 1.5 mm, our defaults / nnU-Net", "ours", "nnunet", "peak_mib", 0.18),
    ("the same, with maps", "ours_maps", "nnunet", "peak_mib", 0.22),
    ("peak memory, 1.5 mm, our defaults / TotalSegmentator's settings", "ours", "totalsegmentator", "peak_mib", 0.50),
    ("CPU time, 1.5 mm, with maps / without (random weights, no review)", "ours_maps", "ours", "cpu_s", 1.15),
    ("CPU time of the shipped model, with maps and review / without", "shipped_maps", "shipped", "cpu_s", 1.15),
)


def evaluate_targets(runs: Runs, rates: Rates | None) -> list[Target]:
    """The targets for time and memory of a whole segmentation."""
    compared = [Target(name, limit, runs.compute_ratio(ours, to, figure)) for name, ours, to, figure, limit in _RATIOS]
    share = None if rates is None else rates.share
    return [*compared, Target("network's rate / SGEMM rate", 0.85, share, at_least=True)]


_OURS, _PEERS = "#1b6ca8", "#b0b0b0"


def plot_inference(runs: Runs, chosen: Sequence[Pipeline], title: str) -> Figure:
    """Plot the medians of all pipelines with runs. Partly extrapolated times are hatched."""
    shown = [(pipeline, cost) for pipeline in chosen if (cost := runs.compute_median(pipeline.key)) is not None]
    figure = Figure(figsize=(10, 1.4 + 0.42 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    time, memory = figure.subplots(1, 2, sharey=True)
    names = [pipeline.name for pipeline, _ in shown]
    colors = [_PEERS if pipeline.is_peer else _OURS for pipeline, _ in shown]
    for axes, values, label, form in (
        (time, [cost.cpu_s for _, cost in shown], "CPU time, s", "{:.0f}"),
        (memory, [cost.peak_mib / 1024 for _, cost in shown], "peak memory, GiB", "{:.1f}"),
    ):
        bars = axes.barh(names, values, color=colors)
        axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize="small")
        axes.set_xlabel(label)
        axes.set_xlim(0, 1.15 * max(values, default=1.0))
        axes.spines[["top", "right"]].set_visible(False)
        if axes is time:
            hatched = [runs.get_runs(pipeline.key)[0].is_extrapolated for pipeline, _ in shown]
            for bar, is_extrapolated in zip(bars, hatched, strict=True):
                if is_extrapolated:
                    bar.set(hatch="///", edgecolor="white")
            if any(hatched):
                axes.set_xlabel(f"{label} (hatched: partly extrapolated)")
    time.invert_yaxis()
    return figure


_FEW_SECONDS = 30
_PACKAGES = ("torch", "openvino", "monai", "nnunetv2", "SimpleITK")


def format_inference_report(
    runs: Runs,
    chosen: Sequence[Pipeline],
    targets: Iterable[Target],
    rates: Rates | None,
    about: Mapping[str, str],
    agreement: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """The report as Markdown.

    ``about`` maps names to further facts; ``agreement`` is that of ``runs.compute_agreements``.
    """
    lines = ["# Segmentation of one CT, measured as whole processes", ""]
    lines += [f"- {name}: {value}" for name, value in {**about, **describe_machine()}.items()]
    if rates is not None:
        lines.append(
            f"- matrix products (SGEMM): {rates.sgemm:.0f} GFLOP per CPU second; our network: {rates.network:.0f}, "
            f"which is {rates.share:.2f} of it (backend {rates.backend}); a window of {rates.window_gflop:.0f} GFLOP "
            f"takes {rates.window_cpu_s:.2f} CPU seconds"
        )
    lines += ["", *format_runs_table(runs, chosen, agreement or {}), "", *format_targets_table(targets), ""]
    return "\n".join(lines)


def format_runs_table(
    runs: Runs, chosen: Sequence[Pipeline], agreement: Mapping[str, tuple[float, float]]
) -> list[str]:
    """A Markdown table with the medians of each pipeline, the range of its CPU time, its agreement, and notes."""
    lines = [
        "| pipeline | runs | windows computed | CPU s | lowest to highest | wall s | peak memory, MiB | agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    extrapolated = False
    for pipeline in chosen:
        cost = runs.compute_median(pipeline.key)
        if cost is None:
            reason = runs.left_out.get(pipeline.key, "not measured")
            lines.append(f"| {pipeline.name} | skipped: {reason} | | | | | | |")
            continue
        of_pipeline = runs.get_runs(pipeline.key)
        first = of_pipeline[0]
        star = "\\*" if first.is_extrapolated else ""
        extrapolated |= bool(star)
        windows = f"{first.computed} of {first.windows}" if first.windows else "all"
        lines.append(
            f"| {pipeline.name} | {len(of_pipeline)} | {windows} | {_format_seconds(cost.cpu_s)}{star} "
            f"| {_format_range(runs.compute_range(pipeline.key))} | {_format_seconds(cost.wall_s)}{star} "
            f"| {cost.peak_mib:.0f} "
            f"| {_format_agreement(agreement.get(pipeline.key))} |"
        )
    if extrapolated:
        lines += [
            "",
            "\\* Extrapolated: the other windows were replayed as copies, and each counts as the median of the "
            "computed ones. Everything else, including memory, is as measured.",
        ]
    if any(pipeline.key in agreement for pipeline in chosen):
        lines += [
            "",
            "Agreement: mean Dice over the organs (and the lowest) with the labels of MONAI's pipeline, which runs the "
            "same weights over the whole grid. It needs all windows of both.",
        ]
    return lines


def _format_seconds(value: float) -> str:
    return f"{value:.1f}" if value < _FEW_SECONDS else f"{value:.0f}"


def _format_range(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{_format_seconds(ends[0])} to {_format_seconds(ends[1])}"


def _format_agreement(dice: tuple[float, float] | None) -> str:
    return "" if dice is None else f"{dice[0]:.4f} ({dice[1]:.4f})"


def format_targets_table(targets: Iterable[Target]) -> list[str]:
    """A Markdown table of the targets."""
    lines = ["| | target | measured | |", "|---|---|---|---|"]
    for target in targets:
        sign = "≥" if target.at_least else "≤"
        value = "" if target.value is None else f"{target.value:.3g}"
        lines.append(f"| {target.name} | {sign} {target.limit:g} | {value} | {target.words} |")
    return lines


def describe_machine() -> dict[str, str]:
    """The computer, the versions of its libraries, and the date."""
    versions = [f"{name} {found}" for name in _PACKAGES if (found := _get_version(name))]
    return {
        "computer": f"{_get_processor_name()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
        "date": date.today().isoformat(),
    }


def format_command_line() -> str:
    """The command line of this program."""
    return " ".join(["dca", *sys.argv[1:]])


def _get_processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _get_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
