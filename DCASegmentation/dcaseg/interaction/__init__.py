"""Correction with clicks: points that belong to an organ or do not, and what the label map becomes.

``session.CorrectionSession`` is the entry: it holds a CT and its labels, takes strokes, and undoes them exactly.
``random_walker`` and ``network`` are the two engines behind it. ``request`` is the same as one call with plain data."""
