"""The engines by name, and the one that clicks use if none is named. This file does not import torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ..errors import BundleError, UserError, summarize_error
from ..models.store import find_click_bundle, find_click_bundles
from .calibration import create_calibrated_engine
from .click_classifier import ClassifierEngine
from .random_walker import RandomWalkerEngine, SeededRandomWalker
from .view import Engine

_log = logging.getLogger(__name__)

AUTO = "auto"
"""The name of ``create_default_engine``."""


def create_default_engine() -> Engine:
    """Return the engine of the first click network that is installed, with its weights loaded.

    Without a click network or PyTorch, or if either of them is damaged, return the random walker.
    """
    bundles = find_click_bundles()
    if bundles and has_torch():
        try:
            return _create_network_engine(bundles[0])
        except (BundleError, ImportError, OSError) as error:
            _log.warning("The click network in %s cannot be used: %s", bundles[0], summarize_error(error))
    return ClassifierEngine()


def create_engine(name: str) -> Engine:
    """Return the engine called ``name``: auto, classifier, a baseline, or a click network.

    The baselines for measurements are random_walker and seeded_random_walker. A click network is the name of an
    installed bundle, or a folder. Raises UserError if there is no such engine, if the network is damaged, or if
    PyTorch, which it needs, is not installed.
    """
    engines: dict[str, Callable[[], Engine]] = {
        ClassifierEngine.name: ClassifierEngine,
        RandomWalkerEngine.name: RandomWalkerEngine,
        SeededRandomWalker.name: SeededRandomWalker,
    }
    if name == AUTO:
        return create_default_engine()
    if name in engines:
        return engines[name]()
    try:
        folder = find_click_bundle(name)
    except BundleError:
        installed = [bundle.resolve().name for bundle in find_click_bundles()]
        raise UserError(
            f"The engine '{name}' does not exist.",
            f"Choose {', '.join([AUTO, *engines, *installed])}, or the folder of a click network.",
        ) from None
    if not has_torch():
        raise UserError("A click network needs PyTorch, which is not installed.", "Use the engine classifier.")
    return _create_network_engine(folder)


def has_torch() -> bool:
    """Whether PyTorch is installed. It is not imported."""
    return find_spec("torch") is not None


def _create_network_engine(folder: Path) -> Engine:
    from .click_network import NetworkEngine, load_click_bundle

    bundle = load_click_bundle(folder)
    return create_calibrated_engine(bundle.name, NetworkEngine(bundle.network()))
