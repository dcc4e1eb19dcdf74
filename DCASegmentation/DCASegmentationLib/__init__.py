"""The Slicer side of the extension: segmentation of MRML nodes, the scene, and the panel."""
