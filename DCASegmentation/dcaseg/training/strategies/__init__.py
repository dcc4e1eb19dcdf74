"""Ways to learn from labelled and unlabelled patches, each a file behind the interface of ``strategy``."""
