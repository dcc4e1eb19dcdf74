"""A public abdominal CT for trying out the module, through Slicer's Sample Data module."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from dcaseg.errors import UserError

_NAME = "DCACTLiver"
_TAGS = re.compile(r"</?[bip]>")
_CHECKSUM = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"


def register_sample_data() -> None:
    """Register case liver_100 of the Medical Segmentation Decathlon; Slicer verifies its SHA-256."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="DCA Segmentation",
        sampleName=_NAME,
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{_CHECKSUM}",
        fileNames="CTLiver.nrrd",
        checksums=f"SHA256:{_CHECKSUM}",
        nodeNames="CTLiver",
    )


def load_sample_ct(announce: Callable[[str], None]) -> Any:
    """Download the sample CT, or use the file of an earlier download, and load it as a vtkMRMLScalarVolumeNode.

    ``announce(message)`` is called with Slicer's messages about the progress. Raises UserError if that fails.
    """
    import SampleData

    errors: list[str] = []

    def log(message: str, level: int = logging.DEBUG) -> None:
        # Messages are HTML, but may contain errors in angle brackets.
        text = _TAGS.sub("", message).strip()
        if level >= logging.ERROR:
            errors.append(text)
        if text:
            announce(text)

    logic = SampleData.SampleDataLogic(log)
    if logic.sourceForSampleName(_NAME) is None:
        # The module was added while Slicer was already running.
        register_sample_data()
    try:
        nodes = logic.downloadSamples(_NAME)
    # The download can raise anything; the user needs one sentence.
    except Exception as error:
        raise UserError(
            f"The sample CT could not be downloaded ({error}).", "Check the network connection, then try again."
        ) from error
    node = next((each for each in nodes if each is not None), None)
    if node is None:
        # Slicer tries several times; the first message says what went wrong.
        reason = f" ({errors[0]})" if errors else ""
        raise UserError(
            f"The sample CT could not be downloaded{reason}.", "Check the network connection, then try again."
        )
    return node
