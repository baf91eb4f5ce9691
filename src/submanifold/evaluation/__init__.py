"""Metrics on test data with confidence intervals, baselines, sample quality and OOD detection."""
