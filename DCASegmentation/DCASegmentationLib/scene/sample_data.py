"""A public abdominal CT to try the module with, in Slicer's own module Sample Data."""

from __future__ import annotations

from typing import Any

from dcaseg.errors import UserError

_NAME = "DCACTLiver"
_CHECKSUM = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"


def register_sample_data() -> None:
    """Offer case liver_100 of the Medical Segmentation Decathlon; Slicer compares its SHA-256."""
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
    """Download the sample CT, or take the file of an earlier download, and load it: a vtkMRMLScalarVolumeNode.

    Raises UserError where that fails.
    """
    import SampleData

    logic = SampleData.SampleDataLogic()
    if logic.sourceForSampleName(_NAME) is None:
        # Slicer was running already when the module was added to it.
        register_sample_data()
    try:
        node = logic.downloadSample(_NAME)
    # Whatever the download raises, the user needs one sentence.
    except Exception as error:
        raise UserError(
            f"The sample CT could not be downloaded ({error}).", "Check the network, then try again."
        ) from error
    if node is None:
        raise UserError("The sample CT could not be downloaded.", "Check the network, then try again.")
    return node
