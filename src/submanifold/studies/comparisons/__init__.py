"""Comparisons with related systems, measured here or read from the CSV files in docs/."""
