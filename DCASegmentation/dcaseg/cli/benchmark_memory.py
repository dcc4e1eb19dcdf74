"""``dca benchmark memory``: how peak memory depends on the length of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..user_folders import get_home_or_temporary
from .console import make_table, print_line, print_table, progress_bar, warn
from .field_options import expand
from .option_values import parse_integers, parse_list, require_new_file
from .options import MODEL_PANEL, BenchmarkedNetwork, BenchmarkThreads, overwrite_option

if TYPE_CHECKING:
    from ..benchmark.memory import Growth

NAME = "memory"
EXAMPLES = "Example: dca benchmark memory -o memory.csv"

_PEERS = ("nnunet", "monai")


@expand
def run(
    *,
    slices: Annotated[
        str, typer.Option(help="Numbers of slices of the synthetic CTs, each slice 512 x 512 voxels.")
    ] = "75,150,450",
    only: Annotated[str, typer.Option(help="Programs to measure (see dca benchmark inference).")] = "ours,nnunet,monai",
    windows: Annotated[
        int, typer.Option(min=1, help="Windows that the other programs compute; their results are reused for the rest.")
    ] = 1,
    our_windows: Annotated[
        int | None, typer.Option(min=1, help="The same for our program.", show_default="all")
    ] = None,
    spacing: Annotated[
        float, typer.Option(min=0.5, help="Voxel spacing of the models in mm.", rich_help_panel=MODEL_PANEL)
    ] = 1.5,
    network: BenchmarkedNetwork,
    threads: BenchmarkThreads = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the CTs and the models.", show_default="~/.dca/benchmark")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="CSV file to write, with the peak memory of each run.")
    ] = None,
    overwrite: Annotated[bool, overwrite_option("an existing file")] = False,
) -> None:
    """Measure how peak memory grows with the length of the scan.

    The programs are dca segment, nnU-Net, and MONAI's pipeline with our network. Lengths that would need more memory
    than is free are skipped. A scan that is longer than the phantom continues with its mirror image.
    """
    from ..benchmark.inputs import create_benchmark_ct
    from ..benchmark.memory import measure_growth
    from ..benchmark.pipelines import Setting, list_pipelines
    from ..benchmark.process_cost import ProcessFailedError
    from ..benchmark.runs import run_once, select_pipelines, warm_up
    from ..imaging.writers import write_text

    if out is not None:
        require_new_file(out, overwrite)
    lengths = parse_integers(slices, "--slices", "75,150,450")
    if min(lengths) < 16:
        raise UserError(f"--slices '{slices}' contains a scan that is too short.", "Specify at least 16 slices.")
    folder = cache or get_home_or_temporary() / ".dca" / "benchmark"
    select_pipelines(parse_list(only), list_pipelines(Setting(Path(), folder)))
    growths: dict[str, Growth] = {}
    with progress_bar() as progress:
        settings = {
            length: Setting(
                create_benchmark_ct(folder, length, progress),
                folder,
                windows=windows,
                our_windows=our_windows,
                n_filters=network.filters,
                norm=network.norm,
                patch=network.sides,
                fine_mm=spacing,
                coarse_mm=2 * spacing,
            )
            for length in lengths
        }
        chosen = select_pipelines(parse_list(only), list_pipelines(settings[lengths[0]]))
        warm_up(chosen, settings[lengths[0]], threads)
        for pipeline in chosen:
            if pipeline.missing is not None:
                warn(f"{pipeline.key} was skipped: {pipeline.missing} is not installed.")
                continue

            def measure_peak(length: int, key: str = pipeline.key) -> float:
                progress(0.0, f"{key}, {length} slices")
                peak = run_once(select_pipelines([key], list_pipelines(settings[length]))[0], 1, threads).peak_mib
                print_line(f"{key}, {length} slices: {peak:.0f} MiB")
                return peak

            try:
                growths[pipeline.key] = measure_growth(measure_peak, lengths)
            except ProcessFailedError as error:
                warn(f"{pipeline.key} failed and was skipped: {error}.")
    columns = (*(f"{length} slices" for length in sorted(lengths)), "MiB per slice")
    rows = make_table("Peak memory in MiB", "Program", *columns, numbers=columns)
    lines = ["program,slices,peak_mib,note"]
    for key, growth in growths.items():
        peaks = [f"{growth.peaks_mib[n]:.0f}" if n in growth.peaks_mib else "skipped" for n in sorted(lengths)]
        slope = growth.mib_per_slice
        rows.add_row(key, *peaks, "" if slope is None else f"{slope:.2f}")
        lines += [f"{key},{length},{peak:.1f}," for length, peak in growth.peaks_mib.items()]
        lines += [f'{key},{length},,"{reason}"' for length, reason in growth.left_out.items()]
        for length, reason in growth.left_out.items():
            warn(f"{key} with {length} slices was skipped: {reason}.")
    print_table(rows)
    _print_ratios(growths)
    if out is not None:
        write_text("\n".join(lines) + "\n", out)
        print_line(f"Written: {out}")


def _print_ratios(growths: dict[str, Growth]) -> None:
    ours = growths["ours"].mib_per_slice if "ours" in growths else None
    for peer in _PEERS:
        theirs = growths[peer].mib_per_slice if peer in growths else None
        if ours is not None and theirs:
            target = " (target: at most 0.05)" if peer == "nnunet" else ""
            print_line(f"Growth per slice relative to {peer}: {ours / theirs:.3f}{target}.")
