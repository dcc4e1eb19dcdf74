"""``dca synthesize``: a synthetic CT made from label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .console import progress_bar, say, warn
from .option_values import parse_spacing

if TYPE_CHECKING:
    from ..synthesis.label_to_ct.anatomy import Anatomy

NAME = "synthesize"
EXAMPLES = "Example: dca synthesize my_label_map/ --seed 7 -o synthetic/"

PaintedPhase = Literal["any", "portal_venous", "arterial", "delayed", "none"]

# The folder of an earlier synthetic CT is recognized by this file.
SUMMARY = "synthesis.json"
RECIPE = "recipe.json"


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
    recipe: Annotated[
        Path | None, typer.Option(help="Render this recipe.json, whatever the seed and the phase.")
    ] = None,
    warps: Annotated[
        Path | None, typer.Option(help="Folder of dca register-label-maps: bodies between the label maps, too.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps prepared label maps, so that each is read once.")
    ] = None,
    spacing: Annotated[str, typer.Option(help="Voxel size in mm, as x,y,z.")] = "3,3,3",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder of an earlier synthetic CT.")
    ] = False,
) -> None:
    """Paint an abdominal CT from label maps, as training does: the anatomy is changed, filled and scanned at random.

    Writes ct.nrrd (HU), labels.nrrd (AMOS labels 1 to 15), recipe.json (all that the CT is made from, and can be made
    from again) and synthesis.json (a summary, with the organs that the label map leaves unannotated). Structures are
    known by their names, as TotalSegmentator gives them. In anatomy.json, {"spacing": [x, y, z]} corrects a wrong
    header, {"names": {"old": "new"}} renames structures. The same arguments give the same voxels.
    """
    import numpy as np

    from ..imaging.writers import new_folder, write_image, write_json
    from ..organs import AMOS
    from ..synthesis.label_to_ct.anatomy import load_anatomy
    from ..synthesis.label_to_ct.recipe import read_recipe
    from ..synthesis.label_to_ct.registration import read_warps
    from ..synthesis.label_to_ct.renderer import Renderer, image_of

    steps = parse_spacing(spacing)
    chosen = None if recipe is None else read_recipe(recipe)
    found = {} if warps is None else read_warps(warps)
    with new_folder(out, overwrite, recognized_by=SUMMARY) as folder:
        with progress_bar() as progress:
            anatomies = []
            for index, path in enumerate(label_maps):
                progress(index / (len(label_maps) + 1), f"Reading {path.name}")
                anatomies.append(load_anatomy(path, cache=cache))
            progress(len(label_maps) / (len(label_maps) + 1), "Painting")
            renderer = Renderer(anatomies, steps, device=device, warps=found)
            chosen = chosen or renderer.draw_recipe(seed, phase=None if phase == "any" else phase)
            made = renderer.render_case(chosen)
            progress(1.0, "Painting")
        for anatomy in anatomies:
            if (warning := unknown_structures(anatomy)) is not None:
                warn(warning)
        write_image(image_of(made.hu.cpu().numpy().astype(np.int16), steps), folder / "ct.nrrd")
        write_image(image_of(made.labels.cpu().numpy(), steps), folder / "labels.nrrd")
        write_json(chosen.to_json(), folder / RECIPE)
        unknown = [AMOS.by_label[label].key for label in made.unannotated]
        name = f"synthetic_{seed}_{chosen.anatomy}_{chosen.appearance.phase}" if recipe is None else chosen.anatomy
        record = {
            "synthetic": True,
            "seed": seed if recipe is None else None,
            "case": name,
            "spacing": steps,
            "unknown": unknown,
        }
        write_json(record, folder / SUMMARY)
    say(f"{name} is in {out}: ct.nrrd, labels.nrrd, {RECIPE} and {SUMMARY}.")


def unknown_structures(anatomy: Anatomy) -> str | None:
    """What to tell a user of a label map's structures that are not known by their names, or None."""
    if not anatomy.unknown_structures:
        return None
    return (
        f"{anatomy.name} has structures whose names are not known, which look like fat: "
        f"{', '.join(anatomy.unknown_structures)}. Rename them in anatomy.json."
    )
