"""``dca phantom``: a synthetic CT to try everything on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UserError
from .console import Report, progress_bar, say
from .option_values import parse_spacing, words

NAME = "phantom"
EXAMPLES = "Example: dca phantom --seed 7 -o case/"

Phase = Literal["portal_venous", "arterial", "delayed", "none"]

# By this file an earlier phantom's folder is known.
PERSON = "person.json"


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")],
    seed: Annotated[int, typer.Option(min=0, help="Who lies in the scanner: every number is another person.")] = 0,
    spacing: Annotated[str, typer.Option(help="Voxel size in mm, as x,y,z.")] = "1.5,1.5,3",
    orientation: Annotated[
        str, typer.Option(help="Where the image axes run to, a letter each: R/L, A/P, S/I. LPS is usual for DICOM.")
    ] = "LPS",
    phase: Annotated[Phase, typer.Option(help="Contrast phase.")] = "portal_venous",
    noise: Annotated[float, typer.Option(min=0.0, help="Noise, standard deviation in HU.")] = 12.0,
    tilt: Annotated[float, typer.Option(min=-30.0, max=30.0, help="Degrees the scan is turned by (oblique).")] = 0.0,
    missing: Annotated[
        str, typer.Option(help="Organs taken out by surgery, as in gallbladder,left_kidney.", metavar="ORGANS")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier phantom's folder.")] = False,
) -> None:
    """Make a synthetic abdominal CT with the 15 organs of AMOS and their exact labels.

    Writes ct.nii.gz (HU), labels.nii.gz (AMOS labels 1 to 15) and person.json (who was drawn). No patient is
    involved. The same arguments give the same voxels.
    """
    with progress_bar() as progress:
        write_phantom(
            out, seed, parse_spacing(spacing), orientation, phase, noise, tilt, overwrite, progress, words(missing)
        )
    say(f"The phantom is in {out}: ct.nii.gz, labels.nii.gz and {PERSON}.")


def write_phantom(
    out: Path,
    seed: int,
    spacing: tuple[float, float, float] = (1.5, 1.5, 3.0),
    orientation: str = "LPS",
    phase: Phase = "portal_venous",
    noise_hu: float = 12.0,
    tilt_degrees: float = 0.0,
    overwrite: bool = False,
    progress: Report | None = None,
    missing: tuple[str, ...] = (),
) -> None:
    """Make the folder ``out`` with a phantom; the arguments are those of ``synthesis.phantom.case.generate``.

    Raises UserError for arguments that make no scan and OutputError where the folder cannot be made.
    """
    from ..imaging.writers import new_folder, write_image, write_json
    from ..synthesis.phantom.case import generate

    with new_folder(out, overwrite, recognized_by=PERSON) as folder:
        try:
            phantom = generate(seed, spacing, orientation, phase, noise_hu, tilt_degrees, progress, missing=missing)
        except ValueError as error:
            raise UserError(f"Such a phantom cannot be made: {error}.", "See dca phantom --help.") from None
        write_image(phantom.ct, folder / "ct.nii.gz")
        write_image(phantom.labels, folder / "labels.nii.gz")
        write_json(phantom.person.to_json(), folder / PERSON)
