"""Dialogs without a user: they record what is shown and return the answers that a test has set in advance."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from PySide6 import QtWidgets

from fake_slicer.pythonqt import FakeSlicerError


@dataclass(frozen=True)
class Shown:
    """A dialog that was shown; ``kind`` is "info", "warning", "error", "question", or "file".

    ``detail`` is the detailed text, or the file or folder that a file dialog suggests.
    """

    kind: str
    text: str
    detail: str = ""


class Dialogs:
    """Call ``answer(...)`` before a dialog opens, and read ``shown`` afterward."""

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self._answers: deque[Any] = deque()

    def answer(self, *answers: Any) -> None:
        """Set the answers to the next questions: True or False, or the path for a file dialog ("" to cancel)."""
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
            raise FakeSlicerError(f"The test has set no answer to: {text}")
        return self._answers.popleft()

    def util_functions(self) -> dict[str, Any]:
        """The functions of ``slicer.util`` that would wait for the user."""

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
        """``qt.QInputDialog`` whose static function returns the scripted text, "" for cancel, as in PythonQt."""
        dialogs = self

        class QInputDialog(QtWidgets.QInputDialog):
            @staticmethod
            def getText(parent: Any, title: str, label: str, *arguments: Any) -> str:
                return str(dialogs._ask("question", label))

        return QInputDialog

    def file_dialog(self) -> type:
        """``qt.QFileDialog`` whose static functions return the scripted path as text, as in PythonQt."""
        dialogs = self

        class QFileDialog(QtWidgets.QFileDialog):
            @staticmethod
            def getOpenFileName(parent: Any = None, caption: str = "", directory: str = "", *arguments: Any) -> str:
                return str(dialogs._ask("file", caption, directory))

            getSaveFileName = getExistingDirectory = getOpenFileName

            @staticmethod
            def getOpenFileNames(parent: Any = None, caption: str = "", *arguments: Any) -> tuple[str, ...]:
                return tuple(dialogs._ask("file", caption))

        return QFileDialog
