"""Alg. 1's loss in one line."""

from submanifold.losses import Objective, Terms


def penalised(
    penalty="mse",
    penalty_weight=1.0,
    delta=1.0,
    likelihood_weight=1.0,
    likelihood_unit="bits_per_dim",
    pixel_range=1.0,
    input_noise=0.0,
    off_manifold_penalty=0.0,
    outer=None,
):
    """Alg. 1's loss; with outer stages the penalty compares images."""
    space = "latent" if outer is None else "image"
    settings = {"weight": penalty_weight, "pixel_range": pixel_range, "space": space}
    settings |= {"delta": delta} if penalty == "huber" else {}
    terms = Terms(
        likelihood={"weight": likelihood_weight, "unit": likelihood_unit},
        reconstruction={"penalty": penalty, **(settings if penalty != "none" else {})},
        off_manifold={"weight": off_manifold_penalty},
    )
    return Objective(terms.terms, input_noise, outer)
