"""DCA for abdominal CT: the method, its training and evaluation, and the parts behind the Slicer module."""

__version__ = "0.1.0"
