"""Draws the pictures of the panel in the README, and others for inspection, in the fake Slicer after a real run.

Run: python Testing/fake_slicer/readme_pictures.py FOLDER [BUNDLE]

This segments a synthetic CT (no patient) with the shipped model through the panel and writes pictures into FOLDER: the
panel in every state (empty: panel-first-look.png, incomplete setup, choices, failed, running, done: panel.png, review,
dark), the slice views with a finding outlined (panel-review-views.png), a click and its preview (panel-clicks.png,
panel-clicks-views.png), a map with its legend (panel-map-view.png), and each section in light and dark (sections/).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from matplotlib.image import imsave

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_slicer.fake_slicer import FakeSlicer
from fake_slicer.panel_run import as_high_as_its_contents, panel_in_fake_slicer
from fake_slicer.screenshot import screenshot

# The seed of the synthetic CT and the spacing (mm) of ``dca demo``.
_SEED, _SPACING = 7, (2.0, 2.0, 3.0)
_VIEW, _VIEW_MM = 420, 260.0  # pixels, mm
_SECTIONS = ("setup", "segment", "experts", "result", "review", "correct")


def draw(folder: Path) -> None:
    """Write all pictures into ``folder``. Exits with the panel's message if the run fails."""
    (folder / "sections").mkdir(parents=True, exist_ok=True)
    with panel_in_fake_slicer() as (panel, fake):
        _draw(panel, fake, folder)


def _draw(panel: Any, fake: FakeSlicer, folder: Path) -> None:
    from dcaseg.errors import UserError
    from dcaseg.synthesis.phantom.case import generate
    from DCASegmentationLib.scene.volumes import show_ct

    _shoot(panel.widget, folder / "panel-first-look.png")
    _draw_missing(panel, fake, folder)
    panel.guide.close()
    phantom = generate(_SEED, spacing=_SPACING)
    show_ct(phantom.ct, "Synthetic CT")
    fake.process_events(0.1)
    panel.segmentPanel.ui.advancedGroup.collapsed = False
    panel.segmentPanel.showDevices(None, "")
    _shoot(panel.widget, folder / "panel-advanced.png")
    panel.segmentPanel.ui.advancedGroup.collapsed = True
    panel.segmentPanel.showError(UserError("The CT could not be written to the disk.", "Free some space."))
    _shoot(panel.widget, folder / "panel-failed.png")
    panel.segmentPanel.ui.applyButton.click()
    fake.wait_for(lambda: panel.segmentPanel.ui.progressBar.value > 20, 600)
    _shoot(panel.widget, folder / "panel-running.png")
    fake.wait_for(lambda: not panel.logic.isRunning, 900)
    if panel.parameters.resultSegmentation is None:
        raise SystemExit(panel.segmentPanel.ui.messageLabel.text)
    fake.process_events(2.0)
    _shoot(panel.widget, folder / "panel.png")
    _draw_batch(panel, fake, folder)
    review = panel.reviewPanel
    panel.ui.reviewSection.collapsed = False
    review.goToNext()
    review.ui.acceptButton.click()
    review.goToNext()
    fake.process_events(0.2)
    _shoot(panel.ui.reviewSection, folder / "panel-review.png")
    _draw_views(panel, folder / "panel-review-views.png")
    _draw_clicks(panel, fake, folder, phantom.labels)
    review.ui.changesButton.checked = True
    panel.parameters.expertMap = "tail"
    for style in ("light", "dark"):
        for name in _SECTIONS:
            section = getattr(panel.ui, f"{name}Section")
            section.collapsed = False
            fake.process_events(0.5)
            as_high_as_its_contents(panel.widget.window())
            screenshot(section, folder / "sections" / f"{name}-{style}.png", style, panel.enter)
    _draw_map(panel, folder / "panel-map-view.png")


def _draw_batch(panel: Any, fake: FakeSlicer, folder: Path) -> None:
    """Draw the section Batch while the first of three CTs runs, then cancel it."""
    from dcaseg.synthesis.phantom.case import generate
    from DCASegmentationLib.batch import State
    from DCASegmentationLib.scene.volumes import show_ct

    batch, names = panel.batchPanel, ("Synthetic CT, portal venous", "Synthetic CT, follow-up", "Lower abdomen")
    nodes = [show_ct(generate(seed, spacing=(6.0, 6.0, 8.0)).ct, name) for seed, name in enumerate(names, start=1)]
    # Its axes are not at right angles: it fails.
    nodes[0].SetIJKToRASDirections([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    panel.ui.batchSection.collapsed = False
    batch.ui.addSceneButton.click()
    fake.wait_for(lambda: len(batch.batch.cases) == len(nodes), 60)
    batch.ui.startButton.click()
    fake.wait_for(lambda: batch.batch.cases[1].fraction > 0.2 or batch.batch.cases[1].isOver, 600)
    batch.ui.batchTable.selectRow(0)
    for style in ("light", "dark"):
        as_high_as_its_contents(panel.widget.window())
        screenshot(panel.ui.batchSection, folder / f"panel-batch{'' if style == 'light' else '-dark'}.png", style)
    batch.batch.cancelAll()
    fake.wait_for(lambda: not batch.isRunning, 60)
    for case in [each for each in batch.batch.cases if each.state is not State.Running]:
        batch.batch.remove(case)
    for node in nodes:
        slicer.mrmlScene.RemoveNode(node)
    panel.ui.batchSection.collapsed = True
    fake.process_events(0.5)


def _draw_missing(panel: Any, fake: FakeSlicer, folder: Path) -> None:
    """Draw the panel with Setup first because PyTorch is missing, and in the dark style with a model's description."""
    fake.torch.is_installed = False
    panel.enter()
    panel.ui.setupSection.collapsed = False
    _shoot(panel.widget, folder / "panel-missing.png")
    fake.torch.is_installed = True
    panel.enter()
    panel.segmentPanel.ui.modelCardGroup.collapsed = False
    _shoot(panel.widget, folder / "panel-setup-dark.png", "dark")
    panel.segmentPanel.ui.modelCardGroup.collapsed = True
    panel.ui.setupSection.collapsed = True


def _draw_map(panel: Any, path: Path) -> None:
    """Draw the attention to the tail expert over the CT with its legend, with Slicer's displayable managers."""
    from dcaseg.rendering.planes import Plane
    from DCASegmentationLib.scene import expert_views
    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.offscreen import SliceView
    from DCASegmentationLib.scene.view_setup import find_organ_position

    nodes = read_case_nodes(panel.parameters.resultSegmentation)
    node = expert_views.get_map_node(nodes, 4, "tail")
    style = expert_views.MapStyle(threshold=0.33)
    with SliceView("Map", (640, 480)) as view:
        center = find_organ_position(nodes)
        assert center is not None
        view.show(Plane("axial", center, 480.0, 360.0), nodes.ct)
        expert_views.set_map_layer(view.logic.GetSliceCompositeNode(), nodes, node, style.opacity)
        expert_views.apply_style(node, style)
        expert_views.refresh_legend(node, True)
        imsave(path, view.render_pixels())


def _draw_clicks(panel: Any, fake: FakeSlicer, folder: Path, truth: Any) -> None:
    """Click into the middle of the largest part that an organ lacks, and draw the tool and the views with the preview.

    ``truth`` are the labels (SimpleITK image) of the synthetic CT.
    """
    import SimpleITK as sitk

    from dcaseg.organs import AMOS
    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.click_labels import create_click_labels, get_organ_target
    from DCASegmentationLib.scene.finding_view import hide_outline

    nodes, clicks = read_case_nodes(panel.parameters.resultSegmentation), panel.clickPanel
    now, wanted = create_click_labels(nodes).voxels, sitk.GetArrayFromImage(truth)
    depths = {}
    for organ in AMOS:
        gap = sitk.GetImageFromArray(((wanted == organ.label) & (now != organ.label)).astype(np.uint8))
        gap.CopyInformation(truth)
        depths[organ.key] = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(gap, True, False, True))
    key = max(depths, key=lambda each: depths[each].max())
    z, y, x = (int(each) for each in np.unravel_index(depths[key].argmax(), now.shape))
    left, posterior, superior = truth.TransformIndexToPhysicalPoint((x, y, z))
    point = (-left, -posterior, superior)
    panel.ui.correctSection.collapsed = False
    clicks.fix(key)
    clicks.correction.addStroke(get_organ_target(nodes, key), (point,), True)
    fake.wait_for(lambda: not clicks.correction.isWaiting, 60)
    fake.process_events(0.2)
    _shoot(panel.ui.correctSection, folder / "panel-clicks.png")
    hide_outline()
    _draw_views(panel, folder / "panel-clicks-views.png", point)
    clicks.turnOff()
    panel.ui.correctSection.collapsed = True
    panel.reviewPanel.enter()


def _draw_views(panel: Any, path: Path, center: tuple[float, float, float] | None = None) -> None:
    """Draw the slice views centered on a point, or on the second finding, with Slicer's displayable managers."""
    from dcaseg.rendering.planes import SCREEN_AXES, Plane
    from DCASegmentationLib.scene.case_record import read_case_nodes
    from DCASegmentationLib.scene.finding_view import get_finding_position
    from DCASegmentationLib.scene.offscreen import SliceView, organs_filled
    from DCASegmentationLib.scene.review_record import read_review

    nodes = read_case_nodes(panel.parameters.resultSegmentation)
    center = center or get_finding_position(nodes, read_review(nodes.segmentation).findings[1])
    shown = []
    for orientation in SCREEN_AXES:
        with organs_filled(nodes.segmentation), SliceView(f"Picture {orientation}", (_VIEW, _VIEW)) as view:
            view.show(Plane(orientation, center, _VIEW_MM, _VIEW_MM), nodes.ct)
            shown.append(view.render_pixels())
    imsave(path, np.hstack(shown))


def _shoot(widget: Any, path: Path, style: str = "light") -> None:
    """Draw a widget as high as its contents, at the width of a panel."""
    as_high_as_its_contents(widget.window())
    screenshot(widget, path, style)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        os.environ["DCA_MODELS"] = sys.argv[2]
    draw(Path(sys.argv[1]))
