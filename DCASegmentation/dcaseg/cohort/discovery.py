"""The cases of an input: a folder with anything in it, or one file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..dicom.archive import (
    Header,
    Rules,
    Series,
    files_below,
    group,
    is_dicom,
    read_header,
    select,
    volumes,
    without_copies,
)
from ..errors import ImageError, UserError
from .case import FAILED, SKIPPED, Case, Rejected, digest, folder_name, readable

_PLAIN = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_CALLED_DICOM = (".dcm", ".ima", ".dicom")
# What macOS puts beside each file on other disks and in archives, under the file's own name.
_APPLE_DOUBLE = "._"
_LABELS = re.compile(r"(^|[._ -])(labels?|seg|segmentations?|masks?)$", re.IGNORECASE)
_TELL_EVERY = 200

Progress = Callable[[int, str], None]


@dataclass
class Findings:
    """What an input holds. ``ignored_files`` counts files that are no images of any kind."""

    cases: list[Case] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    ignored_files: int = 0


def find(source: Path, out: Path, rules: Rules, progress: Progress | None = None) -> Findings:
    """All CTs in ``source``; what lies in ``out``, the cohort's own folder, is not looked at.

    ``progress(files, text)`` is called now and then. Raises UserError where there is no ``source``.
    """
    if not source.exists():
        raise UserError(f"There is no file or folder {source}.", "Check the path.")
    return _Search(source.absolute(), out.absolute(), rules, progress).run()


class _Search:
    def __init__(self, root: Path, out: Path, rules: Rules, progress: Progress | None) -> None:
        self._root = root
        self._out = out
        self._rules = rules
        self._progress = progress
        self._found = Findings()
        self._headers: list[Header] = []
        # By folder and reason: a tree may hold very many files of a kind.
        self._bad: dict[tuple[Path, str], list[str]] = {}

    def run(self) -> Findings:
        files = files_below(self._root, self._out, lambda folder, error: self._note_bad(folder, _why(error)))
        for count, file in enumerate(files, start=1):
            if self._progress and count % _TELL_EVERY == 0:
                self._progress(count, self._shown(file.parent))
            try:
                self._take(file)
            except OSError as error:
                self._note_bad(file, _why(error))
            except ValueError as error:
                self._note_bad(file, f"damaged DICOM: {error}")
        series = group(self._headers)
        self._headers.clear()
        uids = Counter(one.uid for one in series if one.uid)
        for one in series:
            self._take_series(one, shared=uids[one.uid] > 1)
        for (folder, reason), names in self._bad.items():
            self._reject_files(folder, reason, names)
        return self._found

    def _take(self, file: Path) -> None:
        name = file.name.lower()
        if name.startswith(_APPLE_DOUBLE):
            self._found.ignored_files += 1
            return
        ending = next((ending for ending in _PLAIN if name.endswith(ending)), None)
        if ending is not None:
            self._take_plain(file, file.name[: -len(ending)])
        elif is_dicom(file):
            header = read_header(file)
            if header is None:
                self._found.ignored_files += 1
            else:
                self._headers.append(header)
        elif name.endswith(_CALLED_DICOM):
            self._note_bad(file, "empty" if file.stat().st_size == 0 else "damaged: called DICOM, but none")
        else:
            self._found.ignored_files += 1

    def _take_plain(self, file: Path, stem: str) -> None:
        shown = self._shown(file)
        key = digest(("file", self._relative(file)))
        if _LABELS.search(stem):
            self._found.rejected.append(Rejected(key, shown, SKIPPED, "label map by its name"))
            return
        status = file.stat()
        self._found.cases.append(
            Case(
                key=key,
                # Files are often called ct.nii.gz, each in the folder of its patient.
                name=folder_name(f"{file.parent.name}_{stem}" if file.parent != self._root else stem, key),
                source=shown,
                files=(str(file),),
                dicom=False,
                fingerprint=digest((str(status.st_size), str(status.st_mtime_ns))),
            )
        )

    def _take_series(self, series: Series, shared: bool) -> None:
        folder = Path(series.images[0].file).parent
        place = (series.uid,) if series.uid else (self._relative(folder), *series.kind)
        key = digest(("series", series.patient, series.study, *place))
        about = {"patient": series.patient, "study_date": series.study_date, "description": series.description}
        shown = self._shown(folder)

        def reject(status: str, reason: str) -> None:
            self._found.rejected.append(Rejected(key, shown, status, readable(reason), **about))

        chosen = select(series, self._rules)
        if chosen.reason:
            reject(SKIPPED, chosen.reason)
            return
        try:
            images, copies = without_copies(chosen.images)
            rules = self._rules
            stacks = volumes(images, series.description or folder.name, rules.fewest_slices, rules.resample)
        except (ImageError, ValueError, OSError) as error:
            reject(FAILED, str(error))
            return
        notes = [*chosen.notes, *self._notes(series, copies, shared)]
        for number, stack in stacks.items():
            # The files of an enhanced CT that holds several volumes are told apart by their names.
            shown_number = Path(number).name
            part = digest((key, shown_number)) if number else key
            text = "_".join(
                filter(None, (series.patient, series.description, number and f"acquisition_{shown_number}"))
            )
            more = (f"acquisition {shown_number} of {len(stacks)} in one series",) if number else ()
            self._found.cases.append(
                Case(
                    key=part,
                    name=folder_name(text, part),
                    source=shown,
                    files=tuple(image.file for image in stack.images),
                    dicom=True,
                    fingerprint=_fingerprint(stack.images),
                    notes=(*notes, *stack.notes, *more),
                    **about,
                )
            )

    def _notes(self, series: Series, copies: int, shared: bool) -> list[str]:
        notes = []
        if copies:
            notes.append(f"{copies} cop{'ies' if copies > 1 else 'y'} of its images left out")
        if shared:
            notes.append("its series UID is also that of another patient or study")
        if not series.uid:
            notes.append("anonymized without a series UID: its images were put together by folder and geometry")
        folders = {Path(image.file).parent for image in series.images}
        beside = sum(len(names) for (folder, _), names in self._bad.items() if folder in folders)
        if beside:
            notes.append(f"{beside} unusable file{'s' if beside > 1 else ''} beside it: slices may lack at an end")
        return notes

    def _note_bad(self, path: Path, reason: str) -> None:
        self._bad.setdefault((path.parent, reason), []).append(path.name)

    def _reject_files(self, folder: Path, reason: str, names: list[str]) -> None:
        shown = self._shown(folder / names[0])
        more = f" ({len(names)} files, this one first)" if len(names) > 1 else ""
        key = digest(("bad", self._relative(folder), reason))
        self._found.rejected.append(Rejected(key, shown, FAILED, f"{reason}{more}"))

    def _relative(self, path: Path) -> str:
        """``path`` from the input on."""
        return str(path.relative_to(self._root) if path != self._root else Path(path.name))

    def _shown(self, path: Path) -> str:
        """``path`` from the input on, readable even where its bytes are no text; such paths may then look alike."""
        return readable(self._relative(path))


def _fingerprint(images: Sequence[Header]) -> str:
    return digest(part for image in images for part in (image.instance or image.file, repr(image.position)))


def _why(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"
