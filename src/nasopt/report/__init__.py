"""The report: a finished job's record as one HTML file that opens offline."""
