"""Reads the module's Python for what it asks of its widgets, and compares it with the members of the real classes.

Running on the bench finds only what a test runs; this reads every line. It follows ``self.ui.name.member`` and
``name = self.ui.name`` within a function, no further.
"""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bench import manifest


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
    for scope in _scopes(ast.parse(source)):
        aliases = _aliases(scope, objects)
        calls = {id(node.func): node for node in ast.walk(scope) if isinstance(node, ast.Call)}
        for node in ast.walk(scope):
            for problem in _problems(node, calls, aliases, objects):
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
