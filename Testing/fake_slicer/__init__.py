"""A fake Slicer for testing the Slicer module: a real MRML scene, and stand-ins for Slicer's Qt side built on PySide6.

The module's files run on it unmodified. The stand-ins have only members that the real classes have (``manifest.py``)
and behave as observed in a running Slicer. Still, passing here does not prove that something works in Slicer. The fake
Slicer cannot test:

- that the extension builds, packages all its files, and is found;
- how Slicer's C++ widgets behave beyond what the stand-ins imitate (the Segment Editor and its effects, the menus of
  node selectors, views, and toolbars);
- which C++ overload PythonQt selects, and who owns an object;
- installing packages into Slicer's Python;
- the look.
"""
