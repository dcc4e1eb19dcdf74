"""Reads the module's Python for what it asks of its widgets, and compares it with the members of the real classes.

Running in the fake Slicer finds only what a test runs; this reads every line. It follows ``self.ui.name.member`` and
``name = self.ui.name`` within a function; of Qt's own classes ``qt.Class.member``, names and attributes that are set to
``qt.Class(...)``, and parameters annotated so. No further.
"""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fake_slicer import manifest, qt_members


def named_objects(ui_files: Iterable[Path]) -> dict[str, str]:
    """Object name -> class of all widgets and layouts in these .ui files."""
    trees = [ElementTree.parse(file) for file in ui_files]
    return {
        str(element.get("name")): str(element.get("class"))
        for tree in trees
        for element in tree.iter()
        if element.tag in ("widget", "layout") and element.get("name")
    }


def complaints(source: str, objects: Mapping[str, str]) -> list[str]:
    """What ``source`` asks of ``objects`` that Slicer would refuse, each with its line."""
    found = []
    tree = ast.parse(source)
    made = {f"self.{name}": kind for name, kind in _made(tree, attributes=True).items()}
    for scope in _scopes(tree):
        aliases = _aliases(scope, objects)
        kinds = {**made, **_made(scope, attributes=False), **_annotated(scope)}
        calls = {id(node.func): node for node in ast.walk(scope) if isinstance(node, ast.Call)}
        for node in ast.walk(scope):
            for problem in (*_problems(node, calls, aliases, objects), *_qt_problems(node, calls, kinds)):
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
        yield f"no .ui names {node.attr}"
    name = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
    if isinstance(node.value, ast.Attribute) and _is_ui(node.value.value) and name in objects:
        yield from _member_problems(node, name, objects[name], calls.get(id(node)))
    elif isinstance(node.value, ast.Name) and name in aliases:
        yield from _member_problems(node, aliases[name], objects[aliases[name]], calls.get(id(node)))


def _member_problems(node: ast.Attribute, name: str, class_name: str, call: ast.Call | None) -> Iterator[str]:
    where = f"{name}, a {class_name},"
    is_property = manifest.has_property(class_name, node.attr)
    if not manifest.has_member(class_name, node.attr):
        yield f"{where} has no {node.attr}"
    elif isinstance(node.ctx, ast.Store) and not is_property:
        yield f"{where} has no property {node.attr} to set"
    elif call is not None and is_property:
        yield f"{node.attr} of {where} is a property and cannot be called"
    elif call is not None and node.attr in ("connect", "disconnect") and call.args:
        signature = call.args[0]
        if isinstance(signature, ast.Constant) and not manifest.has_signal(class_name, str(signature.value)):
            yield f"{where} has no signal {signature.value}"


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _made(tree: ast.AST, attributes: bool) -> dict[str, str]:
    """Local names, or attributes of self, that are set to a new ``qt.Class(...)``: name -> class."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and (kind := _qt_class(node.value.func)):
            for target in node.targets:
                if attributes and isinstance(target, ast.Attribute) and _root(target) == "self":
                    found[target.attr] = kind
                elif not attributes and isinstance(target, ast.Name):
                    found[target.id] = kind
    return found


def _annotated(scope: ast.AST) -> dict[str, str]:
    """Parameters of a function that are annotated with a class of Qt."""
    if not isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {}
    annotated = [(each.arg, each.annotation) for each in scope.args.args if each.annotation is not None]
    return {name: kind for name, annotation in annotated if (kind := _qt_class(annotation))}


def _qt_class(node: ast.expr) -> str:
    """The class that ``qt.Class`` names."""
    is_class = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qt"
    return node.attr if is_class and isinstance(node, ast.Attribute) else ""


def _qt_problems(node: ast.AST, calls: Mapping[int, ast.Call], kinds: Mapping[str, str]) -> Iterator[str]:
    if not isinstance(node, ast.Attribute):
        return
    if (kind := _qt_class(node)) and not qt_members.is_known(kind):
        yield f"qt.{kind} is not in qt_members.json"
    elif (kind := _qt_class(node.value)) and qt_members.is_known(kind) and not qt_members.has_static(kind, node.attr):
        yield f"qt.{kind} has no {node.attr}"
    elif (kind := kinds.get(ast.unparse(node.value), "")) and qt_members.is_known(kind):
        if not qt_members.has_member(kind, node.attr):
            yield f"{ast.unparse(node.value)}, a {kind}, has no {node.attr}"
        elif id(node) in calls and qt_members.is_property(kind, node.attr):
            yield f"{node.attr} of {ast.unparse(node.value)}, a {kind}, is a property and cannot be called"
