"""Stand-ins for the CTK widgets that the module uses."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from fake_slicer.base import Plain, Signal, StandIn

_UNLIMITED = 16777215  # Qt's QWIDGETSIZE_MAX


class _Collapsible(StandIn):
    """How both collapsible widgets show and hide their children.

    As in CTK, children are shown and hidden once Qt has created the widget, and a child that was never created is
    hidden but not shown again. So a child of a group box that starts collapsed does not appear when the box is
    expanded, if the child's own visibility was set before it was first shown.
    """

    @property
    def collapsed(self) -> bool:
        return not self.checked

    @collapsed.setter
    def collapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    def _follow_all(self) -> None:
        for child in self._child_widgets():
            self._follow_collapse(child)

    def _child_widgets(self) -> list[Any]:
        return [child for child in self.children() if isinstance(child, QtWidgets.QWidget)]

    def _follow_collapse(self, child: Any) -> None:
        attributes = QtCore.Qt.WidgetAttribute
        if not self.testAttribute(attributes.WA_WState_Created):
            return
        hidden_by_others = child.property("hidden_by_others")
        shown = not self.collapsed and not hidden_by_others
        self._state.is_forcing = True
        if child.testAttribute(attributes.WA_WState_Created) or not shown:
            child.setVisible(shown)
        if not hidden_by_others:
            child.setAttribute(attributes.WA_WState_ExplicitShowHide, False)
        self._state.is_forcing = False

    def setVisible(self, visible: bool) -> None:
        self._state.is_forcing = True
        super().setVisible(visible)
        self._state.is_forcing = False
        if not self._state.was_created and self.testAttribute(QtCore.Qt.WidgetAttribute.WA_WState_Created):
            self._state.was_created = True
            for child in self._child_widgets():
                self._follow_collapse(child)

    def eventFilter(self, child: Any, event: QtCore.QEvent) -> bool:
        if not self._state.is_forcing and isinstance(child, QtWidgets.QWidget) and child.parent() is self:
            if event.type() == QtCore.QEvent.Type.ShowToParent:
                child.setProperty("hidden_by_others", False)
                self._follow_collapse(child)
            elif event.type() == QtCore.QEvent.Type.HideToParent:
                child.setProperty("hidden_by_others", True)
        return False

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        child = event.child()
        if event.added() and isinstance(child, QtWidgets.QWidget):
            attributes = QtCore.Qt.WidgetAttribute
            if child.testAttribute(attributes.WA_WState_ExplicitShowHide) and child.isHidden():
                child.setProperty("hidden_by_others", True)
            child.installEventFilter(self)
            self._follow_collapse(child)
        super().childEvent(event)


class ctkCollapsibleButton(_Collapsible, QtWidgets.QAbstractButton):
    """A clickable header with collapsible contents below it."""

    flat = Plain(False)
    contentsFrameShape = Plain(0)
    contentsFrameShadow = Plain(0)
    contentsLineWidth = Plain(1)
    contentsMidLineWidth = Plain(0)
    collapsedHeight = Plain(10)
    contentsCollapsed = Signal("contentsCollapsed(bool)")

    def __init__(self, *arguments: Any) -> None:
        self._state.was_created = self._state.is_forcing = False
        texts = [argument for argument in arguments if isinstance(argument, str)]
        super().__init__(*[argument for argument in arguments if not isinstance(argument, str)])
        self.text = texts[0] if texts else ""
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred)
        self.setContentsMargins(0, self._header_height(), 0, 0)
        self.toggled.connect(self._follow_check)

    def _header_height(self) -> int:
        return self.fontMetrics().height() + 10

    def _follow_check(self, checked: bool) -> None:
        self._follow_all()
        self.setMaximumHeight(_UNLIMITED if checked else self._header_height())
        self.updateGeometry()
        self.contentsCollapsed.emit(not checked)

    def sizeHint(self) -> QtCore.QSize:
        header = QtCore.QSize(self.fontMetrics().horizontalAdvance(self.text) + 30, self._header_height())
        layout = self.layout()
        return header if self.collapsed or layout is None else layout.totalSizeHint().expandedTo(header)

    def minimumSizeHint(self) -> QtCore.QSize:
        layout = self.layout()
        header = QtCore.QSize(30, self._header_height())
        return header if self.collapsed or layout is None else layout.totalMinimumSize().expandedTo(header)

    def hitButton(self, position: QtCore.QPoint) -> bool:
        return position.y() < self._header_height()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtWidgets.QStylePainter(self)
        header = QtCore.QRect(0, 0, self.width, self._header_height())
        button = QtWidgets.QStyleOptionButton()
        button.initFrom(self)
        button.rect = header
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, button)
        painter.drawPrimitive(*_arrow(self, QtCore.QRect(8, header.center().y() - 5, 10, 10), self.collapsed))
        painter.drawText(header.adjusted(26, 0, -4, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, self.text)


class ctkCollapsibleGroupBox(_Collapsible, QtWidgets.QGroupBox):
    """A group box that is expanded and collapsed by the check mark in its title."""

    def __init__(self, *arguments: Any) -> None:
        self._state.was_created = self._state.is_forcing = False
        super().__init__(*arguments)
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._follow_check)

    def _follow_check(self, checked: bool) -> None:
        self._follow_all()
        self.setFlat(not checked)
        self.setMaximumHeight(_UNLIMITED if checked else self.fontMetrics().height() + 6)
        self.updateGeometry()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draw an arrow instead of the check mark."""
        super().paintEvent(event)
        option = QtWidgets.QStyleOptionGroupBox()
        self.initStyleOption(option)
        style = QtWidgets.QStyle
        place = self.style().subControlRect(
            style.ComplexControl.CC_GroupBox, option, style.SubControl.SC_GroupBoxCheckBox, self
        )
        painter = QtWidgets.QStylePainter(self)
        painter.fillRect(place, self.palette.window())
        painter.drawPrimitive(*_arrow(self, place.adjusted(2, 2, -2, -2), self.collapsed))


def _arrow(widget: QtWidgets.QWidget, place: QtCore.QRect, to_the_right: bool) -> tuple[Any, Any]:
    element = QtWidgets.QStyle.PrimitiveElement
    option = QtWidgets.QStyleOption()
    option.initFrom(widget)
    option.rect = place
    return element.PE_IndicatorArrowRight if to_the_right else element.PE_IndicatorArrowDown, option


def _of_spin_box(name: str) -> Any:
    """A property of ctkSliderWidget that is forwarded to its spin box."""

    def write(self: Any, value: Any) -> None:
        setattr(self._state.spin_box, name, value)
        self._fit_slider()

    return property(lambda self: getattr(self._state.spin_box, name), write)


class ctkSliderWidget(StandIn, QtWidgets.QWidget):
    """A slider with a spin box for floating-point numbers."""

    valueChanged = Signal("valueChanged(double)")
    valueIsChanging = Signal("valueIsChanging(double)")
    pageStep = Plain(10.0)
    tracking = Plain(True)
    tickInterval = Plain(0.0)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state.slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self)
        self._state.spin_box = QtWidgets.QDoubleSpinBox(self)
        self._state.spin_box.maximum = 99.0
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._state.slider, 1)
        layout.addWidget(self._state.spin_box)
        self._state.spin_box.valueChanged.connect(self._follow_spin_box)
        self._state.slider.valueChanged.connect(self._follow_slider)
        self._fit_slider()

    def _fit_slider(self) -> None:
        """Update the slider, whose unit is one step of the spin box."""
        box, slider = self._state.spin_box, self._state.slider
        slider.blockSignals(True)
        slider.setRange(0, round((box.maximum - box.minimum) / box.singleStep))
        slider.value = round((box.value - box.minimum) / box.singleStep)
        slider.blockSignals(False)

    def _follow_spin_box(self, value: float) -> None:
        self._fit_slider()
        self.valueIsChanging.emit(value)
        self.valueChanged.emit(value)

    def _follow_slider(self, position: int) -> None:
        self._state.spin_box.value = self._state.spin_box.minimum + position * self._state.spin_box.singleStep

    def setValue(self, value: float) -> None:
        self._state.spin_box.setValue(value)

    def setDecimals(self, decimals: int) -> None:
        self._state.spin_box.setDecimals(decimals)

    def setSpinBoxVisible(self, visible: bool) -> None:
        self._state.spin_box.setVisible(visible)

    value = _of_spin_box("value")
    minimum = _of_spin_box("minimum")
    maximum = _of_spin_box("maximum")
    singleStep = _of_spin_box("singleStep")
    decimals = _of_spin_box("decimals")
    prefix = _of_spin_box("prefix")
    suffix = _of_spin_box("suffix")

    @property
    def spinBoxVisible(self) -> bool:
        return not self._state.spin_box.isHidden()

    @spinBoxVisible.setter
    def spinBoxVisible(self, visible: bool) -> None:
        self.setSpinBoxVisible(visible)


class ctkMenuButton(StandIn, QtWidgets.QPushButton):
    """A push button with a menu behind an arrow."""
