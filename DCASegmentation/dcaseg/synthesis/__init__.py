"""Synthetic CTs: phantoms of synthetic people, and CTs rendered from label maps."""
