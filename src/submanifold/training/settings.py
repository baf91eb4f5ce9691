"""Settings of a training, and the learning-rate schedule that they define."""

from typing import Literal

from pydantic import Field

from submanifold.common.settings import Settings


class TrainingSettings(Settings):
    """How a phase is trained. The defaults are those of ``training_defaults`` in conf.

    Attributes:
        steps: Optimizer steps.
        batch_size: Events per step, over all processes and accumulation steps.
        learning_rate: Adam's peak learning rate.
        muon_lr: Muon's peak learning rate, for the matrices of coupling networks; None uses Adam
            for all weights.
        lr_scale: Factor on both learning rates.
        warmup: Steps over which the learning rates rise linearly to their peaks.
        cooldown_fraction: Fraction of the schedule, at its end, in which they fall linearly to 0.
        span: Part of the schedule that the phase covers; phases can follow each other in one.
        clip: Largest norm of the gradient; None does not clip.
        ema: Decay of the exponential moving average of the weights, which is what is kept.
        validate_every: Steps between validations, each with a checkpoint.
        validation_rows: Events of a validation, the first of the validation data.
        precision: Precision of matrix products; ``auto`` is bfloat16 where the hardware is faster
            with it.
        activation_checkpointing: Recompute hidden activations in the backward pass to save memory.
        grad_accumulation_steps: Parts in which a process computes its shard of a batch, to save
            memory.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=0.01, gt=0)
    muon_lr: float | None = Field(default=0.02, gt=0)
    lr_scale: float = Field(default=1.0, gt=0)
    warmup: int = Field(default=50, ge=0)
    cooldown_fraction: float = Field(default=0.5, ge=0, le=1)
    span: tuple[float, float] = (0.0, 1.0)
    clip: float | None = Field(default=10.0, gt=0)
    ema: float = Field(default=0.99, ge=0, lt=1)
    validate_every: int = Field(default=200, gt=0)
    validation_rows: int = Field(default=512, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    activation_checkpointing: bool = False
    grad_accumulation_steps: int = Field(default=1, gt=0)


def lr_factor(step: int, settings: TrainingSettings) -> float:
    """Factor on the learning rates at a step: linear warmup, constant, linear cooldown."""
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    start, end = settings.span
    left = 1 - (start + (end - start) * step / settings.steps)
    fall = left / settings.cooldown_fraction if settings.cooldown_fraction else 1.0
    return settings.lr_scale * min(rise, 1.0, fall)
