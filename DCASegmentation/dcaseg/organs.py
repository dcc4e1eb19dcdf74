"""Label vocabularies: which label number stands for which organ.

AMOS and Synapse share labels 1 to 9 and differ from 10 on (AMOS 10 is the pancreas, Synapse 10 the portal and splenic
vein). A label map therefore always carries the name of its vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial

from .errors import UserError


@dataclass(frozen=True)
class Code:
    """A coded term: ``value`` in the coding scheme ``scheme`` (``SCT`` is SNOMED CT), and its ``meaning`` in words."""

    value: str
    meaning: str
    scheme: str = "SCT"


ANATOMICAL_STRUCTURE = Code("123037004", "Anatomical Structure")
CUT_OFF = "cut off by the scan: lower bound"
"""The note on an organ that reaches the first or last slice of the scan: its volume is a lower bound."""

# Fewer voxels than both of these limits are noise: a share of the smallest usual volume, and a volume in ml.
_STRAY_SHARE, _STRAY_ML = 0.05, 0.5

RIGHT = Code("24028007", "Right")
LEFT = Code("7771000", "Left")


@dataclass(frozen=True)
class Organ:
    """One class of a vocabulary.

    ``label`` is its number in label maps, ``key`` its name in files and options, ``name`` its name on the screen,
    ``abbreviation`` its abbreviation in the paper's tables, ``code`` its SNOMED CT term (with ``side`` and
    ``category``), ``color`` its RGB color (0 to 255) and ``volume_ml`` the usual range of adult volumes in ml.
    ``compact``: it is in one piece even in a short scan, unlike the lobes of the liver or the loops of the duodenum.
    """

    label: int
    key: str
    name: str
    abbreviation: str
    code: Code
    color: tuple[int, int, int]
    volume_ml: tuple[float, float]
    side: Code | None = None
    category: Code = ANATOMICAL_STRUCTURE
    compact: bool = False

    def is_stray(self, ml: float) -> bool:
        """Whether a volume of ``ml`` is too small to be this organ: a few stray voxels. False for a volume of 0."""
        return 0 < ml < min(_STRAY_SHARE * self.volume_ml[0], _STRAY_ML)

    def note(self, voxels: int, ml: float, cut_off: bool = False) -> str:
        """How a volume compares with the usual adult range, as text; empty within the range.

        ``voxels`` and ``ml`` give the size of the segment. ``cut_off`` says that the scan ends inside the organ.
        """
        low, high = self.volume_ml
        if voxels == 0:
            return "not found"
        if self.is_stray(ml):
            return "only a few stray voxels"
        notes = []
        if ml > high:
            notes.append(f"above the usual range of {low:g} to {high:g} ml")
        if cut_off:
            notes.append(CUT_OFF)
        elif ml < low:
            notes.append(f"below the usual range of {low:g} to {high:g} ml")
        return "; ".join(notes)


@dataclass(frozen=True)
class Vocabulary:
    """The organs of one dataset, in the order of their labels 1 to K.

    Raises ValueError if the labels do not run from 1 to K.
    """

    name: str
    organs: tuple[Organ, ...]

    def __post_init__(self) -> None:
        if [organ.label for organ in self.organs] != list(range(1, len(self.organs) + 1)):
            raise ValueError(f"the labels of vocabulary {self.name} must run from 1 to K")

    def __iter__(self) -> Iterator[Organ]:
        return iter(self.organs)

    def __len__(self) -> int:
        return len(self.organs)

    @cached_property
    def by_label(self) -> dict[int, Organ]:
        """The organs by label number."""
        return {organ.label: organ for organ in self.organs}

    @cached_property
    def by_key(self) -> dict[str, Organ]:
        """The organs by key."""
        return {organ.key: organ for organ in self.organs}

    @cached_property
    def compact(self) -> frozenset[int]:
        """The labels of compact organs (see ``Organ``)."""
        return frozenset(organ.label for organ in self.organs if organ.compact)

    def find(self, text: str) -> Organ:
        """The organ with this key or name: ``right_kidney``, ``Right kidney``, ``right-kidney``.

        Raises UserError, with the closest key, if there is no such organ.
        """
        spelled = {_normalize_name(name): organ for organ in self.organs for name in (organ.name, organ.key)}
        if _normalize_name(text) in spelled:
            return spelled[_normalize_name(text)]
        close = get_close_matches(_normalize_name(text), spelled, n=1)
        hint = f"Did you mean '{spelled[close[0]].key}'? " if close else ""
        raise UserError(f"This model has no organ '{text}'.", f"{hint}Its organs are {', '.join(self.by_key)}.")


def _normalize_name(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


# Codes as in Slicer's terminology lists and in TotalSegmentator. Colors follow Slicer's, except where Slicer's colors
# of two neighbors are hard to tell apart: liver and stomach, aorta and kidney, the adrenal glands and the pancreas.
_SPLEEN = partial(
    Organ,
    key="spleen",
    name="Spleen",
    abbreviation="Sp",
    code=Code("78961009", "Spleen"),
    color=(157, 108, 162),
    volume_ml=(80.0, 450.0),
    compact=True,
)
_KIDNEY = Code("64033007", "Kidney")
_RIGHT_KIDNEY = partial(
    Organ,
    key="right_kidney",
    name="Right kidney",
    abbreviation="RK",
    code=_KIDNEY,
    side=RIGHT,
    color=(165, 50, 85),
    volume_ml=(90.0, 300.0),
    compact=True,
)
_LEFT_KIDNEY = partial(
    Organ,
    key="left_kidney",
    name="Left kidney",
    abbreviation="LK",
    code=_KIDNEY,
    side=LEFT,
    color=(205, 85, 110),
    volume_ml=(90.0, 300.0),
    compact=True,
)
_GALLBLADDER = partial(
    Organ,
    key="gallbladder",
    name="Gallbladder",
    abbreviation="Ga",
    code=Code("28231008", "Gallbladder"),
    color=(112, 168, 72),
    volume_ml=(5.0, 120.0),
    compact=True,
)
_ESOPHAGUS = partial(
    Organ,
    key="esophagus",
    name="Esophagus",
    abbreviation="Es",
    code=Code("32849002", "Esophagus"),
    color=(211, 171, 143),
    volume_ml=(5.0, 60.0),
)
_LIVER = partial(
    Organ,
    key="liver",
    name="Liver",
    abbreviation="Li",
    code=Code("10200004", "Liver"),
    color=(221, 130, 101),
    volume_ml=(800.0, 2600.0),
)
_STOMACH = partial(
    Organ,
    key="stomach",
    name="Stomach",
    abbreviation="St",
    code=Code("69695003", "Stomach"),
    color=(245, 165, 185),
    volume_ml=(60.0, 900.0),
)
_AORTA = partial(
    Organ,
    key="aorta",
    name="Aorta",
    abbreviation="Ao",
    code=Code("15825003", "Aorta"),
    color=(220, 30, 40),
    volume_ml=(25.0, 250.0),
)
_VENA_CAVA = partial(
    Organ,
    key="inferior_vena_cava",
    name="Inferior vena cava",
    abbreviation="IVC",
    code=Code("64131007", "Inferior vena cava"),
    color=(0, 151, 206),
    volume_ml=(20.0, 140.0),
)
_PORTAL_VEIN = partial(
    Organ,
    key="portal_and_splenic_vein",
    name="Portal and splenic vein",
    abbreviation="PSV",
    code=Code("110765007", "Portal vein and splenic vein"),
    color=(90, 90, 225),
    volume_ml=(10.0, 60.0),
)
_PANCREAS = partial(
    Organ,
    key="pancreas",
    name="Pancreas",
    abbreviation="Pa",
    code=Code("15776009", "Pancreas"),
    color=(249, 190, 80),
    volume_ml=(25.0, 160.0),
)
_ADRENAL = Code("23451007", "Adrenal gland")
_RIGHT_ADRENAL = partial(
    Organ,
    key="right_adrenal_gland",
    name="Right adrenal gland",
    abbreviation="RAG",
    code=_ADRENAL,
    side=RIGHT,
    color=(80, 215, 170),
    volume_ml=(1.5, 12.0),
)
_LEFT_ADRENAL = partial(
    Organ,
    key="left_adrenal_gland",
    name="Left adrenal gland",
    abbreviation="LAG",
    code=_ADRENAL,
    side=LEFT,
    color=(0, 140, 115),
    volume_ml=(1.5, 12.0),
)
_DUODENUM = partial(
    Organ,
    key="duodenum",
    name="Duodenum",
    abbreviation="Du",
    code=Code("38848004", "Duodenum"),
    color=(245, 240, 140),
    volume_ml=(20.0, 150.0),
)
_BLADDER = partial(
    Organ,
    key="bladder",
    name="Bladder",
    abbreviation="Bl",
    code=Code("89837001", "Bladder"),
    color=(165, 215, 245),
    volume_ml=(20.0, 700.0),
    compact=True,
)
# One label for two organs: either organ's code would be wrong for half of the patients, so the code is the system's.
_PROSTATE_UTERUS = partial(
    Organ,
    key="prostate_uterus",
    name="Prostate or uterus",
    abbreviation="P/U",
    code=Code("21514008", "Genitourinary system"),
    color=(235, 110, 200),
    volume_ml=(8.0, 250.0),
    compact=True,
)


def _make_vocabulary(name: str, *organs: Callable[..., Organ]) -> Vocabulary:
    return Vocabulary(name, tuple(organ(label=label) for label, organ in enumerate(organs, start=1)))


AMOS = _make_vocabulary(
    "AMOS", _SPLEEN, _RIGHT_KIDNEY, _LEFT_KIDNEY, _GALLBLADDER, _ESOPHAGUS, _LIVER, _STOMACH, _AORTA, _VENA_CAVA,
    _PANCREAS, _RIGHT_ADRENAL, _LEFT_ADRENAL, _DUODENUM, _BLADDER, _PROSTATE_UTERUS,
)  # fmt: skip
SYNAPSE = _make_vocabulary(
    "Synapse", _SPLEEN, _RIGHT_KIDNEY, _LEFT_KIDNEY, _GALLBLADDER, _ESOPHAGUS, _LIVER, _STOMACH, _AORTA, _VENA_CAVA,
    _PORTAL_VEIN, _PANCREAS, _RIGHT_ADRENAL, _LEFT_ADRENAL,
)  # fmt: skip

VOCABULARIES = {vocabulary.name: vocabulary for vocabulary in (AMOS, SYNAPSE)}
"""All vocabularies by name."""


def get_typical_volume(key: str | None) -> float | None:
    """Return the middle (geometric mean) of the usual volumes in ml of the organ ``key``; None if it is unknown."""
    for vocabulary in VOCABULARIES.values():
        if key in vocabulary.by_key:
            low, high = vocabulary.by_key[key].volume_ml
            return math.sqrt(low * high)
    return None
