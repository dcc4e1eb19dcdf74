"""A bench for the Slicer module: a real MRML scene, and small stand-ins of Slicer's Qt side made of PySide6 widgets.

What passes here is not thereby proven to run in Slicer: the stand-ins are ours. They offer only members that the real
classes have (``manifest.py``), and behave as a running Slicer was seen to behave.
"""
