"""Adds a CT, with corrected labels or without labels, as a case to a folder of training cases.

The panel runs this in a separate process, ``python -m dcaseg.worker.training_case FOLDER``, because compressing a CT
takes seconds. FOLDER contains ``ct.nrrd``, ``labels.nrrd`` on the same grid, and ``case.json``::

    {"folder": "/data/training", "name": "ct-1a2b3c4d", "vocabulary": "AMOS", "reviewed": ["liver"],
     "model": ["dca-abdomen", "<sha256>"], "places": [{"rank": 1, "organ": "liver", "status": "corrected"}]}

A CT without labels has no ``labels.nrrd``, and its ``case.json`` is ``{"folder": "/data/training", "unlabelled":
true}``.

The answer is one line of JSON: ``{"name": ..., "cases": ...}``, with the number of cases of this kind now in the
folder, or ``{"problem": ..., "remedy": ...}``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..json_io import load, read_json
from ..option_fields import option

CT, LABELS, CASE = "ct.nrrd", "labels.nrrd", "case.json"


def main(folder: Path) -> int:
    """Add the case in ``folder`` and print the answer.

    Returns 0 if the case was added, 2 if it cannot be used, and 1 if it could not be written.
    """
    from ..errors import UserError

    try:
        answer, code = _add(folder), 0
    except UserError as error:
        answer, code = {"problem": error.problem, "remedy": error.remedy}, 2
    except (OSError, RuntimeError, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        answer, code = {"problem": f"The case could not be written ({reason}).", "remedy": "Try again."}, 1
    print(json.dumps(answer), flush=True)
    return code


def _add(folder: Path) -> dict[str, Any]:
    import SimpleITK as sitk

    from ..organs import VOCABULARIES
    from ..training.corrections import (
        TouchedPlace,
        add_corrected_case,
        add_unlabeled_ct,
        case_folders,
        unlabeled_folders,
    )

    content = read_json(folder / CASE)
    request = load(_Request, content)
    training, ct = Path(request.folder), sitk.ReadImage(str(folder / CT))
    if request.unlabeled:
        added = add_unlabeled_ct(training, ct)
        return {"name": added.parent.name, "cases": len(unlabeled_folders(training))}
    case = add_corrected_case(
        training,
        request.name,
        ct,
        sitk.ReadImage(str(folder / LABELS)),
        VOCABULARIES[request.vocabulary],
        request.reviewed,
        request.model,
        [TouchedPlace(place.rank, place.organ, place.status) for place in request.places],
    )
    return {"name": case.name, "cases": len(case_folders(training))}


@dataclass(frozen=True)
class _Place:
    rank: int
    organ: str
    status: str


@dataclass(frozen=True)
class _Request:
    """The content of ``case.json``. A CT without labels has only the first two."""

    folder: str
    unlabeled: bool = option(False, key="unlabelled")
    name: str = ""
    vocabulary: str = ""
    reviewed: tuple[str, ...] = ()
    model: tuple[str, str] = ("", "")
    places: tuple[_Place, ...] = ()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
