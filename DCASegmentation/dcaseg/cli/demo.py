"""``dca demo``: everything once, without a CT of one's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..errors import OutputError
from .console import progress_bar, say, warn
from .option_values import BackendOption, DeviceOption
from .phantom import write_phantom
from .segment import PICTURE, segment_ct

# The fake Slicer in which the module runs outside Slicer is part of the repository, not of the package.
_PROGRAM = Path(__file__).resolve().parents[3] / "Testing" / "fake_slicer" / "panel_picture.py"
_SECONDS = 600
_TITLE = "The module's panel"


def add_panel(picture: Path, ct: Path, bundle: str | None) -> str:
    """Segment ``ct`` once more through the module's panel and put the panel beside ``picture``.

    Returns why it could not be done, in one line; empty when it was.
    """
    if not _PROGRAM.is_file():
        return "The picture is without the module's panel, which is drawn from a checkout of the repository only."
    if find_spec("PySide6") is None or find_spec("slicer") is None:
        return 'The picture is without the module\'s panel. To have it: pip install -e ".[panel]"'
    from ..rendering.layout import concat_images, height_beside

    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "panel.png")
        command = [sys.executable, str(_PROGRAM), str(ct), str(drawn), str(height_beside(picture)), *_model(bundle)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return "The picture is without the module's panel, which took too long to draw."
        if run.returncode != 0 or not drawn.is_file():
            last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
            return f"The picture is without the module's panel, which could not be drawn: {last}"
        concat_images(drawn, _TITLE, picture)
    return ""


def _model(bundle: str | None) -> list[str]:
    from ..models.store import find_bundle

    return [] if bundle is None else [str(find_bundle(bundle).resolve())]


NAME = "demo"
EXAMPLES = "Example: dca demo -o dca-demo"

# A little coarser and quicker than the defaults, so that two cores need a minute or so.
_SPACING = (2.0, 2.0, 3.0)
_OVERLAP = 0.25


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")] = Path("dca-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Which synthetic person.")] = 7,
    bundle: Annotated[str | None, typer.Option(help="Folder or name of the trained model.")] = None,
    device: DeviceOption = "auto",
    runtime: BackendOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier demo.")] = False,
) -> None:
    """Make a synthetic CT, segment it, build the Slicer scene, and draw one picture of it all.

    Takes under two minutes on two cores. The picture shows the organs in three planes and in 3D, and below them on
    the axial plane the attention of the three experts and the expert that decided; beside them, in a checkout with
    the extra panel, the Slicer module's panel after it has segmented the same CT.
    """
    started_empty = not out.exists()
    if not (started_empty or overwrite) and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists already.", "Choose another folder with -o, or add --overwrite.")
    try:
        _run(out, seed, bundle, device, runtime, overwrite)
    except BaseException:
        # Both steps leave whole folders or none; an unfinished demo is not left either.
        if started_empty:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _run(out: Path, seed: int, bundle: str | None, device: str, runtime: str, overwrite: bool) -> None:
    _make(out)
    phantom, result = out / "phantom", out / "result"
    ct = phantom / "ct.nii.gz"
    say("The demo is these two commands:")
    say(f"  dca phantom --seed {seed} -o {phantom} --spacing {','.join(f'{side:g}' for side in _SPACING)}")
    say(f"  dca segment {ct} -o {result} --picture --overlap {_OVERLAP}")
    with progress_bar() as progress:
        write_phantom(phantom, seed, _SPACING, overwrite=overwrite, progress=progress)
    segment_ct(
        ct,
        result,
        bundle,
        device=device,
        runtime=runtime,
        picture_title=f"Synthetic CT (phantom {seed}, no patient)",
        overlap=_OVERLAP,
        overwrite=overwrite,
    )
    say("Segmenting it once more through the module's panel, for the picture.")
    if unavailable_reason := add_panel(result / PICTURE, ct, bundle):
        warn(unavailable_reason)
    say("")
    say(f"The picture: {result / PICTURE}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise OutputError(f"There is no folder {folder.absolute().parent}.", "Create it first.") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}.", "Choose another folder with -o.") from None
