"""Training methods for labeled and unlabeled patches. Each is a subclass of ``base.Strategy`` in its own file."""
