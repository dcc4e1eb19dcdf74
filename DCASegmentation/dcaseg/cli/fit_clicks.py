"""``dca fit-clicks``: fit the classifier that decides which voxels a click changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..json_io import read_json
from .console import make_table, print_line, print_table, progress_bar
from .option_values import load_bundle
from .options import CASES_PANEL, DeviceOption, overwrite_option
from .synthesize import RECIPE

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..inference.segmenter import Segmenter

NAME = "fit-clicks"
EXAMPLES = "Example: dca fit-clicks --synthetic synthetic1/ --synthetic synthetic2/ --phantoms 2 --slabs 1 -o fit/"

# --overwrite replaces only folders that contain this file.
_CLASSIFIER, _FIGURES = "classifier.json", "fit.json"
_FIRST_PHANTOM = 500_000


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for classifier.json and fit.json.")],
    *,
    bundles: Annotated[
        list[str] | None,
        typer.Option(
            "--bundle",
            help="Model (folder or name) whose errors are corrected. Can be repeated: a model makes other errors in "
            "anatomies that it was trained on. Default: the default model (see dca bundle info).",
        ),
    ] = None,
    synthetic: Annotated[
        list[Path] | None,
        typer.Option(
            "--synthetic", help="Folder made by dca synthesize. Can be repeated.", rich_help_panel=CASES_PANEL
        ),
    ] = None,
    phantoms: Annotated[
        int, typer.Option(min=0, help="Number of phantoms to fit to.", rich_help_panel=CASES_PANEL)
    ] = 0,
    slabs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of short slabs with thick slices to cut from each CT and also fit to.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the model's results, so that each CT is segmented once.", rich_help_panel=CASES_PANEL
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Length of each fit in steps.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choices and of the fits.")] = 0,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, overwrite_option("the folder of an earlier fit")] = False,
) -> None:
    """Fit the classifier that decides which voxels a click of **dca correct** changes.

    It learns from simulated clicks on the errors of models in synthetic CTs, and on large errors made at random, and
    is class-agnostic. Cross-validation over the anatomies chooses its thresholds so that few clicks make an organ
    worse; the table shows the results. The classifier in use is the file dcaseg/interaction/classifier.json.
    """
    import numpy as np

    from ..evaluation.click_damage import make_thick_slab
    from ..evaluation.click_fit import ClickSample, collect, fit_classifier
    from ..imaging.writers import new_folder, write_json, write_text
    from ..inference.process_settings import keep_freed_memory
    from ..inference.segmenter import Segmenter
    from ..interaction.click_classifier import format_classifier

    if not synthetic and not phantoms:
        raise UserError("No cases were given.", "Specify --synthetic or --phantoms.")
    keep_freed_memory()
    models = [load_bundle(name) for name in bundles] if bundles else [load_bundle(None)]
    segmenters = [Segmenter(model, device, backend="auto") for model in models]
    random = np.random.default_rng(seed)
    samples: list[ClickSample] = []
    with new_folder(out, overwrite, recognized_by=_FIGURES) as folder:
        with progress_bar() as progress:
            cases = list(_list_cases(synthetic or [], phantoms))
            for index, (name, group, read) in enumerate(cases):
                progress(0.9 * index / len(cases), f"{name}: segmenting and clicking")
                whole = read()
                for ct, truth in (whole, *(make_thick_slab(*whole, random) for _ in range(slabs))):
                    for number, segmenter in enumerate(segmenters):
                        start = _load_initial_labels(segmenter, ct, models[number].metadata.weights.sha256, cache)
                        # Masks that do not depend on a model are clicked only once.
                        samples += collect(
                            group, ct, start, truth, segmenter.vocabulary, random, only_own_errors=number > 0
                        )
            classifier, figures = fit_classifier(
                samples, steps, seed, progress=lambda share, text: progress(0.9 + 0.1 * share, text)
            )
        record: dict[str, Any] = {
            "models": [{"name": model.metadata.name, "sha256": model.metadata.weights.sha256} for model in models],
            "cases": [name for name, _, _ in cases],
            "slabs": slabs,
            "steps": steps,
            "seed": seed,
            "cross_validation": figures,
        }
        write_text(format_classifier(classifier), folder / _CLASSIFIER)
        write_json(record, folder / _FIGURES)
    rows = make_table(
        "Cross-validation over the anatomies", "Clicks", "Number", "Gain", "Worse", numbers=("Number", "Gain", "Worse")
    )
    for kind, each in figures.items():
        rows.add_row(kind, f"{each['clicks']:.0f}", f"{each['gain']:.4f}", f"{each['worse']:.1%}")
    print_table(rows)
    print_line(f"Written: {out}")


def _list_cases(
    synthetic: list[Path], phantoms: int
) -> Iterator[tuple[str, str, Callable[[], tuple[sitk.Image, sitk.Image]]]]:
    """Yield the name of each case, that of its anatomy, and what reads its CT and labels."""
    from ..evaluation.review_evaluation import generate_shifted_scan_phantom
    from ..imaging.readers import read_ct, read_labels

    def read_synthetic(folder: Path) -> tuple[sitk.Image, sitk.Image]:
        return read_ct(folder / "ct.nrrd"), read_labels(folder / "labels.nrrd")

    def generate_phantom(seed: int) -> tuple[sitk.Image, sitk.Image]:
        person = generate_shifted_scan_phantom(seed)
        return person.ct, person.labels

    for folder in synthetic:
        try:
            anatomy = str(read_json(folder / RECIPE)["anatomy"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder} was not made by dca synthesize.", f"It has no valid {RECIPE}.") from None
        yield folder.name, anatomy, partial(read_synthetic, folder)
    for seed in range(_FIRST_PHANTOM, _FIRST_PHANTOM + phantoms):
        yield f"phantom {seed}", f"phantom {seed}", partial(generate_phantom, seed)


def _load_initial_labels(segmenter: Segmenter, ct: sitk.Image, sha256: str, cache: Path | None) -> sitk.Image:
    """Return the model's result for ``ct``, from the folder ``cache`` if it is there."""
    import SimpleITK as sitk

    from ..imaging.intensity import compute_voxel_checksum
    from ..imaging.readers import read_labels
    from ..imaging.writers import write_image
    from ..inference.options import SegmentOptions

    checksum = compute_voxel_checksum(sitk.GetArrayViewFromImage(ct))
    stored = None if cache is None else cache / f"result_{checksum[:16]}_{sha256[:16]}.nrrd"
    if stored is not None and stored.is_file():
        return read_labels(stored)
    labels = segmenter.segment(ct, SegmentOptions()).labels
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        write_image(labels, stored)
    return labels
