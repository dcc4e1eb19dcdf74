"""Mouse input in the slice views: clicks and scribbles as points, before Slicer's own tools see them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import qt
import slicer

Point = tuple[float, float, float]

# Above that of the views' own interactor styles (0), as the Segment Editor's effects.
_PRIORITY = 1.0
# VTK sends the second of two fast clicks only as a double click, which Slicer uses to enlarge the view.
_PRESSES = ("LeftButtonPressEvent", "LeftButtonDoubleClickEvent")
_MOVE, _RELEASE = "MouseMoveEvent", "LeftButtonReleaseEvent"
_MAX_POINTS = 2000


class SliceClicks:
    """Calls ``onStroke(points, isInverted)`` for each left click or drag in a slice view between start and stop.

    ``points`` are RAS, mm, world. ``isInverted`` is true if Ctrl was pressed. With Shift, the mouse pans as usual.
    ``onDrag(first, last)`` is called with the first and the last point so far while the mouse is dragged.
    """

    def __init__(
        self, onStroke: Callable[[tuple[Point, ...], bool], None], onDrag: Callable[[Point, Point], None]
    ) -> None:
        self._onStroke, self._onDrag = onStroke, onDrag
        self._isOn = False
        self._observations: list[tuple[Any, int]] = []
        self._views: list[Any] = []
        self._points: list[Point] = []
        self._pressedIn: Any = None
        self._isInverted = False

    def start(self) -> None:
        """Watch all slice views, also those of a layout that the user selects later."""
        self.stop()
        layouts = slicer.app.layoutManager()
        # There is no layout manager without a main window.
        if layouts is None:
            return
        self._isOn = True
        layouts.connect("layoutChanged(int)", self._onLayoutChanged)
        self._observe()

    def stop(self) -> None:
        """Stop watching."""
        self._unobserve()
        layouts = slicer.app.layoutManager()
        if self._isOn and layouts is not None:
            layouts.disconnect("layoutChanged(int)", self._onLayoutChanged)
        self._isOn = False

    def _onLayoutChanged(self, layout: int) -> None:
        self._unobserve()
        self._observe()

    def _observe(self) -> None:
        layouts = slicer.app.layoutManager()
        for name in layouts.sliceViewNames():
            view = layouts.sliceWidget(name).sliceView()
            interactor = view.interactor()
            for event in (*_PRESSES, _MOVE, _RELEASE):
                tag = interactor.AddObserver(event, partial(self._onEvent, view), _PRIORITY)
                self._observations.append((interactor, tag))
            view.setViewCursor(qt.QCursor(qt.Qt.CrossCursor))
            self._views.append(view)

    def _unobserve(self) -> None:
        for interactor, tag in self._observations:
            interactor.RemoveObserver(tag)
        for view in self._views:
            view.unsetViewCursor()
        self._observations, self._views = [], []
        self._points, self._pressedIn = [], None

    def _onEvent(self, view: Any, interactor: Any, event: str) -> None:
        if event in _PRESSES:
            if interactor.GetShiftKey():
                return
            self._points, self._pressedIn = [_get_mouse_position(view, interactor)], interactor
            self._isInverted = bool(interactor.GetControlKey())
        elif self._pressedIn is not interactor:
            return
        elif event == _MOVE:
            point = _get_mouse_position(view, interactor)
            if point != self._points[-1]:
                # A box ends at the last point, so a longer scribble keeps that one.
                del self._points[_MAX_POINTS - 1 :]
                self._points.append(point)
                self._onDrag(self._points[0], point)
        else:
            points, self._points, self._pressedIn = tuple(self._points), [], None
            self._onStroke(points, self._isInverted)
        self._takeEvent(interactor)

    def _takeEvent(self, interactor: Any) -> None:
        """Keep the current event from the view's other tools.

        VTK clears the flag of a command before it calls it, so only the command of the current event matters.
        """
        for each, tag in self._observations:
            if each is interactor:
                interactor.GetCommand(tag).SetAbortFlag(1)


def compute_drag_box(first: Point, last: Point) -> tuple[Point, Point]:
    """Two opposite corners (RAS, mm) of the box whose diagonal in a slice leads from ``first`` to ``last``.

    The box is centered on the slice and as deep as the shorter side of the rectangle, as most organs are.
    """
    sides = [abs(b - a) for a, b in zip(first, last, strict=True)]
    across = sides.index(min(sides))
    depth = sorted(sides)[1]
    corners = [list(first), list(last)]
    middle = (first[across] + last[across]) / 2
    corners[0][across], corners[1][across] = middle - depth / 2, middle + depth / 2
    (a, b, c), (d, e, f) = corners
    return (a, b, c), (d, e, f)


def _get_mouse_position(view: Any, interactor: Any) -> Point:
    """The position of the mouse (RAS, mm, world)."""
    right, anterior, superior = view.convertXYZToRAS(view.convertDeviceToXYZ(list(interactor.GetEventPosition())))
    return float(right), float(anterior), float(superior)
