"""The worker: a process that segments CTs on request, outside of Slicer."""
