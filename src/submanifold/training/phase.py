"""One phase of a training as a value: what it trains, by which loss, and how."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from submanifold.common.distributed import WHOLE_BATCH, Shard
from submanifold.common.errors import unexpected
from submanifold.common.settings import Settings
from submanifold.data.batches import Batches
from submanifold.flows.context import Context
from submanifold.losses import Encoding, InputNoise, Loss, draws, encode
from submanifold.models import Hierarchy, Model
from submanifold.training.checkpoint import WEIGHTS, Identity, hash_weights

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class TrainingSettings(Settings):
    """How a phase is trained.

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
        patience: Validations without a better one after which the training stops; None never stops.
        validation_rows: Events of a validation, the first of the validation data.
        precision: Precision of matrix products; ``auto`` is bfloat16 where the hardware is faster
            with it.
        seconds: Longest duration: on a machine that is slower than expected, the steps that are
            left are reduced. A time budget sets it.
        grad_accumulation_steps: Parts in which a process computes its shard of a batch, to save
            memory.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(default=32, gt=0, le=1_000_000)
    learning_rate: float = Field(default=0.01, gt=0)
    muon_lr: float | None = Field(default=0.02, gt=0)
    lr_scale: float = Field(default=1.0, gt=0)
    warmup: int = Field(default=50, ge=0)
    cooldown_fraction: float = Field(default=0.8, ge=0, le=1)
    span: tuple[Fraction, Fraction] = (0.0, 1.0)
    clip: float | None = Field(default=10.0, gt=0)
    ema: float = Field(default=0.99, ge=0, lt=1)
    validate_every: int = Field(default=200, gt=0)
    patience: int | None = Field(default=None, gt=0)
    validation_rows: int = Field(default=512, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seconds: float | None = Field(default=None, gt=0)
    grad_accumulation_steps: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _check_span(self) -> Self:
        start, end = self.span
        if start >= end:
            raise unexpected("span", "a start below the end", list(self.span))
        return self

    def lr_factor(self, step: int, steps: int | None = None) -> float:
        """Factor on the learning rates at a step: linear warmup, constant, linear cooldown.

        ``steps`` are those of the schedule, if they were reduced.
        """
        rise = (step + 1) / self.warmup if self.warmup else 1.0
        start, end = self.span
        left = 1 - (start + (end - start) * step / (steps or self.steps))
        fall = left / self.cooldown_fraction if self.cooldown_fraction else 1.0
        return self.lr_scale * min(rise, 1.0, fall)


@dataclass(frozen=True)
class Phase:
    """A training: the stages that it trains, the frozen ones before them, its loss and settings.

    Attributes:
        model: The stages in training, a hierarchy or a mixture.
        loss: A function of an :class:`.Encoding` that returns named tensors, with the ``loss`` that
            is minimized; a :class:`.Loss`, or any other.
        settings: How they are trained.
        outer: The frozen stages before them, whose coordinates u are the events.
        noise: Noise on the events, of which the density is.
        fresh: Modules that the first batch initializes; None is the model.
    """

    model: Model
    loss: Callable[[Encoding], dict[str, Tensor]]
    settings: TrainingSettings
    outer: Hierarchy | None = None
    noise: InputNoise = InputNoise()  # noqa: RUF009  immutable
    fresh: Sequence[nn.Module] | None = None

    @property
    def is_continued(self) -> bool:
        """Whether all weights come from earlier phases."""
        return self.fresh is not None and not self.fresh

    def evaluate(
        self,
        x: Tensor,
        context: Context | None = None,
        generator: torch.Generator | None = None,
        shard: Shard = WHOLE_BATCH,
    ) -> dict[str, Tensor]:
        """Encode events x, a shard of a batch, and compute the loss (Alg. 1, lines 4 to 6)."""
        # validations report the projection
        alone = torch.is_grad_enabled() and getattr(self.loss, "is_density_alone", False)
        draw = draws(x, generator, shard)
        return self.loss(encode(self.model, x, draw, self.noise, self.outer, context, alone))

    def identity(self, train: Batches) -> Identity:
        """What the result depends on: the weights it starts from, the data and the settings."""
        loss: Any = getattr(self.loss, "__qualname__", type(self.loss).__name__)
        if isinstance(self.loss, Loss):
            loss = {name: term.model_dump(mode="json") for name, term in self.loss.terms.items()}
        # accumulation changes only rounding
        settings = self.settings.model_dump(mode="json", exclude={"grad_accumulation_steps"})
        weights = hash_weights([self.model, self.outer], self.fresh or ())
        return {
            **train.identity,
            WEIGHTS: weights,
            "dim": self.model.dim,
            "loss": loss,
            "input_noise": self.noise.scale,
            "input_noise_min": self.noise.smallest,
            **settings,
        }
