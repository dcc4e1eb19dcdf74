"""DICOM archives: sorting files into series, selecting a CT, and writing DICOM SEG (needs the extra ``cohort``)."""
