"""``dca benchmark inference``: whole segmentations, ours and other programs', side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import OutputError, UserError
from ..user_folders import home_or_temporary
from .console import output, progress_bar, say, says_when_cancelled, table, warn
from .option_values import patch as patch_of
from .option_values import words

if TYPE_CHECKING:
    from ..benchmark.pipelines import Setting
    from ..benchmark.runs import Run, Runs

NAME = "inference"
EXAMPLES = "Example: dca benchmark inference -o benchmark --windows 2"

_RUNS = "runs.csv"
_SETTING = "setting.json"


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the table, the plot and all runs.")],
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each program, in turn; medians count.")] = 3,
    peer_rounds: Annotated[
        int | None, typer.Option(min=1, help="Runs of the other programs.", show_default="as many")
    ] = None,
    windows: Annotated[
        str, typer.Option(help="How many windows the others compute; the rest is replayed. Or all.")
    ] = "all",
    our_windows: Annotated[str, typer.Option(help="The same for ours.")] = "all",
    only: Annotated[str | None, typer.Option(help="Only these, as in ours,nnunet.")] = None,
    slices: Annotated[int, typer.Option(min=16, help="Slices of the synthetic CT, of 512 x 512 voxels.")] = 150,
    ct: Annotated[Path | None, typer.Option(help="A CT (NIfTI) to measure on instead.")] = None,
    filters: Annotated[int, typer.Option(min=1, help="Channels of our network at full resolution.")] = 16,
    norm: Annotated[Literal["instance", "batch"], typer.Option(help="Its normalization.")] = "batch",
    patch: Annotated[str, typer.Option(help="Its patch in voxels, one side or depth,height,width.")] = "96",
    spacing: Annotated[str, typer.Option(help="Fine and coarse spacing of the models in mm.")] = "1.5,3",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every program.")] = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of CT and models.", show_default="~/.dca/benchmark")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in OUT.")] = False,
) -> None:
    """Measure whole segmentations of one CT: dca segment in several settings, nnU-Net, MONAI's pipeline with our
    network, TotalSegmentator's settings on nnU-Net's network.

    Each is a process of its own; wall time, CPU time and peak memory are those of it and all it starts. All networks
    have random weights. The other programs come with pip install "dca-segmentation[peers]"; one that is missing is
    left out. Ctrl+C keeps what was measured; --resume goes on.
    """
    from ..benchmark.pipelines import Setting, pipelines
    from ..benchmark.rates import measure_rates
    from ..benchmark.report import command_line, inference_plot, inference_report, inference_targets
    from ..benchmark.runs import measure, named, warm_up
    from ..benchmark.subject import benchmark_ct
    from ..imaging.writers import write_text
    from .option_values import numbers

    folder = cache or home_or_temporary() / ".dca" / "benchmark"
    fine, coarse = numbers(spacing, "--spacing", 2)
    kept = f"What was measured is kept in {out}. To go on, run the same command with --resume."
    with says_when_cancelled(lambda: kept), progress_bar() as progress:
        setting = Setting(
            ct=_own(ct) if ct is not None else benchmark_ct(folder, slices, progress),
            folder=folder,
            windows=_windows(windows, "--windows"),
            our_windows=_windows(our_windows, "--our-windows"),
            n_filters=filters,
            norm=norm,
            patch=patch_of(patch, smallest=32),
            fine_mm=fine,
            coarse_mm=coarse,
        )
        known = pipelines(setting)
        chosen = known if only is None else named(words(only), known)
        done = _begin(out, setting, threads, resume)

        def keep(each: Run) -> None:
            done.write(out / _RUNS)
            say(f"{each.key}: {each.cpu_s:.1f} CPU s, {each.wall_s:.1f} s, {each.peak_mib:.0f} MiB")

        warm_up(chosen, setting, threads)
        measure(chosen, rounds, threads, done, keep, peer_rounds, progress)
        rates = measure_rates(setting.bundle(fine), threads)
    shown = [pipeline for pipeline in known if done.of(pipeline.key) or pipeline.key in done.left_out]
    targets = inference_targets(done, rates)
    about = {"CT": _about_ct(setting.ct), "command": command_line(), "threads": str(threads)}
    write_text(inference_report(done, shown, targets, rates, about), out / "benchmark.md")
    inference_plot(done, shown, about["CT"]).savefig(out / "benchmark.png", dpi=150)
    for key, reason in done.left_out.items():
        warn(f"{key} is left out: {reason}.")
    listed = table("Targets", "", "Target", "Measured", "", numbers=("Target", "Measured"))
    for target in targets:
        sign = "≥" if target.at_least else "≤"
        value = "" if target.value is None else f"{target.value:.3g}"
        listed.add_row(target.name, f"{sign} {target.limit:g}", value, target.words)
    output().print(listed)
    say(f"Table, plot and runs are in {out}.")


def _windows(text: str, option: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{option} '{text}' is no number of windows.", "Write all, or a number from 1 on.")
    return int(text)


def _own(ct: Path) -> Path:
    if not ct.is_file() or not ct.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{ct} is no NIfTI file.", "All of the programs read .nii and .nii.gz: give such a file.")
    return ct


def _begin(out: Path, setting: Setting, threads: int, resume: bool) -> Runs:
    """The runs that are in ``out`` already, of the same setting; a new folder without --resume."""
    import json
    from dataclasses import asdict

    from ..benchmark.runs import Runs
    from ..imaging.writers import write_json

    told = json.loads(json.dumps({**asdict(setting), "threads": threads}, default=str))
    if resume:
        try:
            kept = json.loads((out / _SETTING).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"There is nothing to go on with in {out}.", "Leave out --resume.") from None
        if kept != told:
            changed = [name for name in told if kept.get(name) != told[name]]
            raise UserError(f"{out} was measured with another {', '.join(changed)}.", "Choose another folder.")
        return Runs.read(out / _RUNS) if (out / _RUNS).exists() else Runs([], {})
    if out.exists():
        raise OutputError(f"{out} exists already.", "Choose another folder, or add --resume to go on with it.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"There is no folder {out.parent}.", "Create it first.")
    out.mkdir()
    write_json(told, out / _SETTING)
    return Runs([], {})


def _about_ct(path: Path) -> str:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = " x ".join(map(str, reader.GetSize()))
    return f"{size} voxels of {' x '.join(f'{side:.3g}' for side in reader.GetSpacing())} mm"
