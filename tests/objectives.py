"""Alg. 1's loss in one line."""

from submanifold.losses import penalized_likelihood


def penalised(penalty="mse", penalty_weight=1.0, input_noise=0.0, outer=None, **settings):
    settings |= {} if penalty == "none" else {"weight": penalty_weight}
    return penalized_likelihood(penalty, input_noise, outer, **settings)
