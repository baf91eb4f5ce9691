"""Figures and HTML pages: each function takes data and returns a figure or a page."""
