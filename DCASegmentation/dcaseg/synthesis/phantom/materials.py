"""Materials: how a structure gets its Hounsfield units from the distance to its surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .person import Contrast
from .shapes import Array


@dataclass(frozen=True)
class RenderTarget:
    """The arrays that materials are painted on, all (z, y, x).

    ``hu`` is changed in place. At the same points, ``y`` is the position from front to back (mm), and ``grain`` and
    ``cloud`` are smooth textures (mean 0, SD about 1; they vary over about 12 mm and 40 mm). ``blur`` (mm) is the width
    of a boundary: one voxel.
    """

    hu: Array
    y: Array
    grain: Array
    cloud: Array
    blur: float
    contrast: Contrast

    def blend(self, distance: Array, value: Array | float) -> None:
        """Paint ``value`` (HU) where ``distance`` (mm) is negative. Voxels on the surface get a mixture of both
        sides."""
        weight = distance * np.float32(-1.0 / self.blur)
        weight += np.float32(0.5)
        np.clip(weight, 0.0, 1.0, out=weight)
        change = value - self.hu
        change *= weight
        np.add(self.hu, change, out=self.hu)


class Material(Protocol):
    """Paints a structure."""

    def paint(self, canvas: RenderTarget, distance: Array) -> None:
        """Paint ``canvas`` inside a structure; ``distance`` (mm) to its surface is negative inside."""


@dataclass(frozen=True)
class Solid:
    """A tissue whose CT number varies smoothly by ``texture`` (SD in HU)."""

    tissue: str
    texture: float = 4.0

    def paint(self, canvas: RenderTarget, distance: Array) -> None:
        """See ``Material``."""
        hu = canvas.contrast.hu[self.tissue]
        if self.texture == 0.0:
            canvas.blend(distance, hu)
            return
        canvas.blend(distance, hu + self.texture * (0.7 * canvas.grain + 0.7 * canvas.cloud))


@dataclass(frozen=True)
class Layered:
    """A shell of one tissue, ``thickness`` mm thick, around a core of another."""

    shell: str
    core: str
    thickness: float
    texture: float = 4.0

    def paint(self, canvas: RenderTarget, distance: Array) -> None:
        """See ``Material``."""
        Solid(self.shell, self.texture).paint(canvas, distance)
        Solid(self.core, self.texture).paint(canvas, distance + self.thickness)


@dataclass(frozen=True)
class Kidney:
    """Renal cortex, ``thickness`` mm thick, around medullary pyramids with columns of cortex between them."""

    thickness: float = 7.0

    def paint(self, canvas: RenderTarget, distance: Array) -> None:
        """See ``Material``."""
        Solid("renal_cortex", 4.0).paint(canvas, distance)
        # The pyramids are where the grain is high, the columns of cortex between them.
        pyramid = distance + self.thickness
        np.maximum(pyramid, 4.0 * (-0.1 - canvas.grain), out=pyramid)
        Solid("renal_medulla", 4.0).paint(canvas, pyramid)


@dataclass(frozen=True)
class Hollow:
    """A wall, ``thickness`` mm thick, around a content. In front of y = ``gas_in_front_of`` (mm), the content is
    gas."""

    wall: str
    content: str
    thickness: float = 2.5
    texture: float = 6.0
    gas_in_front_of: float | None = None

    def paint(self, canvas: RenderTarget, distance: Array) -> None:
        """See ``Material``."""
        Solid(self.wall, 4.0).paint(canvas, distance)
        lumen = distance + self.thickness
        Solid(self.content, self.texture).paint(canvas, lumen)
        if self.gas_in_front_of is not None:
            # In a person lying on the back, gas rises to the front and forms a fluid level.
            np.maximum(lumen, canvas.y - self.gas_in_front_of, out=lumen)
            Solid("gas", 0.0).paint(canvas, lumen)
