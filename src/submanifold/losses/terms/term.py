"""Base class of the terms of a loss."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from submanifold.common.settings import Settings
from submanifold.losses.forward_pass import ForwardPass


class Term(Settings, ABC):
    """One term of a loss: its settings, among them ``weight``, and its value for a forward pass.

    To add a term, define a subclass and register it as a field of :class:`.Terms`.
    """

    about_volume: ClassVar[bool] = False
    """Whether it depends on the metric J^T J of one chart."""

    if TYPE_CHECKING:
        weight: float = 0.0

    @abstractmethod
    def __call__(self, batch: ForwardPass) -> Tensor:
        """Value before the weight, a mean over the batch."""
