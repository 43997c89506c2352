"""Exported layers: printed, checked against what was searched, and written in each of the formats."""
