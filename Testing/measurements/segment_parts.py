"""Print the CPU seconds of the parts of ``dca segment``, including importing libraries and what is written for Slicer.

Run: OMP_NUM_THREADS=1 python Testing/measurements/segment_parts.py CT -o OUT [further options of dca segment]

The phases in ``log.txt`` are wall time; on a busy computer, CPU time is steadier. A part includes the parts under it.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# Module, and its functions that are timed once it is imported.
FUNCTIONS = {
    "dcaseg.inference.pipeline": ("read_ct", "check_ct", "_write_images"),
    "DCASegmentationLib.scene.scene_builder": ("build_scene", "save_segmentation", "save_scene_bundle"),
    "DCASegmentationLib.scene.offscreen": ("draw", "render_planes", "render_organs", "render_maps", "write_picture"),
}
# Imported in this order, so that each line has what the lines before did not import.
IMPORTS = ("numpy", "SimpleITK", "torch", "dcaseg.inference.pipeline")

seconds: dict[str, float] = {}


@contextmanager
def part(name: str) -> Iterator[None]:
    """Add the CPU time of the block to the part ``name``."""
    started = time.process_time()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - started


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its time added to the part ``name``."""

    def call(*args: Any, **settings: Any) -> Any:
        with part(name):
            return function(*args, **settings)

    return call


def time_functions(module: ModuleType) -> None:
    """Time the functions of a module in ``FUNCTIONS``."""
    for name in FUNCTIONS[module.__name__]:
        setattr(module, name, timed(name, getattr(module, name)))


def main() -> int:
    """Run ``dca segment`` with the arguments of this program, and print the parts."""
    with part("import dcaseg.cli"):
        from dcaseg.cli import main as dca
        from dcaseg.cli import segment
        from dcaseg.inference.process_settings import importing
    for name in IMPORTS:
        with part(f"import {name}"), importing():
            importlib.import_module(name)
    from dcaseg.inference import pipeline, segmenter

    time_functions(pipeline)
    # The phases of the log become CPU time, too.
    segmenter.perf_counter = time.process_time  # type: ignore[assignment]
    import_slicer_side = segment._import_from_slicer_side
    known: set[str] = set()

    def timed_import(name: str) -> Any:
        with part(f"import {name}"):
            module = import_slicer_side(name)
        if name not in known:
            known.add(name)
            time_functions(module)
        return module

    segment._import_from_slicer_side = timed_import
    code = dca(["segment", *sys.argv[1:]])
    print("\nCPU seconds, in addition to the phases in log.txt:")
    for name, value in seconds.items():
        print(f"  {name:40} {value:5.2f}")
    print(f"  {'whole process':40} {time.process_time():5.2f}")
    return code


if __name__ == "__main__":
    sys.exit(main())
