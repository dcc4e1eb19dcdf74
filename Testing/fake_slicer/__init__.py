"""A fake Slicer for the Slicer module: a real MRML scene, and small stand-ins of Slicer's Qt side made of PySide6
widgets.

The module's files run on it unmodified. The stand-ins offer only members that the real classes have (``manifest.py``),
and behave as a running Slicer was seen to behave. What passes here is still not proven to run in Slicer. The fake
Slicer cannot prove: that the extension builds, packages all its files and is found; how Slicer's C++ widgets behave
beyond what the stand-ins imitate (the Segment Editor and its effects, the menus of node selectors, views and toolbars);
which C++ overload PythonQt chooses and who owns an object; installing packages into Slicer's Python; and the look.
"""
