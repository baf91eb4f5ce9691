"""Training: one loop, checkpoints that resume bit for bit."""
