"""Source -> arrays on disk."""
