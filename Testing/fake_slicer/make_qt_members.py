"""Writes ``qt_members.json``: the members of Qt's classes that PythonQt exposes.

Run: python make_qt_members.py FOLDER

FOLDER is ``generated_cpp_515`` in a checkout of PythonQt, with the headers of its wrappers, from which only names are
taken. Members in Qt's own meta objects (properties, signals, slots) are not included.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

# The classes that a panel may need; the lint rejects all others.
CLASSES = (
    "Qt", "QAbstractButton", "QAbstractItemView", "QAbstractSlider", "QAbstractSpinBox", "QAction", "QApplication",
    "QBrush", "QButtonGroup", "QByteArray", "QCheckBox", "QClipboard", "QColor", "QComboBox", "QCoreApplication",
    "QCursor", "QDesktopServices", "QDialog", "QDir", "QDoubleSpinBox", "QEvent", "QEventLoop", "QFile", "QFileDialog",
    "QFileInfo", "QFont", "QFontMetrics", "QFormLayout", "QFrame", "QGridLayout", "QGroupBox", "QGuiApplication",
    "QHBoxLayout", "QHeaderView", "QIcon", "QInputDialog", "QIODevice", "QKeySequence", "QLabel", "QLayout",
    "QLineEdit", "QListWidget", "QListWidgetItem", "QMenu", "QMessageBox", "QObject", "QPainter", "QPalette",
    "QPen", "QPixmap", "QPlainTextEdit", "QPoint", "QProcess", "QProcessEnvironment", "QProgressBar",
    "QProgressDialog", "QPushButton", "QRadioButton", "QRect", "QScrollArea", "QSettings", "QShortcut", "QSize",
    "QSizePolicy", "QSlider", "QSpacerItem", "QSpinBox", "QStandardItem", "QStandardItemModel", "QStandardPaths",
    "QStyle", "QTableView", "QTableWidget", "QTableWidgetItem", "QTableWidgetSelectionRange", "QTextBrowser",
    "QTextEdit", "QTimer", "QToolButton", "QToolTip", "QTreeWidget", "QTreeWidgetItem", "QUrl", "QVBoxLayout",
    "QWidget",
)  # fmt: skip


def read(folder: Path) -> dict[str, list[str]]:
    """Class -> its methods, static functions, and enumeration values in PythonQt's wrappers."""
    found: dict[str, set[str]] = {name: set() for name in CLASSES}
    for header in sorted(folder.rglob("*.h")):
        text = header.read_text(encoding="utf-8", errors="replace")
        for name, body in re.findall(r"class PythonQtWrapper_(\w+) : public \w+\s*\{(.*?)\n\};", text, re.DOTALL):
            if name in found:
                found[name].update(re.findall(rf"\b(\w+)\({name}\*\s+theWrappedObject", body))
                found[name].update(re.findall(rf"\bstatic_{name}_(\w+)\(", body))
                found[name].update(re.findall(r"\b(\w+) = \w+::\w+", body))
    # Added by PythonQt's own decorators.
    found["QTimer"].add("singleShot")
    return {name: sorted(members) for name, members in sorted(found.items())}


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(members)}" for name, members in read(Path(sys.argv[1])).items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_name("qt_members.json").write_text(text, encoding="utf-8")
