"""The guided first run: a sample CT, one segmentation, and three short tips, shown once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import slicer
import slicer.util
from slicer.i18n import tr as _

_DONE = "DCASegmentation/GuideDone"
_OFFER, _RUNNING, _TIPS = "offer", "running", ("result", "review", "correct")


class Guide:
    """A guide in ``guideFrame`` of ``ui``, offered until the user finishes or closes it.

    ``start()`` loads the sample CT and starts its segmentation; it returns False if that cannot start.
    ``open(section)`` opens the section "result", "review" or "correct" and scrolls to it. ``onClosed()`` is called
    when the guide is closed for good.
    """

    def __init__(
        self,
        ui: SimpleNamespace,
        start: Callable[[], bool],
        open: Callable[[str], None],
        onClosed: Callable[[], None],
    ) -> None:
        self._ui, self._start, self._open, self._onClosed = ui, start, open, onClosed
        self._step = _OFFER
        self.isOffered = False
        ui.guideButton.connect("clicked()", self._onNext)
        ui.guideCloseButton.connect("clicked()", self.close)

    @property
    def isDone(self) -> bool:
        """Whether the user has finished or closed the guide, now or in an earlier session."""
        return bool(slicer.util.toBool(slicer.app.settings().value(_DONE, False)))

    def update(self, hasCT: bool, canRun: bool) -> None:
        """Offer the sample CT while no CT is open (``hasCT``) and everything a run needs is installed (``canRun``)."""
        self.isOffered = self._step == _OFFER and not hasCT and canRun and not self.isDone
        self._ui.guideFrame.visible = self.isOffered or (self._step != _OFFER and not self.isDone)
        self._ui.guideLabel.text = _getTexts()[self._step]
        self._ui.guideButton.text = _("Try it on a sample CT") if self._step == _OFFER else _("Next")
        if self._step == _TIPS[-1]:
            self._ui.guideButton.text = _("Done")
        self._ui.guideButton.visible = self._step != _RUNNING
        self._ui.guideCloseButton.text = _("No, thanks") if self._step == _OFFER else _("Close")

    def onRunEnded(self, isGood: bool) -> None:
        """A run has ended: if the guide started it and it succeeded, show the first tip."""
        if self._step == _RUNNING:
            self._show(_TIPS[0] if isGood else _OFFER)

    def close(self) -> None:
        """Close the guide for good."""
        slicer.app.settings().setValue(_DONE, True)
        self.isOffered = False
        self._ui.guideFrame.visible = False
        self._onClosed()

    def _onNext(self) -> None:
        if self._step == _OFFER:
            # Set before the start: if the run ends immediately, onRunEnded must find this state.
            self._show(_RUNNING)
            if not self._start():
                self._show(_OFFER)
        elif self._step == _TIPS[-1]:
            self.close()
        elif self._step in _TIPS:
            self._show(_TIPS[_TIPS.index(self._step) + 1])

    def _show(self, step: str) -> None:
        self._step = step
        if step in _TIPS:
            self._open(step)
        self.update(step != _OFFER, True)


def _getTexts() -> Mapping[str, str]:
    return {
        _OFFER: _("New here? Download a public sample CT, segment it, and take a tour of the results in three tips."),
        _RUNNING: _("Loading and segmenting the sample CT. This takes a few seconds to a few minutes."),
        "result": _("<b>1. Result</b>: volume and mean HU of each organ. Double-click an organ to go there."),
        "review": _(
            "<b>2. Review</b>: the regions most likely to be wrong come first. Press Next, look, then accept or flag."
        ),
        "correct": _(
            "<b>3. Correct</b>: press Edit here under Review to paint within a finding. Undo reverts your strokes."
        ),
    }
