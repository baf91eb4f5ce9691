"""Train a model phase by phase."""
