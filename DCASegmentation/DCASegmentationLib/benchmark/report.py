"""A measurement as Markdown: the runs, the targets, and on what it was measured."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .pipelines import Pipeline
from .rates import Rates
from .runs import Runs
from .targets import Target

_PACKAGES = ("torch", "openvino", "monai", "nnunetv2", "SimpleITK")


def inference_report(
    runs: Runs, chosen: Sequence[Pipeline], targets: Iterable[Target], rates: Rates | None, about: Mapping[str, str]
) -> str:
    """The whole document. ``about`` are further facts, by name."""
    lines = ["# Segmentation of one CT, measured as whole processes", ""]
    lines += [f"- {name}: {value}" for name, value in {**about, **machine()}.items()]
    if rates is not None:
        lines.append(
            f"- matrix products (SGEMM): {rates.sgemm:.0f} GFLOP per CPU second; our network: {rates.network:.0f}, "
            f"which is {rates.share:.2f} of it (runtime {rates.runtime}); a window of {rates.window_gflop:.0f} GFLOP "
            f"takes {rates.window_cpu_s:.2f} CPU seconds"
        )
    lines += ["", *runs_table(runs, chosen), "", *targets_table(targets), ""]
    return "\n".join(lines)


def runs_table(runs: Runs, chosen: Sequence[Pipeline]) -> list[str]:
    """A Markdown table of medians, a line for each pipeline, and what is to be said about it."""
    lines = ["| pipeline | runs | windows computed | CPU s | wall s | peak memory, MiB |", "|---|---|---|---|---|---|"]
    extrapolated = False
    for pipeline in chosen:
        cost = runs.median(pipeline.key)
        if cost is None:
            reason = runs.left_out.get(pipeline.key, "not measured")
            lines.append(f"| {pipeline.name} | left out: {reason} | | | | |")
            continue
        of = runs.of(pipeline.key)
        star = "\\*" if of[0].is_extrapolated else ""
        extrapolated |= bool(star)
        windows = f"{of[0].computed} of {of[0].windows}" if of[0].windows else "all"
        lines.append(
            f"| {pipeline.name} | {len(of)} | {windows} | {cost.cpu_s:.0f}{star} | {cost.wall_s:.0f}{star} "
            f"| {cost.peak_mib:.0f} |"
        )
    if extrapolated:
        lines += [
            "",
            "\\* Extrapolated: the other windows were replayed as copies, and count as much as the median of those "
            "computed. Everything else, memory too, is as measured.",
        ]
    return lines


def targets_table(targets: Iterable[Target]) -> list[str]:
    """A Markdown table of what was to be reached."""
    lines = ["| | target | measured | |", "|---|---|---|---|"]
    for target in targets:
        sign = "≥" if target.at_least else "≤"
        value = "" if target.value is None else f"{target.value:.3g}"
        lines.append(f"| {target.name} | {sign} {target.limit:g} | {value} | {target.words} |")
    return lines


def machine() -> dict[str, str]:
    """The computer, its libraries, and the day."""
    versions = [f"{name} {found}" for name in _PACKAGES if (found := _version(name))]
    return {
        "computer": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
        "date": date.today().isoformat(),
    }


def command_line() -> str:
    """What the user has typed, as it may be typed again."""
    return " ".join(["dca", *sys.argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
