"""What this program costs, measured beside other programs on the same CT."""
