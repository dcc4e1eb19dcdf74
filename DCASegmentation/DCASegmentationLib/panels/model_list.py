"""The models that can be chosen, each with what its bundle says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from DCASegmentationLib.bundle.finding import find_bundles, own_models
from DCASegmentationLib.bundle.metadata import Metadata
from DCASegmentationLib.bundle.metadata_reading import read_metadata
from DCASegmentationLib.errors import UserError


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
