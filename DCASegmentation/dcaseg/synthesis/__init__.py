"""Synthetic CT."""
