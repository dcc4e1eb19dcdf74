"""Writes ``widget_members.json`` for the classes listed here and their bases.

Run: python make_manifest.py ALL_CLASSES.json

ALL_CLASSES.json maps each class to its base, props, signals, and slots, as read from the headers of Slicer and CTK.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

USED = (
    "ctkCollapsibleButton",
    "ctkCollapsibleGroupBox",
    "ctkMenuButton",
    "ctkSliderWidget",
    "qMRMLNodeComboBox",
    "qMRMLPlotWidget",
    "qMRMLSegmentEditorWidget",
    "qMRMLSegmentationShow3DButton",
    "qMRMLSliceView",
    "qMRMLSliceWidget",
    "qMRMLThreeDView",
    "qMRMLThreeDWidget",
    "qMRMLWidget",
    "qSlicerApplication",
    "qSlicerDICOMExportDialog",
    "qSlicerLayoutManager",
    "qSlicerScriptedLoadableModule",
    "qSlicerScriptedLoadableModuleWidget",
    "qSlicerSegmentEditorEffectFactory",
)
# Code in the headers that was mistaken for methods, such as "qWarning(...)" and "f(node)", does not match this.
_SIGNATURE = re.compile(r"\w+\((?:[\w:]+[*&]?(?:<[\w,*]+>)?(?:,[\w:]+[*&]?)*)?\)")
_NO_TYPES = {"node", "nodeID", "visible", "autoShow", "forceShowInBackground", "pause"}


def pick(everything: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The entries of these classes and of their base classes."""
    picked = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in picked or name not in everything:
            continue
        entry = everything[name]
        picked[name] = {
            "base": entry["base"],
            "properties": sorted(set(entry["props"])),
            "signals": sorted(filter(_is_signature, entry["signals"])),
            "slots": sorted(filter(_is_signature, entry["slots"])),
        }
        waiting.append(entry["base"])
    return dict(sorted(picked.items()))


def _is_signature(text: str) -> bool:
    types = text.partition("(")[2].rstrip(")").split(",")
    return bool(_SIGNATURE.fullmatch(text)) and not _NO_TYPES.intersection(types) and not text.startswith("Q_")


if __name__ == "__main__":
    found = pick(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), USED)
    missing = [name for name in USED if name not in found]
    if missing:
        raise SystemExit(f"Not in {sys.argv[1]}: {', '.join(missing)}")
    text = json.dumps(found, indent=1) + "\n"
    Path(__file__).with_name("widget_members.json").write_text(text, encoding="utf-8")
