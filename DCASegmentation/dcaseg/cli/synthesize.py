"""``dca synthesize``: make a synthetic CT from label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .console import print_line, progress_bar, warn
from .option_values import parse_spacing
from .options import overwrite_option

if TYPE_CHECKING:
    from ..synthesis.label_to_ct.anatomy import Anatomy

NAME = "synthesize"
EXAMPLES = "Example: dca synthesize my_label_map/ --seed 7 -o synthetic/"

Phase = Literal["any", "portal_venous", "arterial", "delayed", "none"]

# --overwrite replaces only folders that contain this file.
SUMMARY = "synthesis.json"
RECIPE = "recipe.json"


def run(
    label_maps: Annotated[
        list[Path],
        typer.Argument(
            help="One or more folders, each with a label map, a table of its names (.tsv or .ctbl), and optionally "
            "anatomy.json.",
            metavar="LABELMAP_FOLDER...",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the CT.")],
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Each number is a different person, based on one of the label maps, on a different scanner."
        ),
    ] = 0,
    phase: Annotated[Phase, typer.Option(help="Contrast phase.")] = "any",
    recipe: Annotated[
        Path | None, typer.Option(help="Make the CT described by this recipe.json; ignore --seed and --phase.")
    ] = None,
    warps: Annotated[
        Path | None,
        typer.Option(help="Folder made by dca register-label-maps: also make bodies interpolated between label maps."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared label maps, so that each is read only once.")
    ] = None,
    spacing: Annotated[str, typer.Option(help="Voxel spacing in mm, as x,y,z.")] = "3,3,3",
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cpu",
    overwrite: Annotated[bool, overwrite_option("the folder of an earlier synthetic CT")] = False,
) -> None:
    """Make a synthetic abdominal CT from label maps.

    The anatomy is deformed, filled with HU values and scanned at random, as in **dca train --synthesize**.

    The new folder contains ct.nrrd (HU), labels.nrrd (AMOS labels 1 to 15), recipe.json (everything needed to make the
    same CT again) and synthesis.json (a summary that lists the organs which the label map does not annotate).

    Structures are recognized by the names that TotalSegmentator uses. In anatomy.json, {"spacing": [x, y, z]} corrects
    a wrong header, and {"names": {"old": "new"}} renames structures. The same arguments produce the same voxels.
    """
    import numpy as np

    from ..imaging.writers import new_folder, write_image, write_json
    from ..organs import AMOS
    from ..synthesis.label_to_ct.anatomy import load_anatomy
    from ..synthesis.label_to_ct.recipe import read_recipe
    from ..synthesis.label_to_ct.registration import read_warps
    from ..synthesis.label_to_ct.renderer import Renderer, make_image

    steps = parse_spacing(spacing)
    chosen = None if recipe is None else read_recipe(recipe)
    registrations = {} if warps is None else read_warps(warps)
    with new_folder(out, overwrite, recognized_by=SUMMARY) as folder:
        with progress_bar() as progress:
            anatomies = []
            for index, path in enumerate(label_maps):
                progress(index / (len(label_maps) + 1), f"Reading {path.name}")
                anatomies.append(load_anatomy(path, cache=cache))
            progress(len(label_maps) / (len(label_maps) + 1), "Making the CT")
            renderer = Renderer(anatomies, steps, device=device, warps=registrations)
            chosen = chosen or renderer.draw_recipe(seed, phase=None if phase == "any" else phase)
            case = renderer.render_case(chosen)
            progress(1.0, "Making the CT")
        for anatomy in anatomies:
            if (warning := describe_unknown_structures(anatomy)) is not None:
                warn(warning)
        write_image(make_image(case.hu.cpu().numpy().astype(np.int16), steps), folder / "ct.nrrd")
        write_image(make_image(case.labels.cpu().numpy(), steps), folder / "labels.nrrd")
        write_json(chosen.to_json(), folder / RECIPE)
        unannotated = [AMOS.by_label[label].key for label in case.unannotated]
        name = f"synthetic_{seed}_{chosen.anatomy}_{chosen.appearance.phase}" if recipe is None else chosen.anatomy
        record = {
            "synthetic": True,
            "seed": seed if recipe is None else None,
            "case": name,
            "spacing": steps,
            "unknown": unannotated,
        }
        write_json(record, folder / SUMMARY)
    print_line(f"{name} is in {out}: ct.nrrd, labels.nrrd, {RECIPE} and {SUMMARY}.")


def describe_unknown_structures(anatomy: Anatomy) -> str | None:
    """Return a note on structures of a label map whose names are not recognized, or None."""
    if not anatomy.unknown_structures:
        return None
    return (
        f"{anatomy.name} has structures with unknown names, which will look like fat: "
        f"{', '.join(anatomy.unknown_structures)}. Rename them in anatomy.json."
    )
