"""The report of a cohort: one HTML file without outside links."""
