"""Images and vectors to learn from: sources, preparation, dequantization."""
