"""All that knows Slicer: segmentation of nodes, the scene, the panel."""
