"""How a structure is painted in Hounsfield units from the distance to its surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .person import Contrast
from .shapes import Array


@dataclass(frozen=True)
class Canvas:
    """What is painted on: ``hu`` and, at the same points, height ``y`` (front to back, mm) and two smooth textures
    (mean 0, SD about 1; ``grain`` varies over some 12 mm, ``cloud`` over some 40 mm). ``blur`` (mm) is the width over
    which a boundary spreads: one voxel."""

    hu: Array
    y: Array
    grain: Array
    cloud: Array
    blur: float
    contrast: Contrast

    def blend(self, distance: Array, value: Array | float) -> None:
        """Lay ``value`` (HU) inside distance 0; a voxel on the surface gets its share of both sides."""
        share = distance * np.float32(-1.0 / self.blur)
        share += np.float32(0.5)
        np.clip(share, 0.0, 1.0, out=share)
        change = value - self.hu
        change *= share
        np.add(self.hu, change, out=self.hu)


class Material(Protocol):
    """Paints a structure."""

    def paint(self, canvas: Canvas, distance: Array) -> None: ...


@dataclass(frozen=True)
class Solid:
    """One tissue whose CT number varies smoothly by ``texture`` (SD in HU)."""

    tissue: str
    texture: float = 4.0

    def paint(self, canvas: Canvas, distance: Array) -> None:
        hu = canvas.contrast.hu[self.tissue]
        if self.texture == 0.0:
            canvas.blend(distance, hu)
            return
        canvas.blend(distance, hu + self.texture * (0.7 * canvas.grain + 0.7 * canvas.cloud))


@dataclass(frozen=True)
class Layered:
    """A shell of one tissue, ``thickness`` mm, round a core of another."""

    shell: str
    core: str
    thickness: float
    texture: float = 4.0

    def paint(self, canvas: Canvas, distance: Array) -> None:
        Solid(self.shell, self.texture).paint(canvas, distance)
        Solid(self.core, self.texture).paint(canvas, distance + self.thickness)


@dataclass(frozen=True)
class Kidney:
    """Cortex outside; inside it medullary pyramids between columns of cortex."""

    thickness: float = 7.0

    def paint(self, canvas: Canvas, distance: Array) -> None:
        Solid("renal_cortex", 4.0).paint(canvas, distance)
        # A pyramid is where the grain is high; columns of cortex reach in between.
        pyramid = distance + self.thickness
        np.maximum(pyramid, 4.0 * (-0.1 - canvas.grain), out=pyramid)
        Solid("renal_medulla", 4.0).paint(canvas, pyramid)


@dataclass(frozen=True)
class Hollow:
    """A wall of ``thickness`` mm round a content; ``gas_below`` (mm): in front of this y the content is gas."""

    wall: str
    content: str
    thickness: float = 2.5
    texture: float = 6.0
    gas_in_front_of: float | None = None

    def paint(self, canvas: Canvas, distance: Array) -> None:
        Solid(self.wall, 4.0).paint(canvas, distance)
        lumen = distance + self.thickness
        Solid(self.content, self.texture).paint(canvas, lumen)
        if self.gas_in_front_of is not None:
            # Lying on the back, gas rises to the front and meets the fluid in a level.
            np.maximum(lumen, canvas.y - self.gas_in_front_of, out=lumen)
            Solid("gas", 0.0).paint(canvas, lumen)
