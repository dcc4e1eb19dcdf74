"""Measures the cost of this program in comparison with other programs on the same CT."""
