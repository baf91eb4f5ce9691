"""Losses: an objective as a weighted sum of terms, each a function of a forward pass."""

from submanifold.losses.objective import Objective, penalized_likelihood

__all__ = ["Objective", "penalized_likelihood"]
