"""CT synthesized from label maps."""
