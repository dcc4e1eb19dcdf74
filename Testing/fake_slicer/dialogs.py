"""Dialogs without a person: what was shown is recorded, and questions get the answers that a test gave in advance."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from PySide6 import QtWidgets

from fake_slicer.pythonqt import FakeSlicerError


@dataclass(frozen=True)
class Shown:
    """``kind`` is info, warning, error, question or file."""

    kind: str
    text: str
    detail: str = ""


class Dialogs:
    """``answer(...)`` before the dialog opens, ``shown`` afterwards."""

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self._answers: deque[Any] = deque()

    def answer(self, *answers: Any) -> None:
        """Answers of the next questions: True or False, or the path chosen in a file dialog ("" to cancel)."""
        self._answers.extend(answers)

    @property
    def texts(self) -> list[str]:
        return [dialog.text for dialog in self.shown]

    def unused_answers(self) -> list[Any]:
        return list(self._answers)

    def clear(self) -> None:
        self.shown.clear()
        self._answers.clear()

    def _ask(self, kind: str, text: str, detail: str = "") -> Any:
        self.shown.append(Shown(kind, text, detail))
        if not self._answers:
            raise FakeSlicerError(f"Nobody told the fake Slicer how to answer: {text}")
        return self._answers.popleft()

    def util_functions(self) -> dict[str, Any]:
        """The functions of ``slicer.util`` that would wait for a person."""

        def display(kind: str) -> Any:
            def show(text: str, windowTitle: Any = None, parent: Any = None, **keywords: Any) -> None:
                self.shown.append(Shown(kind, text, str(keywords.get("detailedText", ""))))

            return show

        def confirm(text: str, windowTitle: Any = None, parent: Any = None, **keywords: Any) -> bool:
            return bool(self._ask("question", text, str(keywords.get("detailedText", ""))))

        return {
            "infoDisplay": display("info"),
            "warningDisplay": display("warning"),
            "errorDisplay": display("error"),
            "delayDisplay": display("info"),
            "messageBox": display("info"),
            "confirmOkCancelDisplay": confirm,
            "confirmYesNoDisplay": confirm,
            "confirmRetryCloseDisplay": confirm,
        }

    def input_dialog(self) -> type:
        """``qt.QInputDialog`` whose static function gives the text told, "" to cancel, as PythonQt does."""
        dialogs = self

        class QInputDialog(QtWidgets.QInputDialog):
            @staticmethod
            def getText(parent: Any, title: str, label: str, *rest: Any) -> str:
                return str(dialogs._ask("question", label))

        return QInputDialog

    def file_dialog(self) -> type:
        """``qt.QFileDialog`` whose static functions give the path told, as text, as PythonQt does."""
        dialogs = self

        class QFileDialog(QtWidgets.QFileDialog):
            @staticmethod
            def getOpenFileName(parent: Any = None, caption: str = "", *rest: Any) -> str:
                return str(dialogs._ask("file", caption))

            getSaveFileName = getExistingDirectory = getOpenFileName

            @staticmethod
            def getOpenFileNames(parent: Any = None, caption: str = "", *rest: Any) -> tuple[str, ...]:
                return tuple(dialogs._ask("file", caption))

        return QFileDialog
