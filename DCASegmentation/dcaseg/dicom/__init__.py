"""DICOM archives: sorting what lies in a tree, reading a series, writing DICOM SEG (needs the extra ``cohort``)."""
