"""What the experts are called where users see them: after the size of their organs.

The method's own names (head, medium, and tail) read as anatomy next to an organ: "Pancreas: head 0.2". Files, saved
scenes, and the library keep these names.
"""

from __future__ import annotations

TITLES = {"head": "Large organs (head)", "medium": "Medium organs", "tail": "Small organs (tail)"}
SHORT_TITLES = {"head": "Large", "medium": "Medium", "tail": "Small"}
