"""Trained model and test data -> metrics, samples, projections."""
