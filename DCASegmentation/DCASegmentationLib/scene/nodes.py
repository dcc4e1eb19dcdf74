"""MRML nodes of any kind: created without appearing in selectors, found, removed, and positions under transforms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import slicer
import vtk

Point = tuple[float, float, float]


def add_node(class_name: str, name: str, hidden: bool) -> Any:
    """Add a node with a unique name; a ``hidden`` one is hidden before it is added, so that no selector lists it."""
    node = _create(class_name)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    node.SetHideFromEditors(hidden)
    return slicer.mrmlScene.AddNode(node)


def get_singleton_node(class_name: str, tag: str) -> Any | None:
    """The node of this class that :func:`add_singleton_node` added to the scene; None if there is none."""
    return slicer.mrmlScene.GetSingletonNode(tag, class_name)


def add_singleton_node(class_name: str, tag: str, name: str = "", hidden: bool = False, saved: bool = False) -> Any:
    """Add the only node of this class with the singleton ``tag``, which Slicer keeps when the scene is closed.

    A ``hidden`` node is not listed by selectors. It is saved with the scene only if ``saved``.
    """
    node = _create(class_name)
    node.SetSingletonTag(tag)
    if name:
        node.SetName(name)
    node.SetHideFromEditors(hidden)
    node.SetSaveWithScene(saved)
    return slicer.mrmlScene.AddNode(node)


def _create(class_name: str) -> Any:
    node = slicer.mrmlScene.CreateNodeByClass(class_name)
    # CreateNodeByClass returns a reference that its caller owns.
    node.UnRegister(None)
    return node


def remove_nodes(nodes: Iterable[Any]) -> None:
    """Remove volumes and their display nodes, including legends, from the scene."""
    for node in nodes:
        displays = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
        for each in [node, *displays]:
            # Slicer may have removed the display nodes along with their node.
            if each is not None and slicer.mrmlScene.IsNodePresent(each):
                slicer.mrmlScene.RemoveNode(each)


@contextmanager
def removed_on_error() -> Iterator[list[Any]]:
    """Yields a list; an error within the context removes the nodes that were put into it, as :func:`remove_nodes`."""
    added: list[Any] = []
    try:
        yield added
    except Exception:
        remove_nodes(added)
        raise


def to_world(node: Any, point: Point) -> Point:
    """The position in the world of a ``point`` given in the node's own space (both RAS, mm)."""
    return _transform_point(point, node.GetParentTransformNode(), None)


def from_world(node: Any, point: Point) -> Point:
    """The position in the node's own space, before its transforms, of a ``point`` in the world (both RAS, mm)."""
    return _transform_point(point, None, node.GetParentTransformNode())


def _transform_point(point: Point, source: Any | None, target: Any | None) -> Point:
    if source is None and target is None:
        return point
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    right, anterior, superior = transform.TransformPoint(*point)
    return right, anterior, superior
