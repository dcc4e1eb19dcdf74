"""DICOM archives: sorting what lies in a tree, reading a series, writing DICOM SEG. Needs the extra ``cohort``."""
