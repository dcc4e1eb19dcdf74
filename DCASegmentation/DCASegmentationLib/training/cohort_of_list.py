"""A cohort to train on from a list of data."""

from __future__ import annotations

from collections.abc import Sequence

from .cohort import Cohort
from .datalist import Datalist, Entry
from .sources.ct_files import CTFile, CTFiles


def cohort_of(datalist: Datalist) -> Cohort:
    """The list's training, unlabelled and validation cases; its test cases are for nobody's training."""

    def sources(entries: Sequence[Entry]) -> tuple[CTFiles, ...]:
        files = tuple(
            CTFile(str(entry.image), None if entry.label is None else str(entry.label), entry.label_map, entry.unknown)
            for entry in entries
        )
        return (CTFiles(datalist.name, datalist.licence, datalist.source, files),) if files else ()

    return Cohort(sources(datalist.training), sources(datalist.unlabelled), sources(datalist.validation))
