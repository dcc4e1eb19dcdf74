"""The list of devices: each with what was found of it on this computer, once the worker has told."""

from __future__ import annotations

from collections.abc import Mapping

import qt
from slicer.i18n import tr as _

from DCASegmentationLib.worker_protocol import FoundDevices

AUTOMATIC = "auto"


def showDevices(selector: qt.QComboBox, names: Mapping[str, str], devices: FoundDevices | None) -> None:
    """Write into the items of ``selector`` what was found; ``names`` are those of the items by the worker's word.

    Slicer binds the selector to the parameter node by the order of its items, so only their texts change.
    """
    for index, (word, name) in enumerate(names.items()):
        selector.setItemText(index, _title(word, name, names, devices))


def _title(word: str, name: str, names: Mapping[str, str], devices: FoundDevices | None) -> str:
    if devices is None:
        return name
    if word == AUTOMATIC:
        first = next(iter(devices.found), "")
        return _("{name}: {device}").format(name=name, device=names.get(first, first))
    if word not in devices.found:
        return _("{name}: {reason}").format(name=name, reason=devices.missing.get(word, _("none found")))
    others = sum(found.startswith(f"{word}:") for found in devices.found)
    more = _(", and {count} more").format(count=others) if others else ""
    return _("{name}: {device}").format(name=name, device=devices.found[word] + more)
