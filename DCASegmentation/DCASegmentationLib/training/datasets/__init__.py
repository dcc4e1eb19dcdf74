"""Lists of data made from what one downloads."""
