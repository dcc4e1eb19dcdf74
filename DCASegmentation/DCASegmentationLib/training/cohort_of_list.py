"""A cohort to train on from a list of data."""

from __future__ import annotations

from collections.abc import Sequence

from .cohort import Cohort
from .datalist import Datalist, Entry
from .sources.ct_files import CTFile, CTFiles


def cohort_of(datalist: Datalist) -> Cohort:
    """The list's training, unlabelled and validation cases; its test cases are for nobody's training."""
    return Cohort(
        _sources(datalist, datalist.training),
        _sources(datalist, datalist.unlabelled),
        _sources(datalist, datalist.validation),
    )


def sources_of_test(datalist: Datalist) -> tuple[CTFiles, ...]:
    """The list's labelled test cases."""
    return _sources(datalist, [entry for entry in datalist.test if entry.label is not None])


def _sources(datalist: Datalist, entries: Sequence[Entry]) -> tuple[CTFiles, ...]:
    files = tuple(
        CTFile(str(entry.image), None if entry.label is None else str(entry.label), entry.label_map, entry.unknown)
        for entry in entries
    )
    return (CTFiles(datalist.name, datalist.licence, datalist.source, files),) if files else ()
