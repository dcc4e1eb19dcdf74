"""Segmentation of abdominal organs in CT with DCA (Divide, Conquer, and Aggregate), its training and its evaluation.

::

    import dcaseg

    result = dcaseg.segment("ct.nii.gz")
    print(result.volumes_ml)
    result.save("result")

The names in ``__all__`` are the public API. ``api`` documents those that segment. ``DCANet``, ``partition`` and
``segmentation_loss`` are the method, for your own training loop (``DCANet`` has an example). ``training`` trains models
with ours. ``import dcaseg`` is fast: torch and other large libraries are imported only when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Segmentation as Segmentation
    from .api import Segmenter as Segmenter
    from .api import load_model as load_model
    from .api import read_ct as read_ct
    from .api import segment as segment
    from .method.log_gap import partition as partition
    from .method.losses import segmentation_loss as segmentation_loss
    from .method.network import DCANet as DCANet

__version__ = "0.1.0"
__all__ = [
    "DCANet",
    "Segmentation",
    "Segmenter",
    "load_model",
    "partition",
    "read_ct",
    "segment",
    "segmentation_loss",
]
_MODULES = {"DCANet": "method.network", "partition": "method.log_gap", "segmentation_loss": "method.losses"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dcaseg' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES.get(name, 'api')}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
