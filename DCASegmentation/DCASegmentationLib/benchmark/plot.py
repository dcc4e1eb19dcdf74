"""CPU time and memory of the pipelines as bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .pipelines import Pipeline
from .runs import Runs

_OURS, _PEERS = "#1b6ca8", "#b0b0b0"


def inference_plot(runs: Runs, chosen: Sequence[Pipeline], title: str) -> Figure:
    """Medians of each pipeline that has runs; hatched where the time is partly extrapolated."""
    shown = [(pipeline, cost) for pipeline in chosen if (cost := runs.median(pipeline.key)) is not None]
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
            hatched = [runs.of(pipeline.key)[0].is_extrapolated for pipeline, _ in shown]
            for bar, is_extrapolated in zip(bars, hatched, strict=True):
                if is_extrapolated:
                    bar.set(hatch="///", edgecolor="white")
            if any(hatched):
                axes.set_xlabel(f"{label} (hatched: partly extrapolated)")
    time.invert_yaxis()
    return figure
