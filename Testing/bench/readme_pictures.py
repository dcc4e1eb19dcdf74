"""The pictures of the panel in the README, and others to look at: drawn on the bench after a real run.

Run: python Testing/bench/readme_pictures.py FOLDER [BUNDLE]

Segments a synthetic CT (no patient) with the shipped model through the panel, and writes into FOLDER
panel-first-look.png, panel.png, panel-review.png, panel-setup-dark.png, the slice views with the place outlined that is
looked at there (panel-review-views.png), and every section of its own in light and dark (sections/).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.bench import Bench
from bench.panel_run import as_high_as_its_contents, panel_on_bench, segment
from bench.screenshot import screenshot

# The person and the voxels of ``dca demo``.
_SEED, _SPACING = 7, (2.0, 2.0, 3.0)
_VIEW, _VIEW_MM = 420, 260.0  # pixels, mm
_SECTIONS = ("setup", "segment", "experts", "result", "review", "correct")


def draw(folder: Path) -> None:
    """Write all pictures into ``folder``. Exits with the panel's message where the run fails."""
    (folder / "sections").mkdir(parents=True, exist_ok=True)
    with panel_on_bench() as (panel, bench):
        _draw(panel, bench, folder)


def _draw(panel: Any, bench: Bench, folder: Path) -> None:
    from DCASegmentationLib.phantom.case import generate
    from DCASegmentationLib.scene.volumes import show_ct

    show_ct(generate(_SEED, spacing=_SPACING).ct, "Synthetic CT")
    bench.process_events(0.1)
    _shoot(panel.widget, folder / "panel-first-look.png")
    panel.segmentPanel.ui.modelCardGroup.collapsed = False
    panel.ui.setupSection.collapsed = False
    _shoot(panel.widget, folder / "panel-setup-dark.png", "dark")
    panel.segmentPanel.ui.modelCardGroup.collapsed = True
    panel.ui.setupSection.collapsed = True
    segment(panel, bench)
    _shoot(panel.widget, folder / "panel.png")
    review = panel.reviewPanel
    review.goToNext()
    review.ui.acceptButton.click()
    review.goToNext()
    _shoot(panel.ui.reviewSection, folder / "panel-review.png")
    _draw_views(panel, folder / "panel-review-views.png")
    review.ui.changesGroup.collapsed = False
    for style in ("light", "dark"):
        for name in _SECTIONS:
            section = getattr(panel.ui, f"{name}Section")
            section.collapsed = False
            _shoot(section, folder / "sections" / f"{name}-{style}.png", style)


def _draw_views(panel: Any, path: Path) -> None:
    """The slice views on the second place, as Slicer's displayable managers draw them."""
    from DCASegmentationLib.figures.planes import SCREEN_AXES, Plane
    from DCASegmentationLib.scene.case_record import recall
    from DCASegmentationLib.scene.place_view import position_of
    from DCASegmentationLib.scene.rendered_views import organs_filled
    from DCASegmentationLib.scene.review_record import read_review
    from DCASegmentationLib.scene.views import SliceView

    nodes = recall(panel.parameters.resultSegmentation)
    center = position_of(nodes, read_review(nodes.segmentation).places[1])
    shown = []
    for orientation in SCREEN_AXES:
        with organs_filled(nodes.segmentation), SliceView(f"Picture {orientation}", (_VIEW, _VIEW)) as view:
            view.show(Plane(orientation, center, _VIEW_MM, _VIEW_MM), nodes.ct)
            shown.append(view.pixels())
    imsave(path, np.hstack(shown))


def _shoot(widget: Any, path: Path, style: str = "light") -> None:
    """Draw a widget as high as its contents at the width of a panel of 400 pixels."""
    as_high_as_its_contents(widget.window())
    screenshot(widget, path, style)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.environ["DCA_MODELS"] = sys.argv[2]
    draw(Path(sys.argv[1]))
