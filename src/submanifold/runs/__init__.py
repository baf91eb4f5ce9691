"""Runs: Kedro hooks, MLflow, catalog datasets, and launching several processes."""
