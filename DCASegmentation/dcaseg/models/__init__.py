"""A trained model on disk: a MONAI bundle, checked and loaded safely."""
