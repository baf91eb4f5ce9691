"""Objectives in one line."""

from submanifold.losses.objective import (
    Huber,
    Likelihood,
    NoPenalty,
    Objective,
    OffManifold,
    Squared,
)


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
    options = {"weight": penalty_weight, "pixel_range": pixel_range}
    options["space"] = "latent" if outer is None else "image"
    reconstruction = {
        "none": lambda: NoPenalty(),
        "mse": lambda: Squared(**options),
        "huber": lambda: Huber(**options, delta=delta),
    }[penalty]()
    terms = {
        "likelihood": Likelihood(weight=likelihood_weight, unit=likelihood_unit),
        "reconstruction": reconstruction,
        "off_manifold": OffManifold(weight=off_manifold_penalty),
    }
    return Objective(terms, input_noise, outer)
