"""Mean attention to each expert within each segment, as table rows and as a bar plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import slicer
import slicer.util
import vtk

from dcaseg.organs import VOCABULARIES
from dcaseg.rendering.layout import EXPERT_TITLES, EXPERTS
from DCASegmentationLib.scene.case_record import CaseNodes, mark_as_part
from DCASegmentationLib.scene.nodes import add_node
from DCASegmentationLib.scene.segmentation import get_layers

_TABLE, _CHART = "DCASegmentation.attention_table", "DCASegmentation.attention_chart"
_ORGAN, _NUMBER, _SERIES = "Organ", "Number", "DCASegmentation.attention_series."
_NAMES_IN_A_LINE = 8
_SHORT = {organ.key: organ.abbreviation for vocabulary in VOCABULARIES.values() for organ in vocabulary}


@dataclass(frozen=True)
class SegmentAttention:
    """Mean attention (0 to 1) to each expert within a segment.

    The keys of ``means`` are "head", "medium", and "tail"; it is empty for a segment without voxels.
    """

    segment_id: str
    name: str
    means: dict[str, float]

    @property
    def short_name(self) -> str:
        """The organ's abbreviation, or the full name of a segment added by hand."""
        return _SHORT.get(self.segment_id, self.name)


def compute_segment_attention(nodes: CaseNodes, level: int) -> list[SegmentAttention]:
    """Average the attention maps of a level over each current segment, including corrections, in segment order.

    The average is over the voxels of the maps' grid whose centers are in the segment. Empty if the volumes of this
    level have not been loaded (see ``scene.maps``).
    """
    maps = nodes.attention.get(level, {})
    if not maps:
        return []
    arrays = {expert: slicer.util.arrayFromVolume(node) for expert, node in maps.items()}
    means: dict[str, dict[str, float]] = {}
    # All maps of a level share one grid.
    for layer in get_layers(nodes.segmentation, next(iter(maps.values()))):
        for expert, array in arrays.items():
            for segment_id, values in layer.get_values_by_segment(array).items():
                if len(values):
                    means.setdefault(segment_id, {})[expert] = float(values.mean(dtype=float))
    content = nodes.segmentation.GetSegmentation()
    return [
        SegmentAttention(segment_id, content.GetSegment(segment_id).GetName(), means.get(segment_id, {}))
        for segment_id in content.GetSegmentIDs()
    ]


def update_chart(nodes: CaseNodes, level: int, rows: list[SegmentAttention]) -> Any:
    """Write the rows into the case's table node and plot them as bars; returns the vtkMRMLPlotChartNode.

    The nodes are created once per case and referenced by its segmentation. Slicer's plots label this axis with numbers,
    so the axis title lists the organ for each number.
    """
    table = _get_or_create_node(nodes, _TABLE, "vtkMRMLTableNode", "Mean attention by organ")
    _fill(table, [row for row in rows if row.means])
    chart = _get_or_create_node(nodes, _CHART, "vtkMRMLPlotChartNode", "Mean attention by organ")
    shown = [row.short_name for row in rows if row.means]
    before = chart.StartModify()
    chart.SetTitle(f"Mean attention to each expert by organ (level {level})")
    chart.SetXAxisTitle(_format_names(shown))
    chart.SetYAxisTitle("Mean attention")
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0.0, 1.0)
    chart.SetXAxisRangeAuto(False)
    chart.SetXAxisRange(0.4, len(shown) + 0.6)
    chart.SetAxisTitleFontSize(14)
    chart.SetAxisLabelFontSize(14)
    chart.SetTitleFontSize(16)
    chart.RemoveAllPlotSeriesNodeIDs()
    for _, expert, color in EXPERTS:
        if expert in nodes.attention.get(level, {}):
            chart.AddAndObservePlotSeriesNodeID(_update_plot_series(nodes, table, expert, color).GetID())
    chart.EndModify(before)
    return chart


def _format_names(names: list[str]) -> str:
    """The number and name of each organ, in lines short enough for a narrow plot."""
    numbered = [f"{number} {name}" for number, name in enumerate(names, start=1)]
    lines = [numbered[start : start + _NAMES_IN_A_LINE] for start in range(0, len(numbered), _NAMES_IN_A_LINE)]
    return "\n".join("   ".join(line) for line in lines)


def _update_plot_series(nodes: CaseNodes, table: Any, expert: str, color: tuple[int, int, int]) -> Any:
    series = _get_or_create_node(nodes, _SERIES + expert, "vtkMRMLPlotSeriesNode", EXPERT_TITLES[expert])
    series.SetName(EXPERT_TITLES[expert])
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatterBar)
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName(_NUMBER)
    series.SetYColumnName(EXPERT_TITLES[expert])
    series.SetLabelColumnName(_ORGAN)
    series.SetColor(*(channel / 255.0 for channel in color))
    return series


def _fill(table: Any, rows: list[SegmentAttention]) -> None:
    before = table.StartModify()
    table.RemoveAllColumns()
    names, numbers = vtk.vtkStringArray(), vtk.vtkDoubleArray()
    names.SetName(_ORGAN)
    numbers.SetName(_NUMBER)
    columns = []
    for _, expert, _ in EXPERTS:
        column = vtk.vtkDoubleArray()
        column.SetName(EXPERT_TITLES[expert])
        columns.append((expert, column))
    for number, row in enumerate(rows, start=1):
        names.InsertNextValue(row.name)
        numbers.InsertNextValue(number)
        for expert, column in columns:
            column.InsertNextValue(row.means.get(expert, 0.0))
    for column in (names, numbers, *(column for _, column in columns)):
        table.AddColumn(column)
    table.EndModify(before)


def _get_or_create_node(nodes: CaseNodes, role: str, class_name: str, name: str) -> Any:
    node = nodes.segmentation.GetNodeReference(role)
    if node is None:
        node = add_node(class_name, name, hidden=True)
        mark_as_part(node, nodes.segmentation)
        nodes.segmentation.SetNodeReferenceID(role, node.GetID())
    return node
