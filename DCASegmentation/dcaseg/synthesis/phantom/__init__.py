"""Phantoms: synthetic people with the 15 organs of AMOS, scanned as CTs with exact labels."""
