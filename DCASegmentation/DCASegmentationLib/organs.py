"""Label vocabularies: which number in a label map is which organ.

AMOS and Synapse share labels 1 to 9 and differ from 10 on (AMOS 10 is the pancreas, Synapse 10 the portal and splenic
vein), so a label map always travels with the name of its vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Code:
    """A coded term of SNOMED CT (coding scheme ``SCT``)."""

    value: str
    meaning: str
    scheme: str = "SCT"


ANATOMICAL_STRUCTURE = Code("123037004", "Anatomical Structure")
RIGHT = Code("24028007", "Right")
LEFT = Code("7771000", "Left")


@dataclass(frozen=True)
class Organ:
    """One class of a vocabulary.

    ``label`` is its number in label maps, ``key`` its name in files and options, ``name`` its name on the screen,
    ``abbreviation`` the one of the paper's tables, ``color`` its RGB color (0 to 255) and ``volume_ml`` the range of
    ordinary adult volumes in ml.
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


@dataclass(frozen=True)
class Vocabulary:
    """The organs of one data set, in the order of their labels 1 to K."""

    name: str
    organs: tuple[Organ, ...]

    def __post_init__(self) -> None:
        if [organ.label for organ in self.organs] != list(range(1, len(self.organs) + 1)):
            raise ValueError(f"labels of vocabulary {self.name} must run from 1 to K")

    def __iter__(self) -> Iterator[Organ]:
        return iter(self.organs)

    def __len__(self) -> int:
        return len(self.organs)

    @cached_property
    def by_label(self) -> dict[int, Organ]:
        return {organ.label: organ for organ in self.organs}

    @cached_property
    def by_key(self) -> dict[str, Organ]:
        return {organ.key: organ for organ in self.organs}


_SPLEEN = dict(key="spleen", name="Spleen", abbreviation="Sp", code=Code("78961009", "Spleen"),
               color=(157, 108, 162), volume_ml=(80.0, 450.0))
_KIDNEY = Code("64033007", "Kidney")
_RIGHT_KIDNEY = dict(key="right_kidney", name="Right kidney", abbreviation="RK", code=_KIDNEY, side=RIGHT,
                     color=(212, 126, 151), volume_ml=(90.0, 300.0))
_LEFT_KIDNEY = dict(key="left_kidney", name="Left kidney", abbreviation="LK", code=_KIDNEY, side=LEFT,
                    color=(185, 102, 83), volume_ml=(90.0, 300.0))
_GALLBLADDER = dict(key="gallbladder", name="Gallbladder", abbreviation="Ga", code=Code("28231008", "Gallbladder"),
                    color=(139, 150, 98), volume_ml=(5.0, 120.0))
_ESOPHAGUS = dict(key="esophagus", name="Esophagus", abbreviation="Es", code=Code("32849002", "Esophagus"),
                  color=(211, 171, 143), volume_ml=(5.0, 60.0))
_LIVER = dict(key="liver", name="Liver", abbreviation="Li", code=Code("10200004", "Liver"),
              color=(221, 130, 101), volume_ml=(800.0, 2600.0))
_STOMACH = dict(key="stomach", name="Stomach", abbreviation="St", code=Code("69695003", "Stomach"),
                color=(216, 132, 105), volume_ml=(60.0, 900.0))
_AORTA = dict(key="aorta", name="Aorta", abbreviation="Ao", code=Code("15825003", "Aorta"),
              color=(224, 97, 76), volume_ml=(25.0, 250.0))
_VENA_CAVA = dict(key="inferior_vena_cava", name="Inferior vena cava", abbreviation="IVC",
                  code=Code("64131007", "Inferior vena cava"), color=(0, 151, 206), volume_ml=(20.0, 140.0))
_PORTAL_VEIN = dict(key="portal_and_splenic_vein", name="Portal and splenic vein", abbreviation="PSV",
                    code=Code("32764006", "Portal vein"), color=(0, 112, 165), volume_ml=(10.0, 60.0))
_PANCREAS = dict(key="pancreas", name="Pancreas", abbreviation="Pa", code=Code("15776009", "Pancreas"),
                 color=(249, 180, 111), volume_ml=(25.0, 160.0))
_ADRENAL = Code("23451007", "Adrenal gland")
_RIGHT_ADRENAL = dict(key="right_adrenal_gland", name="Right adrenal gland", abbreviation="RAG", code=_ADRENAL,
                      side=RIGHT, color=(249, 186, 150), volume_ml=(1.5, 12.0))
_LEFT_ADRENAL = dict(key="left_adrenal_gland", name="Left adrenal gland", abbreviation="LAG", code=_ADRENAL,
                     side=LEFT, color=(244, 170, 147), volume_ml=(1.5, 12.0))
_DUODENUM = dict(key="duodenum", name="Duodenum", abbreviation="Du", code=Code("38848004", "Duodenum"),
                 color=(255, 253, 229), volume_ml=(20.0, 150.0))
_BLADDER = dict(key="bladder", name="Bladder", abbreviation="Bl", code=Code("89837001", "Bladder"),
                color=(222, 154, 132), volume_ml=(20.0, 700.0))
_PROSTATE_UTERUS = dict(key="prostate_uterus", name="Prostate or uterus", abbreviation="P/U",
                        code=Code("41216001", "Prostate"), color=(230, 158, 140), volume_ml=(8.0, 250.0))


def _vocabulary(name: str, *organs: dict) -> Vocabulary:
    return Vocabulary(name, tuple(Organ(label=label, **organ) for label, organ in enumerate(organs, start=1)))


AMOS = _vocabulary(
    "AMOS", _SPLEEN, _RIGHT_KIDNEY, _LEFT_KIDNEY, _GALLBLADDER, _ESOPHAGUS, _LIVER, _STOMACH, _AORTA, _VENA_CAVA,
    _PANCREAS, _RIGHT_ADRENAL, _LEFT_ADRENAL, _DUODENUM, _BLADDER, _PROSTATE_UTERUS,
)  # fmt: skip
SYNAPSE = _vocabulary(
    "Synapse", _SPLEEN, _RIGHT_KIDNEY, _LEFT_KIDNEY, _GALLBLADDER, _ESOPHAGUS, _LIVER, _STOMACH, _AORTA, _VENA_CAVA,
    _PORTAL_VEIN, _PANCREAS, _RIGHT_ADRENAL, _LEFT_ADRENAL,
)  # fmt: skip

VOCABULARIES = {vocabulary.name: vocabulary for vocabulary in (AMOS, SYNAPSE)}
