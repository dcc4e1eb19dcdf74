"""Finds the cases in an input: a folder of any content, or one file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..dicom.archive import (
    Header,
    Rules,
    Series,
    group,
    is_dicom,
    read_header,
    remove_duplicates,
    select,
    split_into_volumes,
    walk_files,
)
from ..errors import ImageError, UserError, get_reason
from ..imaging.dicom_series import note_on_lost_slices
from .case import FAILED, SKIPPED, Case, Rejected, compute_digest, make_folder_name, replace_undecodable_bytes

_IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
# macOS adds a file with this prefix for each file that it writes to a foreign disk or an archive.
_APPLE_DOUBLE = "._"
_LABELS = re.compile(r"(^|[._ -])(labels?|seg|segmentations?|masks?)$", re.IGNORECASE)
_PROGRESS_EVERY = 200

Progress = Callable[[int, str], None]


@dataclass
class Findings:
    """The content of an input. ``ignored_files`` counts the files that are not images."""

    cases: list[Case] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    ignored_files: int = 0


def find(source: Path, out: Path, rules: Rules, progress: Progress | None = None) -> Findings:
    """Find all CTs in ``source``, except in ``out``, the cohort's own folder.

    ``progress(files, text)`` is called every 200 files. Raises UserError if ``source`` does not exist.
    """
    search = Search(source, out, rules)
    for _step in search.iter_steps():
        if progress and not search.is_sorting and search.files % _PROGRESS_EVERY == 0:
            progress(search.files, search.folder)
    return search.found


def require_source(source: Path) -> None:
    """Raise UserError if ``source`` does not exist."""
    if not source.exists():
        raise UserError(f"The file or folder {source} does not exist.", "Check the path.")


class Search:
    """A search like ``find``, in small steps for a caller that has other things to do.

    ``files`` is the number of files found so far. Once all are read, ``is_sorting`` is true. ``found`` is complete
    after the last step. Raises UserError if ``source`` does not exist.
    """

    def __init__(self, source: Path, out: Path, rules: Rules) -> None:
        require_source(source)
        self.files = 0
        self._last = source
        self.is_sorting = False
        self.found = Findings()
        self._root = source.absolute()
        self._out = out.absolute()
        self._rules = rules
        self._headers: list[Header] = []
        # Names by folder and reason, since a tree may contain very many files with one fault.
        self._bad: dict[tuple[Path, str], list[str]] = {}

    @property
    def folder(self) -> str:
        """The folder of the last file, relative to the source."""
        return self._display(self._last)

    def iter_steps(self) -> Iterator[None]:
        """Search; yields after each file, and then after each series."""
        files = walk_files(self._root, self._out, lambda folder, error: self._add_bad(folder, _format_reason(error)))
        for file in files:
            self.files += 1
            self._last = file.parent
            yield
            try:
                self._add_file(file)
            except OSError as error:
                self._add_bad(file, _format_reason(error))
            except ValueError as error:
                self._add_bad(file, f"damaged DICOM: {error}")
        self.is_sorting = True
        all_series = group(self._headers)
        self._headers.clear()
        uids = Counter(series.uid for series in all_series if series.uid)
        for series in all_series:
            self._add_series(series, shared=uids[series.uid] > 1)
            yield
        for (folder, reason), names in self._bad.items():
            self._reject_files(folder, reason, names)
        self._reject_same_keys()

    def _add_file(self, file: Path) -> None:
        name = file.name.lower()
        if name.startswith(_APPLE_DOUBLE):
            self.found.ignored_files += 1
            return
        suffix = next((suffix for suffix in _IMAGE_SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None:
            self._add_image(file, file.name[: -len(suffix)])
        elif is_dicom(file):
            header = read_header(file)
            if header is None:
                self.found.ignored_files += 1
            else:
                self._headers.append(header)
        elif name.endswith(_DICOM_SUFFIXES):
            self._add_bad(file, "empty" if file.stat().st_size == 0 else "damaged: named like DICOM, but not DICOM")
        else:
            self.found.ignored_files += 1

    def _add_image(self, file: Path, stem: str) -> None:
        source = self._display(file)
        key = compute_digest(("file", self._get_relative_path(file)))
        if _LABELS.search(stem):
            self.found.rejected.append(Rejected(key, source, SKIPPED, "named like a label map"))
            return
        status = file.stat()
        self.found.cases.append(
            Case(
                key=key,
                # Many files are named ct.nii.gz, each in the folder of its patient.
                name=make_folder_name(f"{file.parent.name}_{stem}" if file.parent != self._root else stem, key),
                source=source,
                files=(str(file),),
                dicom=False,
                fingerprint=compute_digest(tuple(map(str, (*_get_file_state(status), *_get_data_file_state(file))))),
            )
        )

    def _add_series(self, series: Series, shared: bool) -> None:
        folder = Path(series.images[0].file).parent
        identifier = (series.uid,) if series.uid else (self._get_relative_path(folder), *series.kind)
        key = compute_digest(("series", series.patient, series.study, *identifier))
        about = {"patient": series.patient, "study_date": series.study_date, "description": series.description}
        source = self._display(folder)

        def reject(status: str, reason: str) -> None:
            self.found.rejected.append(Rejected(key, source, status, replace_undecodable_bytes(reason), **about))

        chosen = select(series, self._rules)
        if chosen.reason:
            reject(SKIPPED, chosen.reason)
            return
        try:
            images, copies = remove_duplicates(chosen.images)
            rules = self._rules
            stacks = split_into_volumes(images, series.description or folder.name, rules.min_slices, rules.resample)
        except (ImageError, ValueError, OSError) as error:
            reject(FAILED, str(error))
            return
        notes = [*chosen.notes, *self._collect_notes(series, copies, shared)]
        for number, stack in stacks.items():
            # For an enhanced CT with several volumes, ``number`` is a file path. Its folder counts: in archives, the
            # files of different folders often have the same names.
            is_path = number in {image.file for image in stack.images}
            acquisition = Path(number).name
            case_key = (
                compute_digest((key, self._get_relative_path(Path(number)) if is_path else number)) if number else key
            )
            text = "_".join(filter(None, (series.patient, series.description, number and f"acquisition_{acquisition}")))
            volume_notes = (f"acquisition {acquisition} of {len(stacks)} in one series",) if number else ()
            self.found.cases.append(
                Case(
                    key=case_key,
                    name=make_folder_name(text, case_key),
                    source=source,
                    files=tuple(image.file for image in stack.images),
                    dicom=True,
                    fingerprint=_compute_fingerprint(stack.images),
                    notes=(*notes, *stack.notes, *volume_notes),
                    **about,
                )
            )

    def _collect_notes(self, series: Series, copies: int, shared: bool) -> list[str]:
        notes = []
        if copies:
            notes.append(f"{copies} duplicate image{'s' if copies > 1 else ''} ignored")
        if shared:
            notes.append("another patient or study has the same series UID")
        if not series.uid:
            notes.append("no series UID, perhaps after anonymization: images were grouped by folder and geometry")
        folders = {Path(image.file).parent for image in series.images}
        bad_files = sum(len(names) for (folder, _), names in self._bad.items() if folder in folders)
        if bad_files:
            files = f"{bad_files} unusable file{'s' if bad_files > 1 else ''}"
            notes.append(f"{files} in its folder: slices may be missing at either end")
        else:
            # Their names may identify the patient, and pseudonyms replace only the names of the slices.
            notes += note_on_lost_slices(series.images, with_names=False)
        return notes

    def _add_bad(self, path: Path, reason: str) -> None:
        self._bad.setdefault((path.parent, reason), []).append(path.name)

    def _reject_files(self, folder: Path, reason: str, names: list[str]) -> None:
        source = self._display(folder / names[0])
        count = f" (first of {len(names)} files)" if len(names) > 1 else ""
        key = compute_digest(("bad", self._get_relative_path(folder), reason))
        self.found.rejected.append(Rejected(key, source, FAILED, f"{reason}{count}"))

    def _reject_same_keys(self) -> None:
        """Replace each case whose key an earlier case has by an entry: results, too, are found by their key."""
        cases, self.found.cases = self.found.cases, []
        seen: dict[str, Case] = {}
        for case in cases:
            if case.key not in seen:
                self.found.cases.append(seen.setdefault(case.key, case))
                continue
            key = compute_digest((case.key, *case.files))
            reason = f"cannot be distinguished from another CT, in {seen[case.key].source}"
            about = {"patient": case.patient, "study_date": case.study_date, "description": case.description}
            self.found.rejected.append(Rejected(key, case.source, FAILED, reason, **about))

    def _get_relative_path(self, path: Path) -> str:
        """``path`` relative to the input."""
        return str(path.relative_to(self._root) if path != self._root else Path(path.name))

    def _display(self, path: Path) -> str:
        """``path`` relative to the input, as valid Unicode. Different paths with undecodable bytes may look alike."""
        return replace_undecodable_bytes(self._get_relative_path(path))


def _compute_fingerprint(images: Sequence[Header]) -> str:
    """It changes with the identity, place and conversion to HU of a slice, and if its file is written again."""
    return compute_digest(part for image in images for part in _get_slice_state(image))


def _get_slice_state(image: Header) -> tuple[str, ...]:
    state: tuple[int, ...] = ()
    with suppress(OSError):
        state = _get_file_state(Path(image.file).stat())
    rescaling = {(plane.slope, plane.intercept) for plane in image.planes}
    return image.instance or image.file, repr(image.position), repr(sorted(map(repr, rescaling))), repr(state)


def _format_reason(error: OSError) -> str:
    return f"cannot be read: {get_reason(error)}"


def _get_file_state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


# How MetaImage and NRRD headers name the file with their voxels.
_DATA_FILE = re.compile(rb"^(?:ElementDataFile[ \t]*=|data[ ]?file:)[ \t]*([^\r\n]+)", re.MULTILINE | re.IGNORECASE)
_HEADER_BYTES = 1 << 16


def _get_data_file_state(header: Path) -> tuple[int, ...]:
    """Size and time of the file with the voxels that ``header`` names; empty if they are in the file itself."""
    if header.suffix.lower() not in (".mhd", ".nhdr"):
        return ()
    with suppress(OSError, ValueError):
        with header.open("rb") as stream:
            named = _DATA_FILE.search(stream.read(_HEADER_BYTES))
        if named is not None:
            return _get_file_state((header.parent / os.fsdecode(named[1].strip())).stat())
    return ()
