"""Differential geometry of a decoder: Jacobian products, volume, nearest projections."""
