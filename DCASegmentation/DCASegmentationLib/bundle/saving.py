"""A bundle onto disk, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..imaging.writing import new_folder, write_json, write_text
from ..method.network import DCANet
from .loading import Bundle
from .metadata import INFERENCE, LICENSE, METADATA, MODEL_CARD, WEIGHTS, MeasuredScores, Metadata
from .metadata_reading import read_metadata
from .model_card import licence_text, model_card
from .monai_config import inference_config
from .weights import StoredType, write_weights


def save_bundle(
    folder: Path, network: DCANet, metadata: Metadata, dtype: StoredType = "float16", overwrite: bool = False
) -> Bundle:
    """Save ``network`` as the bundle ``folder``; network options and weights are filled into the metadata here.

    ``dtype`` is the type the weights are stored in; float16 halves the file, and loading gives float32 again. The
    folder appears when it is complete. An existing bundle is replaced only with ``overwrite``, any other folder never.

    Raises OutputError where it cannot be written, BundleError if network and metadata do not fit together.
    """
    with new_folder(folder, overwrite=overwrite, recognized_by=METADATA) as temporary:
        for file in (METADATA, WEIGHTS, MODEL_CARD):
            (temporary / file).parent.mkdir(exist_ok=True)
        weights = write_weights(network, temporary, WEIGHTS, dtype)
        complete = replace(metadata, network=network.options, weights=weights)
        write_json(complete.to_json(), temporary / METADATA)
        write_json(inference_config(complete), temporary / INFERENCE)
        write_text(model_card(complete), temporary / MODEL_CARD)
        write_text(licence_text(complete), temporary / LICENSE)
        # Better refused here, by the checks of loading, than by whoever gets the bundle.
        Bundle.load(temporary).network()
    return Bundle.load(folder)


def save_scores(folder: Path, scores: MeasuredScores) -> Bundle:
    """Write ``scores`` into the metadata and the model card of the bundle in ``folder``; weights stay untouched.

    Raises BundleError if it is no bundle, OutputError where it cannot be written.
    """
    scored = replace(read_metadata(folder), scores=scores)
    write_json(scored.to_json(), folder / METADATA)
    write_text(model_card(scored), folder / MODEL_CARD)
    return Bundle.load(folder)
