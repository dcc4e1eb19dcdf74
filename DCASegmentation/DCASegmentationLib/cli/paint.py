"""``dca paint``: a CT painted from label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import progress_bar, say_plain
from .values import spacing as spacing_of

NAME = "paint"
EXAMPLES = "Example: dca paint my_label_map/ --seed 7 -o painted/"

PaintedPhase = Literal["any", "portal_venous", "arterial", "delayed", "none"]

# By this file an earlier painted case's folder is known.
PAINTED = "painted.json"


def run(
    label_maps: Annotated[
        list[Path],
        typer.Argument(
            help="Folders, each with a label map, a table of its names (.tsv or .ctbl), and maybe anatomy.json.",
            metavar="LABELMAP_FOLDER...",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")],
    seed: Annotated[
        int, typer.Option(min=0, help="Every number is another person, of one of the label maps, on another scanner.")
    ] = 0,
    phase: Annotated[PaintedPhase, typer.Option(help="Contrast phase.")] = "any",
    spacing: Annotated[str, typer.Option(help="Voxel size in mm, as x,y,z.")] = "3,3,3",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier painted case's folder.")] = False,
) -> None:
    """Paint an abdominal CT from label maps, as training does: the anatomy is changed, filled and scanned by chance.

    Writes ct.nrrd (HU), labels.nrrd (AMOS labels 1 to 15) and painted.json (what it was made from, and which organs
    the label map tells nothing of). Structures are known by their names, as TotalSegmentator gives them. In
    anatomy.json, {"spacing": [x, y, z]} corrects a wrong header, {"names": {"old": "new"}} renames structures. The same
    arguments give the same voxels.
    """
    from ..imaging.writing import new_folder, write_image, write_json
    from ..organs import AMOS
    from ..training.options import GridOptions
    from ..training.painted.anatomy import load_anatomy
    from ..training.painted.painting import image_of, paint_case

    grid = GridOptions(spacing=spacing_of(spacing), orientation="RAS")
    with new_folder(out, overwrite, recognized_by=PAINTED) as folder:
        with progress_bar() as progress:
            anatomies = []
            for index, path in enumerate(label_maps):
                progress(index / (len(label_maps) + 1), f"Reading {path.name}")
                anatomies.append(load_anatomy(path))
            progress(len(label_maps) / (len(label_maps) + 1), "Painting")
            case = paint_case(seed, anatomies, grid, None if phase == "any" else phase)
            progress(1.0, "Painting")
        assert case.labels is not None
        write_image(image_of(case.hu, grid), folder / "ct.nrrd")
        write_image(image_of(case.labels, grid), folder / "labels.nrrd")
        unknown = [AMOS.by_label[label].key for label in case.unknown]
        record = {"synthetic": True, "seed": seed, "case": case.name, "spacing": grid.spacing, "unknown": unknown}
        write_json(record, folder / PAINTED)
    say_plain(f"{case.name} is in {out}: ct.nrrd, labels.nrrd and {PAINTED}.")
