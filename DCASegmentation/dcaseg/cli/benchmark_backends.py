"""``dca benchmark backends``: how fast the backends segment CTs, and how far their labels agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .console import make_table, print_line, print_table, progress_bar
from .option_values import load_bundle, parse_list, require_new_file
from .options import BundleOption, overwrite_option

NAME = "backends"
EXAMPLES = "Example: dca benchmark backends ct.nii.gz --backends openvino,openvino-bf16 --rounds 3"


def run(
    cts: Annotated[list[Path], typer.Argument(help="CTs: image files or folders of DICOM files.", metavar="CT...")],
    bundle: BundleOption = None,
    backends: Annotated[
        str, typer.Option(help="Backends to compare (see dca segment); the first one is the reference.")
    ] = "openvino,openvino-bf16",
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each backend on each CT, interleaved.")] = 1,
    maps: Annotated[bool, typer.Option("--maps", help="Also make maps, and compare entropy and attention.")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="CSV file to write, with a row for each run and organ.")
    ] = None,
    overwrite: Annotated[bool, overwrite_option("an existing file")] = False,
) -> None:
    """Compare the CPU time and the labels of backends on CTs.

    The labels are compared with those of the first backend: Dice of each organ, its mean over the organs, and the
    lowest one. No annotations are needed.
    """
    import csv
    import io
    from statistics import median

    from ..benchmark.backends import BackendRun, compare_backends
    from ..imaging.readers import read_ct
    from ..imaging.writers import write_text
    from ..inference.options import SegmentOptions
    from ..inference.process_settings import keep_freed_memory

    if out is not None:
        require_new_file(out, overwrite)
    names = parse_list(backends)
    if not names:
        raise UserError("--backends names no backend.", "Example: --backends eager,openvino.")
    options = SegmentOptions(attention_levels=(4,), entropy=True) if maps else SegmentOptions()
    keep_freed_memory()
    model = load_bundle(bundle)
    done: list[BackendRun] = []
    with progress_bar() as progress:

        def on_run(each: BackendRun) -> None:
            done.append(each)
            progress(len(done) / (len(cts) * len(names) * rounds), f"{each.case}: {each.backend}")

        compare_backends(model, ((str(path), read_ct(path)) for path in cts), names, rounds, options, on_run)
    columns = ("CPU s", "Ratio", "Mean Dice", "Lowest Dice", *(("Entropy", "Attention") if maps else ()))
    rows = make_table(f"{model.metadata.name}: agreement with {names[0]}", "CT", "Backend", *columns, numbers=columns)
    for case in dict.fromkeys(each.case for each in done):
        seconds = {
            name: median(each.cpu_s for each in done if (each.case, each.backend) == (case, name)) for name in names
        }
        for name in names:
            last = next(each for each in reversed(done) if (each.case, each.backend) == (case, name))
            lowest, organ = last.min_agreement
            differences = [
                "" if difference is None else f"{difference:.4f}" for difference in (last.entropy, last.attention)
            ]
            rows.add_row(
                case,
                name,
                f"{seconds[name]:.1f}",
                f"{seconds[name] / seconds[names[0]]:.2f}",
                f"{last.mean_agreement:.4f}",
                f"{lowest:.4f} {organ}".rstrip(),
                *(differences if maps else ()),
            )
    print_table(rows)
    if out is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["ct", "backend", "round", "cpu_s", "organ", "dice"])
        for each in done:
            for organ, dice in each.agreement.items():
                writer.writerow([each.case, each.backend, each.round, f"{each.cpu_s:.3f}", organ, f"{dice:.5f}"])
        write_text(text.getvalue(), out)
        print_line(f"Written: {out}")
