"""The tables, figures and findings of Razavi et al. 2022."""
