"""Color legends in Slicer's views, with a title in words; each appears in the views that show its volume."""

from __future__ import annotations

from typing import Any

import slicer


def add_scale_legend(node: Any, title: str) -> Any:
    """Give a map volume a legend with numbers from 0 to 1. Returns the vtkMRMLColorLegendDisplayNode."""
    legend = _legend(node, title)
    legend.SetLabelFormat("%.1f")
    legend.SetNumberOfLabels(3)
    return legend


def add_name_legend(node: Any, title: str, count: int) -> Any:
    """Give a label map a legend with the names of its ``count`` colors. Returns the vtkMRMLColorLegendDisplayNode."""
    legend = _legend(node, title)
    legend.SetUseColorNamesForLabels(True)
    legend.SetMaxNumberOfColors(count)
    legend.SetNumberOfLabels(count)
    return legend


def _legend(node: Any, title: str) -> Any:
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(title)
    legend.SetVisibility(True)
    return legend
