"""Losses: an objective is a weighted sum of terms, each a function of a forward pass."""

from submanifold.losses.forward_pass import ForwardPass
from submanifold.losses.objective import Objective, penalized_likelihood
from submanifold.losses.terms import Terms

__all__ = ["ForwardPass", "Objective", "Terms", "penalized_likelihood"]
