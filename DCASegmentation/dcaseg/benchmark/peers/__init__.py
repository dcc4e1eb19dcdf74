"""Pipelines of other projects, each a separate program that segments one CT file."""
