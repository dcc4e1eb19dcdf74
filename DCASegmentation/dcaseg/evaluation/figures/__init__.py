"""The figures of the paper and further plots, drawn with matplotlib."""
