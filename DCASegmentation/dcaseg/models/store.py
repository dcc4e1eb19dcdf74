"""The folders of installed bundles: the user's own first, then those shipped with the program."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BundleError
from ..json_io import parse_json
from ..user_folders import expand_user, get_home_or_temporary
from .metadata import CLICK_NETWORK, METADATA
from .metadata_reader import MAX_METADATA_BYTES

VARIABLE = "DCA_MODELS"
"""The environment variable with further folders of bundles."""


def get_user_models_folder() -> Path:
    """The folder of the models that the user added; it may not exist yet.

    Without a home folder, it is in the system's temporary folder, and only this user can write to it.
    """
    return get_home_or_temporary() / ".dca" / "models"


def find_bundles() -> list[Path]:
    """The folders of all bundles that segment, the default one first.

    They are searched in the folders named by the environment variable DCA_MODELS (each a bundle, or a folder of
    bundles), in ~/.dca/models, and among those shipped with this program. Of several bundles with the same folder name,
    only the first is returned. Raises BundleError if DCA_MODELS names a folder that does not exist.
    """
    return [folder for folder in _find_all_bundles() if not _is_click_network(folder)]


def find_click_bundles() -> list[Path]:
    """The folders of all bundles of click networks, the default one first; searched like those of ``find_bundles``."""
    return [folder for folder in _find_all_bundles() if _is_click_network(folder)]


def find_click_bundle(name_or_folder: str) -> Path:
    """The folder of the click network with this name or path; a path takes precedence. Raises BundleError."""
    folder = expand_user(name_or_folder)
    if folder.is_dir():
        return folder
    bundles = {bundle.resolve().name: bundle for bundle in find_click_bundles()}
    if name_or_folder not in bundles:
        known = f"Known click networks: {', '.join(bundles)}." if bundles else "No click network is installed."
        raise BundleError(f"There is no click network '{name_or_folder}'.", known)
    return bundles[name_or_folder]


def find_default_bundle() -> Path:
    """The folder of the bundle to use if none is selected. Raises BundleError if there is none."""
    bundles = find_bundles()
    if not bundles:
        raise BundleError(
            "No model bundle was found.",
            f"Add one (dca bundle add, or Setup in Slicer), or set {VARIABLE} to a folder of bundles.",
        )
    return bundles[0]


def find_bundle(name_or_folder: str) -> Path:
    """The folder of the bundle with this name or path; a path takes precedence. Raises BundleError if it is neither."""
    folder = expand_user(name_or_folder)
    if folder.exists():
        return folder
    bundles = {bundle.resolve().name: bundle for bundle in find_bundles()}
    if name_or_folder not in bundles:
        known = (
            f"Known models: {', '.join(bundles)}." if bundles else "No model is installed: give the folder of a bundle."
        )
        raise BundleError(f"There is no model bundle '{name_or_folder}'.", known)
    return bundles[name_or_folder]


def find_shipped_bundles() -> list[Path]:
    """The folders of the bundles that segment and are shipped, including those hidden by others."""
    return [
        folder
        for location in _get_shipped_folders()
        if location.is_dir()
        for folder in sorted(location.iterdir())
        if (folder / METADATA).is_file() and not _is_click_network(folder)
    ]


def find_hidden_bundle(bundle: Path) -> Path | None:
    """The shipped bundle that ``bundle`` hides, as it has the same name; None if there is none."""
    for shipped in find_shipped_bundles():
        if shipped.resolve() != bundle.resolve() and shipped.resolve().name == bundle.resolve().name:
            return shipped
    return None


def _find_all_bundles() -> list[Path]:
    """All bundles, of any kind. Of several with the same folder name, only the first is listed."""
    bundles: dict[str, Path] = {}
    for location in [*_from_environment(), get_user_models_folder(), *_get_shipped_folders()]:
        for folder in [location, *sorted(location.iterdir())] if location.is_dir() else []:
            if (folder / METADATA).is_file():
                bundles.setdefault(folder.resolve().name, folder)
    return list(bundles.values())


def _is_click_network(bundle: Path) -> bool:
    try:
        with (bundle / METADATA).open("rb") as file:
            content = parse_json(file.read(MAX_METADATA_BYTES))
    except (OSError, ValueError):
        # The code that loads the bundle reports what is wrong with it.
        return False
    return isinstance(content, dict) and CLICK_NETWORK in content


def _from_environment() -> list[Path]:
    folders = [expand_user(entry) for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    for folder in folders:
        if not folder.is_dir():
            raise BundleError(
                f"{VARIABLE} contains {folder}, which is not a folder.", f"Set {VARIABLE} to a folder of bundles."
            )
    return folders


def _get_shipped_folders() -> list[Path]:
    return [Path(__file__).resolve().parent / "shipped"]
