"""``dca demo``: try the whole program without a CT."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..errors import OutputError, format_install_command, get_reason
from .console import print_line, progress_bar, warn
from .options import BackendOption, BundleOption, DeviceOption, overwrite_option
from .phantom import write_phantom
from .segment import ALL_MAPS, PICTURE, segment_ct

NAME = "demo"
EXAMPLES = "Example: dca demo -o dca-demo"

# A little coarser and faster than the defaults: about a minute on two cores.
_SPACING = (2.0, 2.0, 3.0)
_OVERLAP = 0.25

# The fake Slicer, which runs the module outside Slicer, is part of the repository but not of the package.
_PANEL_PROGRAM = Path(__file__).resolve().parents[3] / "Testing" / "fake_slicer" / "panel_picture.py"
_PANEL_TIMEOUT_S = 600
_PANEL_TITLE = "The module's panel"


def add_panel(picture: Path, ct: Path, bundle: str | None) -> str:
    """Segment ``ct`` again through the module's panel and add an image of the panel to ``picture``.

    Returns an empty text, or in one line the reason why this was not possible.
    """
    if not _PANEL_PROGRAM.is_file():
        return "The picture does not show the module's panel, which needs a checkout of the repository."
    if find_spec("PySide6") is None or find_spec("slicer") is None:
        install = format_install_command("slicer-core==5.12.4.0", "PySide6-Essentials==6.11.2")
        return f"The picture does not show the module's panel, which needs more packages. To install them: {install}"
    from ..rendering.layout import compute_left_height, concat_images

    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "panel.png")
        command = [
            sys.executable,
            str(_PANEL_PROGRAM),
            str(ct),
            str(drawn),
            str(compute_left_height(picture)),
            *_get_model_argument(bundle),
        ]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_PANEL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return "The picture does not show the module's panel, because drawing it took too long."
        if run.returncode != 0 or not drawn.is_file():
            last_line = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
            return f"The picture does not show the module's panel, because drawing it failed: {last_line}"
        concat_images(drawn, _PANEL_TITLE, picture)
    return ""


def _get_model_argument(bundle: str | None) -> list[str]:
    from ..models.store import find_bundle

    return [] if bundle is None else [str(find_bundle(bundle).resolve())]


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the demo.")] = Path("dca-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the phantom. Each number is a different person.")] = 7,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    overwrite: Annotated[bool, overwrite_option("the folder of an earlier demo")] = False,
) -> None:
    """Make a synthetic CT, segment it, build a scene for 3D Slicer, and draw a picture of the result.

    The demo takes less than two minutes on two cores. The picture shows the organs in three planes and in 3D, and the
    attention of the three experts and the dominant expert on the axial plane. In a checkout of the repository with the
    extra panel, the picture also shows the panel of the Slicer module after it has segmented the same CT.
    """
    started_empty = not out.exists()
    if not (started_empty or overwrite) and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} already exists.", "Choose another folder with -o, or add --overwrite.")
    try:
        _run(out, seed, bundle, device, backend, overwrite)
    except BaseException:
        # Each step leaves a complete folder or none. An incomplete demo is removed, too.
        if started_empty:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _run(out: Path, seed: int, bundle: str | None, device: str, backend: str, overwrite: bool) -> None:
    _make_folder(out)
    phantom, result = out / "phantom", out / "result"
    ct = phantom / "ct.nii.gz"
    print_line("The demo runs these two commands:")
    print_line(f"  dca phantom --seed {seed} -o {phantom} --spacing {','.join(f'{side:g}' for side in _SPACING)}")
    print_line(f"  dca segment {ct} -o {result} --picture --overlap {_OVERLAP}")
    with progress_bar() as progress:
        write_phantom(phantom, seed, _SPACING, overwrite=overwrite, progress=progress)
    segment_ct(
        ct,
        result,
        bundle,
        replace(ALL_MAPS, overlap=_OVERLAP),
        device=device,
        backend=backend,
        picture_title=f"Synthetic CT (phantom {seed}, no patient)",
        overwrite=overwrite,
    )
    print_line("Segmenting the CT again through the module's panel, for the picture.")
    if unavailable_reason := add_panel(result / PICTURE, ct, bundle):
        warn(unavailable_reason)
    print_line("")
    print_line(f"The picture is in {result / PICTURE}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be created: {get_reason(error)}.", "Choose another folder with -o."
        ) from None
