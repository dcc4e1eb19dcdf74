"""The tissues of synthetic bodies, and the mapping from structure names of label maps to tissues.

A prepared map has one code per voxel: the index of its tissue in ``TISSUES``; from ``SHELLS`` on, one of the shells
around the trunk, each 2 mm thick, from the inside out (the recipe determines how many of them are muscle, fat and
skin); from ``STRETCHES`` on, a section ("stretch") of the lumen of a hollow organ, which has its own filling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...organs import AMOS


@dataclass(frozen=True)
class Tissue:
    """A tissue of a synthetic body.

    ``hu`` is the tissue of ``phantom.person`` with its CT number, ``organ`` the key of its organ in AMOS ("" for none),
    ``texture`` the SD in HU of its smooth variation, ``vessels`` the density of small vessels in it (0 to 1).
    """

    name: str
    hu: str
    organ: str = ""
    texture: float = 4.0
    vessels: float = 0.0

    @property
    def label(self) -> int:
        """The label of its organ in AMOS, or 0."""
        return AMOS.by_key[self.organ].label if self.organ else 0


TISSUES: tuple[Tissue, ...] = (
    Tissue("outside", "air", texture=0.0),
    # The filling between the structures of a label map.
    Tissue("visceral_fat", "fat", texture=7.0, vessels=0.6),
    Tissue("mediastinum", "fat", texture=18.0, vessels=0.6),
    Tissue("wall_muscle", "muscle", texture=12.0),
    Tissue("pelvic_muscle", "muscle", texture=14.0),
    Tissue("diaphragm", "muscle"),
    # Organs.
    Tissue("spleen", "spleen", "spleen", 5.0, 0.25),
    Tissue("right_renal_cortex", "renal_cortex", "right_kidney", 6.0),
    Tissue("right_renal_medulla", "renal_medulla", "right_kidney", 8.0),
    Tissue("left_renal_cortex", "renal_cortex", "left_kidney", 6.0),
    Tissue("left_renal_medulla", "renal_medulla", "left_kidney", 8.0),
    Tissue("gallbladder", "bile", "gallbladder", 2.0),
    Tissue("esophagus_wall", "esophageal_wall", "esophagus"),
    Tissue("esophagus_lumen", "esophageal_wall", "esophagus"),
    Tissue("liver", "liver", "liver", 4.0, 1.0),
    Tissue("hepatic_vein", "portal_blood", "liver"),
    Tissue("stomach_wall", "gastric_wall", "stomach", 8.0),
    Tissue("stomach_lumen", "gastric_content", "stomach"),
    Tissue("aorta", "arterial_blood", "aorta", 4.0),
    Tissue("inferior_vena_cava", "caval_blood", "inferior_vena_cava", 8.0),
    Tissue("pancreas", "pancreas", "pancreas", 10.0, 0.2),
    Tissue("right_adrenal", "adrenal", "right_adrenal_gland"),
    Tissue("left_adrenal", "adrenal", "left_adrenal_gland"),
    Tissue("duodenum_wall", "bowel_wall", "duodenum", 8.0),
    Tissue("duodenum_lumen", "bowel_fluid", "duodenum"),
    Tissue("bladder_wall", "bladder_wall", "bladder"),
    Tissue("bladder_lumen", "urine", "bladder"),
    Tissue("prostate_uterus", "prostate", "prostate_uterus", 8.0),
    # The other structures.
    Tissue("stomach_or_duodenum", "gastric_content"),
    Tissue("artery", "arterial_blood"),
    Tissue("portal_vein", "portal_blood"),
    Tissue("vein", "caval_blood"),
    Tissue("heart_muscle", "heart_muscle", texture=6.0),
    Tissue("heart_blood", "blood", texture=15.0),
    Tissue("colon_wall", "bowel_wall", texture=8.0),
    Tissue("colon_lumen", "feces"),
    Tissue("bowel_wall", "bowel_wall", texture=8.0),
    Tissue("bowel_lumen", "bowel_fluid"),
    Tissue("lung", "lung", texture=25.0, vessels=1.0),
    Tissue("airway", "gas", texture=0.0),
    Tissue("cortical_bone", "cortical_bone", texture=80.0),
    Tissue("cancellous_bone", "cancellous_bone", texture=30.0),
    Tissue("cartilage", "cartilage", texture=12.0),
    Tissue("disc", "disc", texture=8.0),
    Tissue("spinal_canal", "spinal_canal", texture=4.0),
    Tissue("renal_pelvis", "renal_pelvis"),
    Tissue("gland", "adrenal", texture=6.0),
    Tissue("back_muscle", "muscle", texture=12.0),
    Tissue("psoas", "muscle", texture=6.0),
    Tissue("gluteal_muscle", "muscle", texture=12.0),
    # A hollow organ of unknown kind, in the place of one that the label map does not contain.
    Tissue("viscus_wall", "gastric_wall", texture=8.0),
    Tissue("viscus_lumen", "gastric_content"),
)  # fmt: skip

SHELLS = 100
SHELL_MM = 2.0
N_SHELLS = 40
STRETCHES = 140
# Lumens, and the number of stretches that each is divided into.
LUMENS = {
    "stomach_lumen": 1,
    "duodenum_lumen": 4,
    "colon_lumen": 16,
    "bowel_lumen": 36,
    "esophagus_lumen": 4,
    "bladder_lumen": 1,
    "viscus_lumen": 1,
}

INDEX = {tissue.name: index for index, tissue in enumerate(TISSUES)}

# Regular expressions for structure names; the first match counts. SIDE is replaced by "left" or "right".
_STRUCTURES: tuple[tuple[str, str], ...] = (
    ("stomach and duoden", "stomach_or_duodenum"),
    ("spinal cord|spinal canal", "spinal_canal"),
    ("spleen", "spleen"),
    ("renal pelvis|ureter", "renal_pelvis"),
    ("renal arter", "artery"),
    ("renal vein", "vein"),
    ("kidney", "SIDE_kidney"),
    ("adrenal|suprarenal", "SIDE_adrenal"),
    ("gall ?bladder", "gallbladder"),
    ("bladder", "bladder"),
    ("hepatic vein", "hepatic_vein"),
    ("portal|splenic vein|mesenteric vein|splenic vena", "portal_vein"),
    ("hepatic arter|splenic arter|gastric arter|mesenteric arter", "artery"),
    ("vena cava inferior|inferior vena cava|postcava", "inferior_vena_cava"),
    ("pulmonary vein|pulmonary arter", "vein"),
    ("vein|vena|vessel", "vein"),
    ("aorta", "aorta"),
    ("arter|trunk", "artery"),
    ("atri|ventric|heart|myocard", "heart"),
    ("liver", "liver"),
    ("pancreas", "pancreas"),
    ("duoden", "duodenum"),
    ("esophag", "esophagus"),
    ("stomach", "stomach"),
    ("prostate|uterus", "prostate_uterus"),
    ("colon|rectum", "colon"),
    ("bowel|jejunum|ileum|intestine", "bowel"),
    ("lung", "lung"),
    ("trachea|bronch", "airway"),
    ("intervertebral|disc|disk", "disc"),
    ("cartilage", "cartilage"),
    ("diaphragm", "diaphragm"),
    ("symphysis", "cartilage"),
    ("thyroid|lymph|thymus|vagina|ovary|uterine tube|seminal", "gland"),
    ("autochthon|erector|quadratus", "back_muscle"),
    ("psoas|iliacus", "psoas"),
    ("glute", "gluteal_muscle"),
    ("quadriceps", "pelvic_muscle"),
    ("muscle|oblique|rectus", "wall_muscle"),
    (
        "vertebra|rib|hip|femur|humer|sacr|coccyx|scapula|clavic|sternum|skull|pelvis|bone|lumbar|thoracic|cervical",
        "bone",
    ),
)


def find_structure(name: str) -> str | None:
    """The structure that a name in a label map stands for; None if the name is unknown.

    >>> find_structure("kidney_left"), find_structure("Left adrenal gland"), find_structure("rib_right_7")
    ('left_kidney', 'left_adrenal', 'bone')
    """
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
    for pattern, structure in _STRUCTURES:
        if re.search(pattern, words):
            if "SIDE" not in structure:
                return structure
            side = next((s for s in ("right", "left") if re.search(rf"\b{s}|\b{s[0]}\b", words)), None)
            return structure.replace("SIDE", side) if side else None
    return None
