"""Metrics, tables, figures and experiments of the paper, and further measurements of models."""
