"""``dca benchmark panel``: what passes between Apply and the segments beside the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..home import home_or_temporary
from .bundle import load
from .console import output, progress_bar, say_plain, table, warn
from .values import new_file

NAME = "panel"
EXAMPLES = "Example: dca benchmark panel"


def run(
    bundle: Annotated[str | None, typer.Option(help="Folder or name of the model. Else the default one.")] = None,
    slices: Annotated[int, typer.Option(min=16, help="Slices of the synthetic CT, of 512 x 512 voxels.")] = 150,
    ct: Annotated[Path | None, typer.Option(help="A CT to measure on instead.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the worker.")] = 2,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the synthetic CT.", show_default="~/.dca/benchmark")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file with the seconds.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Measure the way of a CT from the scene through a warm worker back into the scene, without the module's widgets.

    Times are wall times: they count on a computer that does nothing else. Without slicer-core
    (pip install "dca-segmentation[scene]") the scene's part is left out.
    """
    from ..benchmark.panel import LIMIT_S, NETWORK, has_scene, measure_panel
    from ..benchmark.process_cost import with_threads
    from ..benchmark.subject import benchmark_ct
    from ..imaging.writing import write_json

    if out is not None:
        new_file(out, overwrite)
    model = load(bundle)
    with progress_bar() as progress:
        path = ct or benchmark_ct(cache or home_or_temporary() / ".dca" / "benchmark", slices, progress)
        shares = {"first run": 0.3, "warm run": 0.7}
        times = measure_panel(
            path,
            model.folder,
            model.metadata.vocabulary,
            with_threads(threads),
            lambda name: progress(shares[name], name.capitalize()),
        )
    if not has_scene():
        warn("slicer-core is not installed: export from the scene and import into it are not measured.")
    shown = table(f"{path.name} with {model.metadata.name}, warm worker", "Step", "Seconds", numbers=("Seconds",))
    for step, seconds in times.seconds.items():
        shown.add_row(step, f"{seconds:.2f}")
    output().print(shown)
    verdict = "met" if times.outside <= LIMIT_S else "missed"
    say_plain(f"All but the {NETWORK}: {times.outside:.2f} s (target: at most {LIMIT_S:g} s; {verdict}).")
    if out is not None:
        write_json({"ct": str(path), "model": model.metadata.name, "threads": threads, **vars(times)}, out)
        say_plain(f"Written: {out}")
