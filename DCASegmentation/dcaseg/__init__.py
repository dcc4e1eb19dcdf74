"""Segmentation of abdominal organs in CT with DCA (Divide, Conquer, and Aggregate), its training and its evaluation.

::

    import dcaseg

    result = dcaseg.segment("ct.nii.gz")
    print(result.volumes_ml)
    result.save("result")

The names in ``__all__`` are the public API; ``api`` documents them. To train a model from Python, see ``training``.
``import dcaseg`` is fast: torch and other large libraries are imported only when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Segmentation as Segmentation
    from .api import Segmenter as Segmenter
    from .api import load_model as load_model
    from .api import read_ct as read_ct
    from .api import segment as segment

__version__ = "0.1.0"
__all__ = ["Segmentation", "Segmenter", "load_model", "read_ct", "segment"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dcaseg' has no attribute '{name}'")
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
