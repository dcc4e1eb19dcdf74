"""Synthesizes CTs from label maps of real or synthetic people."""
