"""Kedro pipelines: thin nodes, all wiring in pipeline.py and the catalog."""
