"""``dca benchmark inference``: compare complete segmentations with those of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import OutputError, UserError, get_reason
from ..user_folders import get_home_or_temporary
from .console import cancellation_message, make_table, print_line, print_table, progress_bar, warn
from .field_options import expand
from .option_values import parse_list
from .options import MODEL_PANEL, BenchmarkedNetwork, BenchmarkThreads

if TYPE_CHECKING:
    from ..benchmark.pipelines import Setting
    from ..benchmark.runs import Run, Runs

NAME = "inference"
EXAMPLES = "Example: dca benchmark inference -o benchmark --windows 2"

_RUNS = "runs.csv"
_SETTING = "setting.json"
_LABELS = "labels"


@expand
def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the table, the plot and all runs.")],
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each program, interleaved. The median is reported.")] = 3,
    peer_rounds: Annotated[
        int | None, typer.Option(min=1, help="Runs of the other programs.", show_default="same as --rounds")
    ] = None,
    windows: Annotated[
        str,
        typer.Option(
            help="Number of windows that other programs compute (the rest reuse their results), or all. The shipped "
            "model always computes all."
        ),
    ] = "all",
    our_windows: Annotated[str, typer.Option(help="The same for our program.")] = "all",
    only: Annotated[str | None, typer.Option(help="Only measure these programs, such as ours,nnunet.")] = None,
    slices: Annotated[int, typer.Option(min=16, help="Slices of the synthetic CT, each 512 x 512 voxels.")] = 150,
    ct: Annotated[Path | None, typer.Option(help="Use this CT (NIfTI) instead of the synthetic one.")] = None,
    network: BenchmarkedNetwork,
    spacing: Annotated[
        str, typer.Option(help="Fine and coarse voxel spacing of the models in mm.", rich_help_panel=MODEL_PANEL)
    ] = "1.5,3",
    threads: BenchmarkThreads = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the CT and the models.", show_default="~/.dca/benchmark")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the measurement in OUT.")] = False,
) -> None:
    """Compare the time and memory of complete segmentations with other programs.

    One CT is segmented with dca segment in several settings, with nnU-Net, with MONAI's pipeline and our network, and
    with TotalSegmentator's settings and nnU-Net's network. Each segmentation runs in its own process. Wall time, CPU
    time and peak memory include all child processes. All networks have random weights, except those of the shipped
    model, whose labels are compared with MONAI's. Programs that are not installed are skipped; to install them, run
    **pip install nnunetv2 nibabel scipy psutil**. Ctrl+C keeps the measurements, and **--resume** continues.
    """
    from ..benchmark.inputs import create_benchmark_ct
    from ..benchmark.pipelines import Setting, list_pipelines
    from ..benchmark.rates import measure_rates
    from ..benchmark.report import evaluate_targets, format_command_line, format_inference_report, plot_inference
    from ..benchmark.runs import compute_agreements, measure, select_pipelines, warm_up
    from ..imaging.writers import write_text
    from .option_values import parse_numbers

    folder = cache or get_home_or_temporary() / ".dca" / "benchmark"
    fine, coarse = parse_numbers(spacing, "--spacing", 2)
    message = f"The measurements so far are in {out}. To continue, run the same command with --resume."
    # Wrong options are refused before the work of making a CT.
    if only is not None:
        select_pipelines(parse_list(only), list_pipelines(Setting(Path(), folder)))
    if not resume and out.exists():
        raise OutputError(f"{out} already exists.", "Choose another folder, or add --resume to continue.")
    if resume and not (out / _SETTING).exists():
        raise UserError(f"{out} contains no measurement to continue.", "Omit --resume.")
    with cancellation_message(lambda: message), progress_bar() as progress:
        setting = Setting(
            ct=_require_nifti(ct) if ct is not None else create_benchmark_ct(folder, slices, progress),
            folder=folder,
            windows=_parse_windows(windows, "--windows"),
            our_windows=_parse_windows(our_windows, "--our-windows"),
            n_filters=network.filters,
            norm=network.norm,
            patch=network.sides,
            fine_mm=fine,
            coarse_mm=coarse,
        )
        available = list_pipelines(setting)
        chosen = available if only is None else select_pipelines(parse_list(only), available)
        runs = _open_runs(out, setting, threads, resume)

        def save(each: Run) -> None:
            runs.write(out / _RUNS)
            print_line(f"{each.key}: {each.cpu_s:.1f} CPU s, {each.wall_s:.1f} s, {each.peak_mib:.0f} MiB")

        warm_up(chosen, setting, threads)
        measure(chosen, rounds, threads, runs, save, peer_rounds, progress, out / _LABELS)
        rates = measure_rates(setting.get_bundle_folder(fine), threads)
    reported = [pipeline for pipeline in available if runs.get_runs(pipeline.key) or pipeline.key in runs.left_out]
    targets = evaluate_targets(runs, rates)
    about = {"CT": _describe_ct(setting.ct), "command": format_command_line(), "threads": str(threads)}
    agreement = compute_agreements(reported, out / _LABELS)
    write_text(format_inference_report(runs, reported, targets, rates, about, agreement), out / "benchmark.md")
    plot_inference(runs, reported, about["CT"]).savefig(out / "benchmark.png", dpi=150)
    for key, reason in runs.left_out.items():
        warn(f"{key} was skipped: {reason}.")
    rows = make_table("Targets", "", "Target", "Measured", "", numbers=("Target", "Measured"))
    for target in targets:
        sign = "≥" if target.at_least else "≤"
        value = "" if target.value is None else f"{target.value:.3g}"
        rows.add_row(target.name, f"{sign} {target.limit:g}", value, target.words)
    print_table(rows)
    print_line(f"The table, the plot and the runs are in {out}.")


def _parse_windows(text: str, option: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{option} '{text}' is not a number of windows.", "Specify all, or a number of at least 1.")
    return int(text)


def _require_nifti(ct: Path) -> Path:
    if not ct.is_file() or not ct.name.endswith((".nii", ".nii.gz")):
        raise UserError(
            f"{ct} is not a NIfTI file.", "Specify a .nii or .nii.gz file, which all the programs can read."
        )
    return ct


def _open_runs(out: Path, setting: Setting, threads: int, resume: bool) -> Runs:
    """Return the earlier runs in ``out``, which must have the same setting. Without --resume, create the folder."""
    import json
    from dataclasses import asdict

    from ..benchmark.runs import Runs
    from ..imaging.writers import write_json

    settings = json.loads(json.dumps({**asdict(setting), "threads": threads}, default=str))
    if resume:
        try:
            earlier = json.loads((out / _SETTING).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{out} contains no measurement to continue.", "Omit --resume.") from None
        if earlier != settings:
            changed = [name for name in settings if earlier.get(name) != settings[name]]
            raise UserError(
                f"The measurement in {out} has different settings: {', '.join(changed)}.", "Choose another folder."
            )
        return Runs.read(out / _RUNS) if (out / _RUNS).exists() else Runs([], {})
    if out.exists():
        raise OutputError(f"{out} already exists.", "Choose another folder, or add --resume to continue.")
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be created: {get_reason(error)}.", "Choose another folder with -o.") from None
    write_json(settings, out / _SETTING)
    return Runs([], {})


def _describe_ct(path: Path) -> str:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = " x ".join(map(str, reader.GetSize()))
    return f"{size} voxels of {' x '.join(f'{side:.3g}' for side in reader.GetSpacing())} mm"
