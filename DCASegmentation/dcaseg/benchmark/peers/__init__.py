"""Pipelines of other projects, each a program of its own that segments one CT file."""
