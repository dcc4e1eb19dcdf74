"""The files of a result that need Slicer's own libraries: segmentation, scene and picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..bundle.metadata import Metadata
    from ..inference.result import Result
    from ..scene.session import PlacesToCheck

SEGMENTATION = "segmentation.seg.nrrd"
SCENE = "scene.mrb"
PICTURE = "picture.png"

_NO_SLICER = (
    f"{SEGMENTATION} and {SCENE} were not written: they need Slicer's libraries. "
    'To have them: pip install "dca-segmentation[scene]"'
)


@dataclass
class SceneFiles:
    """Writes segmentation and scene (``with_scene``), and a picture where it has a ``picture_title``.

    ``model`` describes what made the result; ``subtitle`` is the picture's second line, about the model.

    ``messages`` tells afterwards what could not be written, or not in the best way, and what to install for it.
    """

    model: Metadata
    with_scene: bool
    picture_title: str | None
    subtitle: str
    messages: list[str] = field(default_factory=list)

    def write(self, folder: Path, ct: sitk.Image, result: Result) -> None:
        """Write the files into ``folder``; what ``job.segment_to_folder`` calls. What fails is left out, with a
        message."""
        from ..job import optional

        nodes = None
        if self.with_scene:
            if find_spec("slicer") is None:
                self.messages.append(_NO_SLICER)
            else:
                with optional(f"{SCENE} or {SEGMENTATION}", self.messages):
                    from ..scene.session import build_scene, save_scene

                    nodes = build_scene(ct, result, self.model.vocabulary, to_check=self._to_check(result))
                    save_scene(nodes, folder / SEGMENTATION, folder / SCENE)
        if self.picture_title is not None:
            with optional(PICTURE, self.messages):
                from ..scene.picture import draw

                title, vocabulary = self.picture_title, self.model.vocabulary
                drawn = draw(folder / PICTURE, ct, result, vocabulary, title, self.subtitle, nodes)
                if drawn.fallback_reason:
                    self.messages.append(f"The picture was drawn without Slicer's views. {drawn.fallback_reason}")

    def _to_check(self, result: Result) -> PlacesToCheck | None:
        from ..scene.session import PlacesToCheck

        found = result.review
        if found is None:
            return None
        return PlacesToCheck(found.review, found.places, found.alternative, self.model.name, self.model.weights.sha256)
