"""Stand-in for Slicer's SampleData module, which records what is registered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any


class SampleData:
    """The sample data of the fake Slicer.

    ``sources`` records the arguments of each registration. A test sets ``download``, which returns the downloaded node;
    while it is None, downloads fail.
    """

    def __init__(self) -> None:
        self.sources: list[dict[str, Any]] = []
        self.download: Callable[[], Any] | None = None

    def clear(self) -> None:
        self.sources.clear()
        self.download = None

    def module(self) -> ModuleType:
        sample_data = self

        class SampleDataLogic:
            def __init__(self, logMessage: Callable[..., None] | None = None) -> None:
                if logMessage is not None:
                    self.logMessage = logMessage

            def logMessage(self, message: str, logLevel: int = logging.DEBUG) -> None:
                """Slicer writes it to its log."""

            @staticmethod
            def registerCustomSampleDataSource(
                category: str = "Custom",
                sampleName: Any = None,
                uris: Any = None,
                fileNames: Any = None,
                nodeNames: Any = None,
                customDownloader: Any = None,
                thumbnailFileName: Any = None,
                loadFileType: Any = "VolumeFile",
                loadFiles: Any = None,
                loadFileProperties: Any = None,
                checksums: Any = None,
            ) -> None:
                sample_data.sources.append(
                    {
                        "category": category,
                        "sampleName": sampleName,
                        "uris": uris,
                        "fileNames": fileNames,
                        "nodeNames": nodeNames,
                        "thumbnailFileName": thumbnailFileName,
                        "checksums": checksums,
                    }
                )

            def sourceForSampleName(self, sampleName: str) -> Any:
                return next((each for each in sample_data.sources if each["sampleName"] == sampleName), None)

            def downloadSamples(self, sampleName: str) -> list[Any]:
                """As in Slicer, no error is raised for what cannot be downloaded or is not registered."""
                if self.sourceForSampleName(sampleName) is None:
                    return []
                self.logMessage("<b>Requesting download CTLiver.nrrd from https://example.org ...</b>")
                if sample_data.download is not None:
                    self.logMessage("<i>Downloaded 1.0 MB (50% of 2.0 MB)...</i>")
                    return [sample_data.download()]
                for attempt in (1, 2, 3):
                    self.logMessage("\tDownload failed: <urlopen error Host not found>", logging.ERROR)
                    self.logMessage(f"Download failed (attempt {attempt} of 3)...", logging.ERROR)
                return []

            def downloadSample(self, sampleName: str) -> Any:
                return self.downloadSamples(sampleName)[0]

        module = ModuleType("SampleData")
        module.SampleDataLogic = SampleDataLogic
        return module
