"""Stand-in for Slicer's SampleData module, which records what is registered."""

from __future__ import annotations

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

            def downloadSample(self, sampleName: str) -> Any:
                if self.sourceForSampleName(sampleName) is None or sample_data.download is None:
                    raise ValueError("Host not found")
                return sample_data.download()

        module = ModuleType("SampleData")
        module.SampleDataLogic = SampleDataLogic
        return module
