"""Constrained optimization: a target for the projection error, reached by dual ascent."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.settings import Settings

DUAL_LR = 0.02
LARGEST_FACTOR = 100.0
"""Largest factor by which dual ascent raises or lowers a weight."""
TOLERANCE = 0.02
"""Relative excess over a target that counts as reached (0.1 dB), as errors of batches vary."""


class Target(Settings):
    """Largest mean squared error of the projected image, epsilon of Eq. 3.

    It is measured at the model's own dimension, in any ``space`` of the penalty. One of the two:

    Attributes:
        mse: Mean squared error, of pixels on [0, 1].
        psnr: The same in dB, -10 log10(mse).
    """

    mse: float | None = Field(default=None, gt=0)
    psnr: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _is_one(self) -> "Target":
        if (self.mse is None) == (self.psnr is None):
            raise ValueError("reconstruction.target needs mse or psnr, one of them")
        return self

    @property
    def error(self) -> float:
        """The target as mean squared error."""
        return self.mse if self.mse is not None else 10 ** (-(self.psnr or 0.0) / 10)

    def excess(self, row: Mapping[str, float]) -> float:
        """Relative excess of ``image_mse`` over the target, 0 within :data:`TOLERANCE`."""
        excess = row["image_mse"] / self.error - 1
        return 0.0 if excess <= TOLERANCE else excess


class DualAscent:
    r"""The weights of terms with a target, adjusted until the target is reached.

    .. math:: \log\lambda \leftarrow \log\lambda + \eta\,(e / \epsilon - 1)

    is dual ascent on the constraint :math:`e \le \epsilon` (Eq. 3), with the mean squared error e
    of the image, :math:`\eta` = :data:`DUAL_LR` and the bracket clipped to [-1, 1].

    Args:
        terms: Terms by name; the ``weight`` of those with a ``target`` is the initial one.
    """

    def __init__(self, terms: Mapping[str, Any]):
        self.terms = {name: t for name, t in terms.items() if getattr(t, "target", None)}
        self._logs: dict[str, Tensor] = {}
        self.load_state_dict({name: math.log(t.weight) for name, t in self.terms.items()})

    def weights(self, like: Tensor) -> dict[str, Tensor]:
        """Current weight of each term, with the data type and device of ``like``."""
        self._logs = {name: log.to(like) for name, log in self._logs.items()}
        return {name: log.exp() for name, log in self._logs.items()}

    @torch.no_grad()
    def step(self, values: Mapping[str, Tensor]) -> None:
        """Adjust the weights to the ``image_mse`` of a training step, averaged over processes."""
        for name, term in self.terms.items():
            error = values["image_mse"].clone()
            distributed.average([error])
            excess = (error / term.target.error - 1).nan_to_num(nan=1.0).clamp(-1, 1)
            start, most = math.log(term.weight), math.log(LARGEST_FACTOR)
            raised = self._logs[name].to(error.device) + DUAL_LR * excess
            self._logs[name] = raised.clamp(start - most, start + most)

    def rank(self, row: Mapping[str, float]) -> tuple[float, float]:
        """Sort key of validations: excess over the targets, then the loss of the other terms.

        Terms with a target are left out of the loss, as their weights change between validations.
        """
        excess = sum(term.target.excess(row) for term in self.terms.values())
        loss = row["loss"] - sum(row[name] for name in self.terms)
        return (math.inf, math.inf) if math.isnan(excess + loss) else (excess, loss)

    def state_dict(self) -> dict[str, float]:
        """Logarithm of each weight, by term."""
        return {name: log.item() for name, log in self._logs.items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._logs = {name: torch.tensor(state[name], dtype=torch.float64) for name in self.terms}
