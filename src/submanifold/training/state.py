"""State of a training that a checkpoint stores as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

Row = dict[str, float]


@dataclass
class TrainState:
    """Progress of a training, apart from tensors.

    Attributes:
        step: Number of optimizer steps done.
        train: Logged values of training, each row with its ``step``.
        valid: The same of validations.
        best_step: Step of the best validation.
        rollbacks: How often the training went back to a checkpoint, halving the learning rates.
        warnings: Messages by kind.
        seconds: Time spent in training.
        multipliers: State of :class:`.DualAscent`.
    """

    step: int = 0
    train: list[Row] = field(default_factory=list)
    valid: list[Row] = field(default_factory=list)
    best_step: int = 0
    rollbacks: int = 0
    warnings: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    multipliers: dict[str, float] = field(default_factory=dict)

    @property
    def best_row(self) -> Row | None:
        """The best validation, if there was any."""
        return next((row for row in self.valid if row["step"] == self.best_step), None)

    def history(self) -> dict[str, Any]:
        """What :func:`.fit` returns of it."""
        history = asdict(self)
        del history["step"], history["multipliers"]
        return history
