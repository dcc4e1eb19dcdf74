"""Dice against clicks, for each engine."""

from __future__ import annotations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..clicks import MOST_CLICKS, ClickMeasurement


def click_curve(measured: ClickMeasurement, title: str) -> Figure:
    """Left the mean of all organs by engine, right each organ under the first engine."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    clicks = range(MOST_CLICKS + 1)
    for number, engine in enumerate(measured.engines):
        means = measured.summary(engine)["dice"]
        left.plot(clicks, [means[str(n)] for n in clicks], label=engine, marker="o", linewidth=1.2 + 1.3 * (not number))
    if measured.engines:
        first = measured.engines[0]
        for number, organ in enumerate(dict.fromkeys(each.organ for each in measured.of(first))):
            means = measured.summary(first, organ)["dice"]
            style = "-" if number < 10 else "--"
            right.plot(clicks, [means[str(n)] for n in clicks], style, label=organ.replace("_", " "))
        right.set_title(f"each organ, {first}", fontsize="medium")
    for panel in (left, right):
        panel.set(xlabel="clicks", ylim=(0, 1))
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", frameon=False)
    left.set_ylabel("Dice")
    return figure
