"""What is measured on test data, with counts and intervals."""
