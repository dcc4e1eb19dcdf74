"""Segments many CTs on one machine or a cluster, with a ledger and a report. Needs the extra ``cohort``."""
