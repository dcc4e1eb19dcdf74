"""Checks that the module's Python code uses only members that the real widget classes have.

Running the module in the fake Slicer checks only the lines that a test executes; this reads every line. It recognizes
``self.ui.name.member``, aliases ``name = self.ui.name`` within a function, and, for Qt's own classes,
``qt.Class.member``, names and attributes set to ``qt.Class(...)``, and parameters annotated with ``qt.Class``.
"""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fake_slicer import manifest, qt_members


def named_objects(ui_files: Iterable[Path]) -> dict[str, str]:
    """The class of each widget and layout in these .ui files, by object name."""
    trees = [ElementTree.parse(file) for file in ui_files]
    return {
        str(element.get("name")): str(element.get("class"))
        for tree in trees
        for element in tree.iter()
        if element.tag in ("widget", "layout") and element.get("name")
    }


def find_problems(source: str, objects: Mapping[str, str]) -> list[str]:
    """Uses of widgets in ``source`` that Slicer would reject, each with its line; ``objects`` maps names to classes."""
    found = []
    tree = ast.parse(source)
    attributes = {f"self.{name}": class_name for name, class_name in _created(tree, attributes=True).items()}
    for scope in _scopes(tree):
        aliases = _aliases(scope, objects)
        classes = {**attributes, **_created(scope, attributes=False), **_annotated(scope)}
        calls = {id(node.func): node for node in ast.walk(scope) if isinstance(node, ast.Call)}
        for node in ast.walk(scope):
            for problem in (*_problems(node, calls, aliases, objects), *_qt_problems(node, calls, classes)):
                found.append(f"line {node.lineno}: {problem}")
    return sorted(set(found), key=lambda text: int(text.split()[1].rstrip(":")))


def _scopes(tree: ast.Module) -> Iterator[ast.AST]:
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    yield from functions or [tree]


def _is_ui(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("ui", "_ui")


def _aliases(scope: ast.AST, objects: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and _is_ui(node.value.value):
            for target in node.targets:
                if isinstance(target, ast.Name) and node.value.attr in objects:
                    found[target.id] = node.value.attr
    return found


def _problems(
    node: ast.AST, calls: Mapping[int, ast.Call], aliases: Mapping[str, str], objects: Mapping[str, str]
) -> Iterator[str]:
    if isinstance(node, ast.Call) and node.keywords and _root(node.func) in ("qt", "ctk"):
        yield f"{ast.unparse(node.func)} takes no keyword arguments through PythonQt"
    if not isinstance(node, ast.Attribute):
        return
    if _is_ui(node.value) and node.attr not in objects:
        yield f"no .ui file contains {node.attr}"
    name = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
    if isinstance(node.value, ast.Attribute) and _is_ui(node.value.value) and name in objects:
        yield from _member_problems(node, name, objects[name], calls.get(id(node)))
    elif isinstance(node.value, ast.Name) and name in aliases:
        yield from _member_problems(node, aliases[name], objects[aliases[name]], calls.get(id(node)))


def _member_problems(node: ast.Attribute, name: str, class_name: str, call: ast.Call | None) -> Iterator[str]:
    subject = f"{name}, a {class_name},"
    is_property = manifest.has_property(class_name, node.attr)
    if not manifest.has_member(class_name, node.attr):
        yield f"{subject} has no {node.attr}"
    elif isinstance(node.ctx, ast.Store) and not is_property:
        yield f"{subject} has no property {node.attr} to set"
    elif call is not None and is_property:
        yield f"{node.attr} of {subject} is a property and cannot be called"
    elif call is not None and node.attr in ("connect", "disconnect") and call.args:
        signature = call.args[0]
        if isinstance(signature, ast.Constant) and not manifest.has_signal(class_name, str(signature.value)):
            yield f"{subject} has no signal {signature.value}"


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _created(tree: ast.AST, attributes: bool) -> dict[str, str]:
    """Local names, or attributes of self, that are set to a new ``qt.Class(...)``: name -> class."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and (name := _qt_class(node.value.func)):
            for target in node.targets:
                if attributes and isinstance(target, ast.Attribute) and _root(target) == "self":
                    found[target.attr] = name
                elif not attributes and isinstance(target, ast.Name):
                    found[target.id] = name
    return found


def _annotated(scope: ast.AST) -> dict[str, str]:
    """Parameters of a function that are annotated with a Qt class: name -> class."""
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {}
    annotated = [(each.arg, each.annotation) for each in scope.args.args if each.annotation is not None]
    return {name: class_name for name, annotation in annotated if (class_name := _qt_class(annotation))}


def _qt_class(node: ast.expr) -> str:
    """The class name in ``qt.Class``; empty for any other expression."""
    is_class = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qt"
    return node.attr if is_class and isinstance(node, ast.Attribute) else ""


def _qt_problems(node: ast.AST, calls: Mapping[int, ast.Call], classes: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(node, ast.Attribute):
        return
    if (name := _qt_class(node)) and not qt_members.is_known(name):
        yield f"qt.{name} is not in qt_members.json"
    elif (name := _qt_class(node.value)) and qt_members.is_known(name) and not qt_members.has_static(name, node.attr):
        yield f"qt.{name} has no {node.attr}"
    elif (name := classes.get(ast.unparse(node.value), "")) and qt_members.is_known(name):
        if not qt_members.has_member(name, node.attr):
            yield f"{ast.unparse(node.value)}, a {name}, has no {node.attr}"
        elif id(node) in calls and qt_members.is_property(name, node.attr):
            yield f"{node.attr} of {ast.unparse(node.value)}, a {name}, is a property and cannot be called"
