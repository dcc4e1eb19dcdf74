"""Where bundles lie: the user's own first, then those that came with the program."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BundleError
from ..user_folders import expanded, home_or_temporary
from .metadata import METADATA

VARIABLE = "DCA_MODELS"


def own_models() -> Path:
    """The folder of the models the user added; it need not exist. Without a home folder, one of the system's
    temporary folder that only this user can write into."""
    return home_or_temporary() / ".dca" / "models"


def find_bundles() -> list[Path]:
    """Folders of all bundles found, the one to use by default first.

    They are looked for in the folders that the environment variable DCA_MODELS names (a bundle, or a folder of
    bundles), in ~/.dca/models, and those shipped with this program. Of bundles with
    the same folder name the first counts. Raises BundleError if DCA_MODELS names a folder that does not exist.
    """
    found: dict[str, Path] = {}
    for place in [*_from_environment(), own_models(), *_shipped()]:
        for folder in [place, *sorted(place.iterdir())] if place.is_dir() else []:
            if (folder / METADATA).is_file():
                found.setdefault(folder.resolve().name, folder)
    return list(found.values())


def default_bundle() -> Path:
    """The folder of the bundle to use when none is named. Raises BundleError if there is none."""
    bundles = find_bundles()
    if not bundles:
        raise BundleError(
            "No model bundle was found.",
            f"Name one, put one into {Path('~') / '.dca' / 'models'}, or set {VARIABLE} to a folder of bundles.",
        )
    return bundles[0]


def find_bundle(name_or_folder: str) -> Path:
    """The bundle of this name or in this folder; a folder wins. Raises BundleError if there is neither."""
    folder = expanded(name_or_folder)
    if folder.exists():
        return folder
    bundles = {bundle.resolve().name: bundle for bundle in find_bundles()}
    if name_or_folder not in bundles:
        known = f"Known models: {', '.join(bundles)}." if bundles else "No model is installed: give a bundle's folder."
        raise BundleError(f"There is no model bundle '{name_or_folder}'.", known)
    return bundles[name_or_folder]


def shipped_bundles() -> list[Path]:
    """Folders of the bundles that came with the program, whether others hide them or not."""
    return [
        folder
        for place in _shipped()
        if place.is_dir()
        for folder in sorted(place.iterdir())
        if (folder / METADATA).is_file()
    ]


def hidden_by(bundle: Path) -> Path | None:
    """The bundle that came with the program and is not found by its name, as ``bundle`` has that name, too."""
    for shipped in shipped_bundles():
        if shipped.resolve() != bundle.resolve() and shipped.resolve().name == bundle.resolve().name:
            return shipped
    return None


def _from_environment() -> list[Path]:
    places = [expanded(entry) for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    for place in places:
        if not place.is_dir():
            raise BundleError(
                f"{VARIABLE} names {place}, which is no folder.", f"Set {VARIABLE} to a folder of bundles."
            )
    return places


def _shipped() -> list[Path]:
    return [Path(__file__).resolve().parent / "shipped"]
