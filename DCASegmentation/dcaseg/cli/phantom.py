"""``dca phantom``: make a synthetic CT of a phantom, for trying things out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UserError
from ..types import ProgressCallback
from .console import print_line, progress_bar
from .option_values import parse_list, parse_spacing
from .options import overwrite_option

NAME = "phantom"
EXAMPLES = "Example: dca phantom --seed 7 -o case/"

Phase = Literal["portal_venous", "arterial", "delayed", "none"]

# --overwrite replaces only folders that contain this file.
PERSON = "person.json"


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the CT and its labels.")],
    seed: Annotated[int, typer.Option(min=0, help="Each number is a different person.")] = 0,
    spacing: Annotated[str, typer.Option(help="Voxel spacing in mm, as x,y,z.")] = "1.5,1.5,3",
    orientation: Annotated[
        str, typer.Option(help="Directions of the image axes, one letter each: R or L, A or P, S or I. DICOM uses LPS.")
    ] = "LPS",
    phase: Annotated[Phase, typer.Option(help="Contrast phase.")] = "portal_venous",
    noise: Annotated[float, typer.Option(min=0.0, help="Standard deviation of the noise in HU.")] = 12.0,
    tilt: Annotated[float, typer.Option(min=-30.0, max=30.0, help="Tilt of the scan in degrees (oblique axes).")] = 0.0,
    missing: Annotated[
        str, typer.Option(help="Organs removed by surgery, such as gallbladder,left_kidney.", metavar="ORGANS")
    ] = "",
    overwrite: Annotated[bool, overwrite_option("the folder of an earlier phantom")] = False,
) -> None:
    """Make a phantom: a synthetic abdominal CT with the 15 organs of AMOS and their exact labels.

    The new folder contains ct.nii.gz (HU), labels.nii.gz (AMOS labels 1 to 15) and person.json (the anatomy). No
    patient data is used. The same arguments produce the same voxels.
    """
    with progress_bar() as progress:
        write_phantom(
            out, seed, parse_spacing(spacing), orientation, phase, noise, tilt, overwrite, progress, parse_list(missing)
        )
    print_line(f"The phantom is in {out}: ct.nii.gz, labels.nii.gz and {PERSON}.")


def write_phantom(
    out: Path,
    seed: int,
    spacing: tuple[float, float, float] = (1.5, 1.5, 3.0),
    orientation: str = "LPS",
    phase: Phase = "portal_venous",
    noise_hu: float = 12.0,
    tilt_degrees: float = 0.0,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    missing: tuple[str, ...] = (),
) -> None:
    """Write a phantom into the new folder ``out``.

    The other arguments are those of ``synthesis.phantom.case.generate``.

    Raises UserError for impossible arguments, and OutputError if the folder cannot be written.
    """
    from ..imaging.writers import new_folder, write_image, write_json
    from ..synthesis.phantom.case import generate

    with new_folder(out, overwrite, recognized_by=PERSON) as folder:
        try:
            phantom = generate(seed, spacing, orientation, phase, noise_hu, tilt_degrees, progress, missing=missing)
        except ValueError as error:
            raise UserError(f"The phantom cannot be made: {error}.", "See dca phantom --help.") from None
        write_image(phantom.ct, folder / "ct.nii.gz")
        write_image(phantom.labels, folder / "labels.nii.gz")
        write_json(phantom.person.to_json(), folder / PERSON)
