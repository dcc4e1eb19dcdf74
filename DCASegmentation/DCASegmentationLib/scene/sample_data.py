"""A public abdominal CT for trying out the module, through Slicer's Sample Data module."""

from __future__ import annotations

from typing import Any

from dcaseg.errors import UserError

_NAME = "DCACTLiver"
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


def load_sample_ct() -> Any:
    """Download the sample CT, or use the file of an earlier download, and load it as a vtkMRMLScalarVolumeNode.

    Raises UserError if that fails.
    """
    import SampleData

    logic = SampleData.SampleDataLogic()
    if logic.sourceForSampleName(_NAME) is None:
        # The module was added while Slicer was already running.
        register_sample_data()
    try:
        node = logic.downloadSample(_NAME)
    # The download can raise anything; the user needs one sentence.
    except Exception as error:
        raise UserError(
            f"The sample CT could not be downloaded ({error}).", "Check the network connection, then try again."
        ) from error
    if node is None:
        raise UserError("The sample CT could not be downloaded.", "Check the network connection, then try again.")
    return node
