"""Published splits of AMOS and Synapse: the cases that published results were trained, validated and tested on.

The ids come from the public repository named in each split. Results on different splits of Synapse are not comparable:
each has six test cases, but not the same six. Known problems of a split are in its ``caveats``.
"""

from __future__ import annotations

from dataclasses import dataclass

SYNAPSE_IDS = (*range(1, 11), *range(21, 41))
"""The 30 labeled cases of "Beyond the Cranial Vault" (BTCV, Synapse)."""

# AMOS ids above 500 are MRI, according to the dataset's description.
LAST_CT_OF_AMOS = 500


@dataclass(frozen=True)
class Split:
    """Ids of the labeled, validation and test cases. All other cases of the training part are unlabeled.

    ``test`` is None if the test cases are a separate part of the download (AMOS: its validation part). ``source`` is
    the repository of the ids, and ``caveats`` are sentences about the split's problems.
    """

    labeled: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...] | None
    source: str
    caveats: tuple[str, ...] = ()


_LATER_SIX = (8, 27, 29, 33, 37, 39)
_OTHERS = "Other Synapse splits have other test cases: do not compare results between splits."
_SIX_CASES = "There are only six test cases: report an interval over cases with every mean."
_CAVEATS = (_OTHERS, _SIX_CASES)
_CHANGED = "DHC's repository later changed its test list to 8 27 29 33 37 39, five of which are training cases here."
_DHC = "xmed-lab/DHC at 3a09c34, synapse_data/splits"
_FIRST_VALIDATION, _FIRST_SIX = (6, 25, 26, 40), (4, 7, 10, 33, 35, 36)

SYNAPSE: dict[str, Split] = {
    "galoss-10p": Split((23, 28), _FIRST_VALIDATION, _FIRST_SIX, "cicailalala/GALoss, train_Synapse_CPS.py", _CAVEATS),
    "galoss-20p": Split(
        (2, 23, 34, 39), _FIRST_VALIDATION, _FIRST_SIX, "cicailalala/GALoss, train_Synapse_CPS.py", _CAVEATS
    ),
    # The first version of DHC's lists, which GALoss also uses.
    "dhc-20p": Split((2, 23, 34, 39), _FIRST_VALIDATION, _FIRST_SIX, _DHC, (_CHANGED, *_CAVEATS)),
    "dhc-40p": Split((2, 9, 21, 23, 27, 31, 32, 37), _FIRST_VALIDATION, _FIRST_SIX, _DHC, (_CHANGED, *_CAVEATS)),
    "skcdf-20p": Split(
        (21, 23, 28, 32), (35, 36, 38, 40), _LATER_SIX, "yinguanchun/SKCDF, SKCDF/code/data/synapse_splits", _CAVEATS
    ),
    "genericssl-20p": Split(
        (9, 21, 25, 34), (1, 7, 23, 30), _LATER_SIX, "xmed-lab/GenericSSL, Synapse_data/split_txts", _CAVEATS
    ),
}

_AMOS_EVAL = (
    *(27, 66, 97, 109, 116, 124, 153, 154, 159, 197, 214, 215, 297, 336, 337, 349, 353, 381, 538, 540, 554, 585, 592),
    599,
)
_AMOS_SOURCE = "xmed-lab/DHC at b3dee97, amos_data/splits"
_MRI = (
    "Ids above 500 are MRI, which the repositories window like CT. They are left out here (add them with --with-mri)."
)

AMOS: dict[str, Split] = {
    "2p": Split((17, 77, 358, 361), _AMOS_EVAL, None, _AMOS_SOURCE, (_MRI,)),
    "5p": Split(
        (78, 158, 170, 192, 391, 396, 410, 514, 548, 578), _AMOS_EVAL, None, _AMOS_SOURCE,
        (_MRI, "3 of the 10 labeled cases (514, 548, 578) are MRI, so 7 labeled CTs remain."),
    ),
    "10p": Split(
        (
            *(9, 42, 110, 125, 138, 143, 147, 149, 166, 177, 230, 248, 264, 321, 341, 361, 510, 558, 590, 595, 597),
        ),
        _AMOS_EVAL, None, _AMOS_SOURCE, (_MRI,),
    ),
    "20p": Split(
        (
            *(30, 35, 47, 66, 67, 88, 92, 94, 105, 118, 143, 152, 185, 196, 224, 226, 235, 239, 248, 299, 330, 349),
            *(362, 366, 370, 381, 387, 391, 400, 401, 403, 406, 514, 517, 558, 583, 594, 597),
        ),
        _AMOS_EVAL, None, _AMOS_SOURCE,
        (
            _MRI,
            "The published 20 % list was drawn separately: 3 of its labeled cases (66, 349, 381) and 17 of its "
            "unlabeled cases are validation cases. They are left out of the training here.",
        ),
    ),
}  # fmt: skip
