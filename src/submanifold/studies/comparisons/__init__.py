"""Comparisons with related systems."""
