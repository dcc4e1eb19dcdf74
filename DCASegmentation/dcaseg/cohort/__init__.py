"""Many CTs on one machine or a cluster: found, segmented, accounted for, reported. Needs the extra ``cohort``."""
