"""Color legends in Slicer's views, with a title in words; each appears in the views that show its volume."""

from __future__ import annotations

from typing import Any

import slicer

# Width and height as shares of the view. Slicer makes the text as large as the width lets the labels be, and the title
# the same: the short numbers of a scale need little width, or the title would reach across the whole image.
_SCALE_SIZE, _NAMES_SIZE = (0.06, 0.3), (0.2, 0.26)
# In the lower right corner, where axial and coronal views show air or the table.
_POSITION = (0.98, 0.02)


def add_scale_legend(node: Any, title: str) -> Any:
    """Give a map volume a legend with numbers from 0 to 1. Returns the vtkMRMLColorLegendDisplayNode."""
    legend = _legend(node, title)
    legend.SetSize(*_SCALE_SIZE)
    legend.SetLabelFormat("%.1f")
    legend.SetNumberOfLabels(3)
    return legend


def add_name_legend(node: Any, title: str, count: int) -> Any:
    """Give a label map a legend with the names of its ``count`` colors. Returns the vtkMRMLColorLegendDisplayNode."""
    legend = _legend(node, title)
    legend.SetSize(*_NAMES_SIZE)
    legend.SetUseColorNamesForLabels(True)
    legend.SetMaxNumberOfColors(count)
    legend.SetNumberOfLabels(count)
    return legend


def refresh_legend(node: Any, is_shown: bool) -> None:
    """Show or hide the legend of a volume that is in the views now.

    Slicer's views build a legend when its visibility changes: one that was added before its volume had colors, or
    before a view showed it, would not appear otherwise.
    """
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(False)
        legend.SetVisibility(is_shown)


def _legend(node: Any, title: str) -> Any:
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(title)
    legend.SetPosition(*_POSITION)
    legend.SetVisibility(True)
    return legend
