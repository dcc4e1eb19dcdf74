"""Pseudonyms in place of what tells who a patient is, for cohorts whose results leave the hospital.

A pseudonym is an HMAC (SHA-256) of the patient ID under a secret key: the same patient always has the same one, and
without the key nobody can find the patient by trying IDs. With the key it can be computed again, see
``Pseudonyms.patient``.
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

from ..errors import OutputError, UserError
from .case import Case, Outcome, Rejected, folder_name

KEY = "pseudonym.key"

_BYTES = 32
_FEWEST_BYTES = 16
_MOST_NAMES = 10_000
_HIDDEN = "(hidden)"


class Pseudonyms:
    """``key`` is the secret."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def key_id(self) -> str:
        """Tells keys apart without giving them away."""
        return self._code("key")[:8]

    def patient(self, patient_id: str) -> str:
        """``P-`` and the first 12 hexadecimal digits of HMAC-SHA-256(key, ``patient`` NUL ID in UTF-8)."""
        return f"P-{self._code('patient', patient_id)[:12]}"

    def case(self, case: Case) -> Case:
        """``case`` under a pseudonym, with the files that it is read from, and nothing else of where it comes from."""
        key = self._code("case", case.key)[:16]
        patient = self.patient(case.patient) if case.patient else f"C-{self._code('source', case.source)[:12]}"
        return replace(
            case,
            key=key,
            name=folder_name(patient, key),
            source=f"{patient}/{key[:8]}",
            patient=patient,
            study_date="",
            description="",
            notes=tuple(hidden(note, _names(case)) for note in case.notes),
        )

    def rejected(self, each: Rejected, root: Path) -> Rejected:
        """``each`` under a pseudonym; ``root`` is the input's folder."""
        key = self._code("case", each.key)[:16]
        patient = self.patient(each.patient) if each.patient else f"C-{self._code('source', each.source)[:12]}"
        names = [*Path(each.source).parts, each.patient, each.description, *_entries(root / each.source)]
        return Rejected(key, f"{patient}/{key[:8]}", each.status, hidden(each.reason, names), patient)

    def _code(self, *parts: str) -> str:
        content = "\0".join(parts).encode("utf-8", "surrogateescape")
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()


def read_key(file: Path) -> bytes:
    """The key in ``file``. Raises UserError where there is none or it is too short to be a secret."""
    try:
        content = file.read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"The key {file} cannot be read: {error.strerror or error}.", "Give the file of an earlier cohort's key."
        ) from None
    if len(content) < _FEWEST_BYTES:
        raise UserError(
            f"The key {file} has {len(content)} bytes, too few to be a secret.", f"Give {_FEWEST_BYTES} bytes or more."
        )
    return content


def own_key(out: Path) -> bytes:
    """The key in the folder ``out`` of a cohort, made at the first call; only its owner can read it."""
    file = out / KEY
    if not file.exists():
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(f"{secrets.token_hex(_BYTES)}\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            why = error.strerror or error
            raise OutputError(f"{file} cannot be written: {why}.", "Choose another folder.") from None
    return read_key(file)


def without_names(outcome: Outcome, case: Case) -> Outcome:
    """``outcome`` without the names of the files and folders that ``case`` was read from."""
    names = _names(case)
    return replace(
        outcome, reason=hidden(outcome.reason, names), notes=tuple(hidden(note, names) for note in outcome.notes)
    )


def hidden(text: str, names: Iterable[str]) -> str:
    """``text`` with a word in place of each of ``names``, the longest first."""
    for name in sorted({name for name in names if len(name) > 1}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", _HIDDEN, text)
    return text


def _names(case: Case) -> list[str]:
    files = [Path(file) for file in case.files]
    folders = {part for file in files for part in (str(file.parent), *file.parent.parts[1:])}
    stems = {file.name.split(".")[0] for file in files}
    return [*case.files, *folders, *(file.name for file in files), *stems, case.patient, case.description]


def _entries(folder: Path) -> list[str]:
    """Names of the files that a reason may name."""
    try:
        with os.scandir(folder if folder.is_dir() else folder.parent) as entries:
            return [entry.name for entry, _ in zip(entries, range(_MOST_NAMES), strict=False)]
    except OSError:
        return []
