"""Many experiments at once: the paper's tables and figures, comparisons, and parameter searches."""
