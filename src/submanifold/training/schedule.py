"""Learning-rate schedule."""

from submanifold.training.settings import TrainingSettings


def lr_factor(step: int, settings: TrainingSettings) -> float:
    """Factor on the learning rates at a step: linear warmup, constant, linear cooldown to zero."""
    warmup = (step + 1) / settings.warmup if settings.warmup else 1.0
    cooldown = (
        (settings.steps - step) / (settings.cooldown_fraction * settings.steps)
        if settings.cooldown_fraction
        else 1.0
    )
    return settings.lr_scale * min(warmup, 1.0, cooldown)
