"""The contents of the lists of models and of devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import qt
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.models.metadata import Metadata
from dcaseg.models.metadata_reader import read_metadata
from dcaseg.models.store import find_bundles, get_user_models_folder
from dcaseg.worker.protocol import FoundDevices


@dataclass(frozen=True)
class Model:
    """A model bundle on this computer. If its ``metadata`` cannot be read, it is None and ``problem`` says why."""

    folder: Path
    metadata: Metadata | None
    problem: UserError | None = None

    @property
    def name(self) -> str:
        """The name of the model's folder, which scenes use to refer to the model."""
        return self.folder.resolve().name

    @property
    def isOwn(self) -> bool:
        """Whether the user added the model, so that it may be deleted."""
        return self.folder.resolve().parent == get_user_models_folder().resolve()


def listModels() -> list[Model]:
    """All models found, the default one first. Raises UserError if DCA_MODELS does not name a folder."""
    models = []
    for folder in find_bundles():
        try:
            models.append(Model(folder, read_metadata(folder)))
        except UserError as error:
            models.append(Model(folder, None, error))
    return models


AUTOMATIC = "auto"


def showDevices(selector: qt.QComboBox, names: Mapping[str, str], devices: FoundDevices | None) -> None:
    """Show in the items of ``selector`` which devices were found; ``devices`` is None while they are unknown.

    ``names`` maps the worker's key of each device to its name in the list. Slicer binds the selector to the parameter
    node by the order of its items, so only the texts change.
    """
    for index, (key, name) in enumerate(names.items()):
        selector.setItemText(index, _formatDevice(key, name, names, devices))


def _formatDevice(key: str, name: str, names: Mapping[str, str], devices: FoundDevices | None) -> str:
    if devices is None:
        return name
    if key == AUTOMATIC:
        first = next(iter(devices.found), "")
        return _("{name}: {device}").format(name=name, device=names.get(first, first))
    if key not in devices.found:
        return _("{name}: {reason}").format(name=name, reason=devices.missing.get(key, _("none found")))
    further = sum(found.startswith(f"{key}:") for found in devices.found)
    more = _(", and {count} more").format(count=further) if further else ""
    return _("{name}: {device}").format(name=name, device=devices.found[key] + more)
