"""Searches: sweeps of one parameter, and Optuna studies of several."""
