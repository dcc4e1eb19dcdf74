"""What the first places of a review reach, beside other orders."""

from __future__ import annotations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..review_measurement import CURVE, ReviewMeasurement
from ..review_reach import ORDERS, OURS

_PANELS = (
    ("errors", "share of erroneous voxels"),
    ("gross", "share of gross erroneous voxels"),
    ("organs", "share of wrongly segmented organs"),
    ("ml", "ml looked at"),
)


def review_curve(measured: ReviewMeasurement, title: str) -> Figure:
    """Four panels over the number of places: errors, gross errors, organs, and the volume of the places."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for panel, (name, label) in zip(figure.subplots(2, 2).ravel(), _PANELS, strict=True):
        for order in ORDERS:
            values = [measured.mean(order, first)[name] for first in CURVE]
            panel.plot(CURVE, values, label=order, linewidth=2.5 if order == OURS else 1.2)
        panel.set(xlabel="first places", ylabel=label)
        panel.grid(alpha=0.3)
        if name != "ml":
            panel.set_ylim(0, 1)
    figure.axes[0].legend(fontsize="small", frameon=False)
    return figure
