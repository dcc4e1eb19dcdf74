"""``dca benchmark memory``: peak memory by the length of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError
from ..user_folders import home_or_temporary
from .console import progress_bar, say, show, table, warn
from .option_values import new_file, whole_numbers, words
from .option_values import patch as patch_of

if TYPE_CHECKING:
    from ..benchmark.memory import Growth

NAME = "memory"
EXAMPLES = "Example: dca benchmark memory -o memory.csv"

_PEERS = ("nnunet", "monai")


def run(
    slices: Annotated[str, typer.Option(help="Lengths of the synthetic CT, 512 x 512 voxels each.")] = "75,150,450",
    only: Annotated[str, typer.Option(help="Which programs; see dca benchmark inference.")] = "ours,nnunet,monai",
    windows: Annotated[int, typer.Option(min=1, help="Windows the others compute; the rest is replayed.")] = 1,
    our_windows: Annotated[
        int | None, typer.Option(min=1, help="The same for ours.", show_default="all of them")
    ] = None,
    spacing: Annotated[float, typer.Option(min=0.5, help="Spacing of the models in mm.")] = 1.5,
    filters: Annotated[int, typer.Option(min=1, help="Channels of our network at full resolution.")] = 16,
    norm: Annotated[Literal["instance", "batch"], typer.Option(help="Its normalization.")] = "batch",
    patch: Annotated[str, typer.Option(help="Its patch in voxels, one side or depth,height,width.")] = "96",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every program.")] = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of CT and models.", show_default="~/.dca/benchmark")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="CSV file with the peaks.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Measure how peak memory grows with the scan: of dca segment, of nnU-Net, of MONAI's pipeline with our network.

    A length that would take more memory than is free is left out. A scan longer than the synthetic person is continued
    by its mirror image.
    """
    from ..benchmark.memory import measure_growth
    from ..benchmark.pipelines import Setting, pipelines
    from ..benchmark.process_cost import ProcessFailedError
    from ..benchmark.runs import named, run_once, warm_up
    from ..benchmark.subject import benchmark_ct
    from ..imaging.writers import write_text

    if out is not None:
        new_file(out, overwrite)
    lengths = whole_numbers(slices, "--slices", "75,150,450")
    if min(lengths) < 16:
        raise UserError(f"--slices '{slices}' has a scan too short.", "Give lengths of 16 slices or more.")
    folder = cache or home_or_temporary() / ".dca" / "benchmark"
    found: dict[str, Growth] = {}
    with progress_bar() as progress:
        settings = {
            length: Setting(
                benchmark_ct(folder, length, progress),
                folder,
                windows=windows,
                our_windows=our_windows,
                n_filters=filters,
                norm=norm,
                patch=patch_of(patch, smallest=32),
                fine_mm=spacing,
                coarse_mm=2 * spacing,
            )
            for length in lengths
        }
        chosen = named(words(only), pipelines(settings[lengths[0]]))
        warm_up(chosen, settings[lengths[0]], threads)
        for pipeline in chosen:
            if pipeline.missing is not None:
                warn(f"{pipeline.key} is left out: {pipeline.missing} is not installed.")
                continue

            def peak_mib(length: int, key: str = pipeline.key) -> float:
                progress(0.0, f"{key}, {length} slices")
                peak = run_once(named([key], pipelines(settings[length]))[0], 1, threads).peak_mib
                say(f"{key}, {length} slices: {peak:.0f} MiB")
                return peak

            try:
                found[pipeline.key] = measure_growth(peak_mib, lengths)
            except ProcessFailedError as error:
                warn(f"{pipeline.key} is left out: it failed: {error}.")
    columns = (*(f"{length} slices" for length in sorted(lengths)), "MiB per slice")
    shown = table("Peak memory in MiB", "Program", *columns, numbers=columns)
    lines = ["program,slices,peak_mib,note"]
    for key, growth in found.items():
        peaks = [f"{growth.peaks_mib[n]:.0f}" if n in growth.peaks_mib else "left out" for n in sorted(lengths)]
        slope = growth.mib_per_slice
        shown.add_row(key, *peaks, "" if slope is None else f"{slope:.2f}")
        lines += [f"{key},{length},{peak:.1f}," for length, peak in growth.peaks_mib.items()]
        lines += [f'{key},{length},,"{reason}"' for length, reason in growth.left_out.items()]
        for length, reason in growth.left_out.items():
            warn(f"{key}, {length} slices is left out: {reason}.")
    show(shown)
    _say_ratios(found)
    if out is not None:
        write_text("\n".join(lines) + "\n", out)
        say(f"Written: {out}")


def _say_ratios(found: dict[str, Growth]) -> None:
    ours = found["ours"].mib_per_slice if "ours" in found else None
    for peer in _PEERS:
        theirs = found[peer].mib_per_slice if peer in found else None
        if ours is not None and theirs:
            target = " (target: at most 0.05)" if peer == "nnunet" else ""
            say(f"Growth per slice, ours against {peer}: {ours / theirs:.3f}{target}.")
