"""``dca register-label-maps``: anatomies brought to each other, for synthetic bodies between them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .console import progress_bar, say

NAME = "register-label-maps"
EXAMPLES = "Example: dca register-label-maps map_a/ map_b/ -o warps/"


def run(
    label_maps: Annotated[
        list[Path],
        typer.Argument(help="Two or more folders, as dca synthesize takes them.", metavar="LABELMAP_FOLDER..."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results; made if missing.")],
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps prepared label maps, so that they are read once.")
    ] = None,
) -> None:
    """Register label maps to each other, each to all others, for bodies between them.

    Writes a small file for each pair (some 0.5 MB), which dca synthesize --warps and training use. Takes some 10 s for
    a pair. Pairs that are in the folder already are left alone, so an interrupted run continues; delete the folder to
    register label maps again that have changed.
    """
    from ..synthesis.label_to_ct.anatomy import load_anatomy
    from ..synthesis.label_to_ct.registration import register, warp_name, write_warp

    names = [path.resolve().name for path in label_maps]
    if len(set(names)) < len(names):
        raise UserError("Two of the folders have the same name.", "Rename one: results are named after the folders.")
    if len(label_maps) < 2:
        raise UserError("One label map has nothing to be registered to.", "Give two or more.")
    pairs = list(permutations(range(len(label_maps)), 2))
    left = [pair for pair in pairs if not (out / warp_name(names[pair[0]], names[pair[1]])).exists()]
    lines = []
    with progress_bar() as progress:
        anatomies = {}
        for index in sorted({index for pair in left for index in pair}):
            progress(0.0, f"Reading {names[index]}")
            anatomies[index] = load_anatomy(label_maps[index], cache=cache)
        out.mkdir(parents=True, exist_ok=True)
        for number, (a, b) in enumerate(left):
            progress(number / len(left), f"{names[a]} to {names[b]}")
            found = register(anatomies[a], anatomies[b])
            write_warp(found.warp, out / warp_name(names[a], names[b]))
            lines.append(
                f"{names[a]} to {names[b]}: overlap of organs {found.before:.2f} before, {found.after:.2f} after"
            )
    for line in lines:
        say(line)
    say(f"{len(pairs)} registrations are in {out}, {len(left)} of them new.")
