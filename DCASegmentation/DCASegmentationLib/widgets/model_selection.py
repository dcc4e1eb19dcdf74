"""The lists of models and of devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import qt
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.models.metadata import Metadata
from dcaseg.models.metadata_reader import read_metadata
from dcaseg.models.store import find_bundles, own_models
from dcaseg.worker.protocol import FoundDevices


@dataclass(frozen=True)
class Model:
    """A bundle on this computer. ``metadata`` is None where it cannot be read, and ``problem`` says why."""

    folder: Path
    metadata: Metadata | None
    problem: UserError | None = None

    @property
    def name(self) -> str:
        """The name of its folder, by which scenes remember it."""
        return self.folder.resolve().name

    @property
    def isOwn(self) -> bool:
        """Whether the user added it, so that it may be deleted."""
        return self.folder.resolve().parent == own_models().resolve()


def availableModels() -> list[Model]:
    """All models found, the default one first. Raises UserError if DCA_MODELS names no folder."""
    models = []
    for folder in find_bundles():
        try:
            models.append(Model(folder, read_metadata(folder)))
        except UserError as error:
            models.append(Model(folder, None, error))
    return models


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
