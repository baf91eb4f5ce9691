"""Metrics table, figures, and an HTML report of a model."""
