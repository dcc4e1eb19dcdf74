"""Pseudonyms that replace patient identities, for cohorts whose results leave the hospital.

A pseudonym is an HMAC (SHA-256) of the patient ID under a secret key. A patient always has the same pseudonym, and
without the key nobody can find the patient by trying IDs. With the key, the pseudonym can be recomputed from the ID
(see ``Pseudonyms.pseudonymize_patient``).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import OutputError, UserError, get_reason
from ..temp_paths import clean, make_partial_path
from .case import Case, Outcome, Rejected, make_folder_name

KEY = "pseudonym.key"

_BYTES = 32
_MIN_KEY_BYTES = 16
_MAX_NAMES = 10_000
_HIDDEN = "(hidden)"
# Names of folders that identify nobody. Hiding them would make sentences unreadable.
_ORDINARY = frozenset(
    (
        *("a", "all", "an", "and", "archive", "as", "at", "body", "by", "case", "cases", "ct", "cts", "data", "dicom"),
        *("file", "files", "for", "from", "hu", "image", "images", "in", "input", "its", "mm", "of", "on", "one", "or"),
        *("organ", "organs", "out", "scan", "scans", "series", "slice", "slices", "study", "the", "to", "tmp", "was"),
    )
)


class Pseudonyms:
    """Creates pseudonyms with the secret ``key``."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def key_id(self) -> str:
        """Identifies the key without revealing it."""
        return self._compute_hmac("key")[:8]

    def pseudonymize_patient(self, patient_id: str) -> str:
        """The pseudonym of a patient: ``P-`` and 12 hexadecimal digits.

        They are the first digits of HMAC-SHA-256(key, ``patient`` NUL ID), with the ID in UTF-8.
        """
        return f"P-{self._compute_hmac('patient', patient_id)[:12]}"

    def pseudonymize_case(self, case: Case) -> Case:
        """``case`` under a pseudonym. It keeps its files, but nothing else that shows its origin."""
        key = self._compute_hmac("case", case.key)[:16]
        patient = (
            self.pseudonymize_patient(case.patient)
            if case.patient
            else f"C-{self._compute_hmac('source', case.source)[:12]}"
        )
        return replace(
            case,
            key=key,
            name=make_folder_name(patient, key),
            source=f"{patient}/{key[:8]}",
            patient=patient,
            study_date="",
            description="",
            notes=tuple(redact_names(note, _collect_names(case)) for note in case.notes),
        )

    def pseudonymize_rejected(self, entry: Rejected, root: Path) -> Rejected:
        """``entry`` under a pseudonym; ``root`` is the input folder."""
        key = self._compute_hmac("case", entry.key)[:16]
        patient = (
            self.pseudonymize_patient(entry.patient)
            if entry.patient
            else f"C-{self._compute_hmac('source', entry.source)[:12]}"
        )
        names = [*Path(entry.source).parts, entry.patient, entry.description, *_list_file_names(root / entry.source)]
        return Rejected(key, f"{patient}/{key[:8]}", entry.status, redact_names(entry.reason, names), patient)

    def _compute_hmac(self, *parts: str) -> str:
        content = "\0".join(parts).encode("utf-8", "surrogateescape")
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()


def read_key(file: Path) -> bytes:
    """Read the key in ``file``. Raises UserError if it cannot be read or is too short to be a secret."""
    try:
        content = file.read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"The key file {file} cannot be read: {get_reason(error)}.",
            "Specify the key file of an earlier cohort.",
        ) from None
    if len(content) < _MIN_KEY_BYTES:
        raise UserError(
            f"The key in {file} is too short: {len(content)} byte{'s' if len(content) != 1 else ''}.",
            f"Use a key of at least {_MIN_KEY_BYTES} bytes.",
        )
    return content


def get_or_create_key(out: Path) -> bytes:
    """The key in the cohort folder ``out``, created by the first call. Only its owner can read it.

    Raises OutputError if it cannot be written, and UserError if it cannot be read.
    """
    file = out / KEY
    if not file.exists():
        try:
            # Under its name when it is complete: half a key would be refused by every later run.
            clean(out)
            temporary = make_partial_path(file)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(f"{secrets.token_hex(_BYTES)}\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(file)
        except OSError as error:
            why = get_reason(error)
            raise OutputError(f"{file} cannot be written: {why}.", "Choose another folder with -o.") from None
    return read_key(file)


def redact_outcome(outcome: Outcome, case: Case) -> Outcome:
    """``outcome`` without the names of the files and folders that ``case`` was read from."""
    return replace(
        outcome,
        reason=redact_case_names(outcome.reason, case),
        notes=tuple(redact_case_names(note, case) for note in outcome.notes),
    )


def redact_case_names(text: str, case: Case) -> str:
    """``text`` without the names of the files and folders that ``case`` was read from."""
    return redact_names(text, _collect_names(case))


def redact_names(text: str, names: Iterable[str]) -> str:
    """``text`` with each of ``names`` replaced by "(hidden)", the longest name first.

    Ordinary words such as "in" and "data" remain.
    """
    for name in sorted({name for name in names if len(name) > 1 and name not in _ORDINARY}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", _HIDDEN, text)
    return text


def _collect_names(case: Case) -> list[str]:
    files = [Path(file) for file in case.files]
    folders = {part for file in files for part in (str(file.parent), *file.parent.parts[1:])}
    stems = {file.name.split(".")[0] for file in files}
    return [*case.files, *folders, *(file.name for file in files), *stems, case.patient, case.description]


def _list_file_names(folder: Path) -> list[str]:
    """File names in ``folder``, or next to it if it is a file. A reason may mention them."""
    try:
        with os.scandir(folder if folder.is_dir() else folder.parent) as entries:
            return [entry.name for entry, _ in zip(entries, range(_MAX_NAMES), strict=False)]
    except OSError:
        return []
