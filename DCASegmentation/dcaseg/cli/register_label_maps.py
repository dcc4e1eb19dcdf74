"""``dca register-label-maps``: register label maps with each other, to make synthetic bodies that lie between them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .console import print_line, progress_bar

NAME = "register-label-maps"
EXAMPLES = "Example: dca register-label-maps map_a/ map_b/ -o warps/"


def run(
    label_maps: Annotated[
        list[Path],
        typer.Argument(help="Two or more folders with label maps (see dca synthesize).", metavar="LABELMAP_FOLDER..."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the results. It is created if it does not exist.")
    ],
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared label maps, so that each is read only once.")
    ] = None,
) -> None:
    """Register label maps with each other, to interpolate synthetic bodies between two of them.

    Each label map is registered with all others. Writes one file of about 0.5 MB for each pair, in about 10 s. **dca
    synthesize --warps** and **dca train --warps** use these files. Pairs that are already in the folder are skipped, so
    an interrupted run can continue. If a label map has changed, delete the folder first.
    """
    from ..synthesis.label_to_ct.anatomy import load_anatomy
    from ..synthesis.label_to_ct.registration import format_warp_name, register, write_warp

    names = [path.resolve().name for path in label_maps]
    if len(set(names)) < len(names):
        raise UserError(
            "Two of the folders have the same name.", "Rename one of them, because results are named after the folders."
        )
    if len(label_maps) < 2:
        raise UserError("Registration needs at least two label maps.", "Specify two or more folders.")
    pairs = list(permutations(range(len(label_maps)), 2))
    missing = [pair for pair in pairs if not (out / format_warp_name(names[pair[0]], names[pair[1]])).exists()]
    lines = []
    with progress_bar() as progress:
        anatomies = {}
        for index in sorted({index for pair in missing for index in pair}):
            progress(0.0, f"Reading {names[index]}")
            anatomies[index] = load_anatomy(label_maps[index], cache=cache)
        out.mkdir(parents=True, exist_ok=True)
        for number, (a, b) in enumerate(missing):
            progress(number / len(missing), f"{names[a]} to {names[b]}")
            registration = register(anatomies[a], anatomies[b])
            write_warp(registration.warp, out / format_warp_name(names[a], names[b]))
            lines.append(
                f"{names[a]} to {names[b]}: organ overlap {registration.before:.2f} before, "
                f"{registration.after:.2f} after"
            )
    for line in lines:
        print_line(line)
    print_line(f"{len(pairs)} registrations are in {out}, {len(missing)} of them new.")
