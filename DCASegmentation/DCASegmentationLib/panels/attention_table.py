"""Mean attention by organ in a Qt table."""

from __future__ import annotations

import qt

from DCASegmentationLib.figures.palette import EXPERTS
from DCASegmentationLib.panels.compact_table import makeCompact, numberItem, setRows
from DCASegmentationLib.scene.expert_attention import SegmentAttention


class AttentionTable:
    """``table`` has the columns organ, head, medium and tail."""

    def __init__(self, table: qt.QTableWidget) -> None:
        self._table = table
        makeCompact(table)

    def fill(self, rows: list[SegmentAttention]) -> None:
        """Show these rows; the largest mean of an organ is bold, so that it can be told without any color."""
        setRows(self._table, len(rows))
        for row, attention in enumerate(rows):
            self._table.setItem(row, 0, qt.QTableWidgetItem(attention.name))
            largest = max(attention.means, key=lambda expert: attention.means[expert], default=None)
            for column, (_, expert, _) in enumerate(EXPERTS, start=1):
                mean = attention.means.get(expert)
                item = numberItem("\N{EN DASH}" if mean is None else f"{mean:.2f}")
                font = item.font()
                font.setBold(expert == largest)
                item.setFont(font)
                self._table.setItem(row, column, item)
