"""The names that comments and docstrings refer to exist, so that renaming something leaves no dead reference."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "DCASegmentation", ROOT / "Testing")
FILES = [path for folder in FOLDERS for path in sorted(folder.rglob("*.py")) if "earlier" not in path.parts]
THIS_FILE = Path(__file__)

# A cross-reference of Sphinx, such as :func:`scene.maps.show_map`, and a dotted name in double backticks.
ROLE = re.compile(r":(?:func|meth|class|attr|data):`~?([\w.]+)`")
DOTTED = re.compile(r"``([a-z_]\w*(?:\.\w+)+)(?:\([^`]*\))?``")
FILE_ENDINGS = {"py", "json", "jsonl", "md", "pt", "csv", "npz", "nrrd", "html", "txt"}


def names_of(path: Path) -> set[str]:
    """Every name that the code of a file defines, imports or uses."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names.add(name)
            case ast.Import(names=imported) | ast.ImportFrom(names=imported):
                names.update((each.asname or each.name).split(".")[0] for each in imported)
    return names


NAMES = {path: names_of(path) for path in FILES}
BY_DOTTED_NAME: dict[str, set[str]] = {}
for each in FILES:
    parts = each.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    for start in range(len(parts)):
        BY_DOTTED_NAME.setdefault(".".join(parts[start:]), set()).update(NAMES[each])


def modules_of(reference: str) -> list[tuple[str, str]]:
    """For each module that a dotted name starts with: the module and the part of the name after it."""
    parts = reference.split(".")
    splits = [(".".join(parts[:end]), parts[end]) for end in range(len(parts) - 1, 0, -1)]
    return [(module, name) for module, name in splits if module in BY_DOTTED_NAME]


def dead_references(path: Path, text: str) -> list[str]:
    """The references in ``text``, a file at ``path``, to names that do not exist."""
    dead = []
    for reference in ROLE.findall(text):
        module_names = [BY_DOTTED_NAME[module] for module, _name in modules_of(reference)]
        if not any(reference.split(".")[-1] in names for names in [NAMES[path], *module_names]):
            dead.append(reference)
    for reference in DOTTED.findall(text):
        # A single word before the dot may be a variable that has the name of a module.
        modules = [
            (module, name) for module, name in modules_of(reference) if "." in module or module not in NAMES[path]
        ]
        if modules and reference.split(".")[-1] not in FILE_ENDINGS:
            module, name = modules[0]
            if name not in BY_DOTTED_NAME[module] and f"{module}.{name}" not in BY_DOTTED_NAME:
                dead.append(reference)
    return dead


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_reference_names_something_that_exists(folder):
    found = {
        str(path.relative_to(ROOT)): dead
        for path in FILES
        if folder in path.parents
        and path != THIS_FILE
        and (dead := dead_references(path, path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize("text", [":func:`gone`", ":func:`scene.maps.gone`", "``imaging.grid.gone(image)``"])
def test_a_reference_to_something_that_was_renamed_is_found(text):
    assert dead_references(ROOT / "DCASegmentation" / "dcaseg" / "imaging" / "grid.py", text)
