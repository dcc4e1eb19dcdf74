"""Stand-in of Slicer's module SampleData: remembers what is registered."""

from __future__ import annotations

from types import ModuleType
from typing import Any


class SampleData:
    """``sources`` holds the arguments of each registration."""

    def __init__(self) -> None:
        self.sources: list[dict[str, Any]] = []

    def clear(self) -> None:
        self.sources.clear()

    def module(self) -> ModuleType:
        told = self

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
                told.sources.append(
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

        module = ModuleType("SampleData")
        module.SampleDataLogic = SampleDataLogic
        return module
