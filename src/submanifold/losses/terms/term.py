"""Base class of the terms of a loss."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from submanifold.common.settings import Settings
from submanifold.losses.forward_pass import ForwardPass


class Term(Settings, ABC):
    """One term of a loss: its settings, and its value for a forward pass.

    To add a term, define a subclass and register it as a field of :class:`.Terms`.

    Attributes:
        weight: Factor of the term; 0 omits it.
        about_volume: Whether the term depends on the metric J^T J of one chart.
    """

    about_volume: ClassVar[bool] = False

    weight: float = Field(default=0.0, ge=0)

    @abstractmethod
    def __call__(self, batch: ForwardPass) -> Tensor:
        """Value before the weight, a mean over the batch."""
