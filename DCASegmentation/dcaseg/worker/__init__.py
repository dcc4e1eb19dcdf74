"""The worker: a process outside of Slicer that segments CTs on request."""
