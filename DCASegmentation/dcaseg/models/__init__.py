"""Trained models as MONAI bundles: metadata, weights, installed models, download."""
