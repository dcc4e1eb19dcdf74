"""A public abdominal CT to try the module with, in Slicer's own module Sample Data."""

from __future__ import annotations

_CHECKSUM = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"


def register_sample_data() -> None:
    """Offer case liver_100 of the Medical Segmentation Decathlon; Slicer compares its SHA-256."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="DCA Segmentation",
        sampleName="DCACTLiver",
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{_CHECKSUM}",
        fileNames="CTLiver.nrrd",
        checksums=f"SHA256:{_CHECKSUM}",
        nodeNames="CTLiver",
    )
