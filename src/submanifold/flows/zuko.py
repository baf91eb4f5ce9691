"""Flows of vectors from the library zuko (https://zuko.readthedocs.io)."""

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from submanifold.common.errors import UserError, import_extra, unexpected
from submanifold.flows.bijection import Flow, full_precision
from submanifold.flows.conditional import values_of
from submanifold.flows.context import Context

MAX_ENTRIES = 2**30
"""Upper bound for the numbers in masks and weights, so that a model file cannot exhaust memory."""


class Zuko(Flow):
    r"""A flow of zuko by the name of its class in :mod:`zuko.flows`.

    ``NSF`` is a neural spline flow (Durkan et al. 2019), ``MAF`` a masked autoregressive flow
    (Papamakarios et al. 2017), and ``NICE`` consists of affine couplings (Dinh et al. 2017).

    Splines are the identity outside of [-5, 5], so standardize the data. The inverse takes one pass
    for each coordinate; with ``passes=2``, and for ``NICE``, two. Other classes are left out: their
    inverses do not exist for all latents, or have no formula.

    Args:
        dim: Number of coordinates.
        name: Name of the class.
        transforms: Number of transforms; None is zuko's default, 3.
        hidden: Width of the two hidden layers of each network; None is zuko's default, 64.
        passes: Number of groups of coordinates that an autoregressive transform takes one after the
            other; 2 makes it a coupling, None is ``dim``.
        bins: Number of bins of the splines of ``NSF``; None is zuko's default, 8.

    An argument that the class does not have, or a flow that is too large, raises a UserError.

    Example:
        >>> flow = Zuko(5, "NSF", transforms=2, passes=2)
        >>> z, log_det = flow(torch.randn(3, 5))
        >>> z.shape, log_det.shape
        (torch.Size([3, 5]), torch.Size([3]))
    """

    axes = (1,)

    def __init__(
        self,
        dim: int,
        name: Literal["NSF", "MAF", "NICE"] = "NSF",
        transforms: PositiveInt | None = None,
        hidden: PositiveInt | None = None,
        passes: PositiveInt | None = None,
        bins: PositiveInt | None = None,
    ):
        super().__init__()
        self.event_shape = (dim,)
        entries = (transforms or 3) * (dim + (hidden or 64)) ** 2 * 3 * (bins or 8)
        if entries > MAX_ENTRIES:
            expected = f"a flow of at most {MAX_ENTRIES:,} weights"
            fix = "Decrease transforms, hidden or bins, or use another flow, such as realnvp"
            raise unexpected("dim", expected, f"{entries:,}", fix)
        self.transform = _build(**self.arguments)

    def add_context(self, size: int) -> None:
        self.transform = _build(**self.arguments, context=size)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        if not x.shape[0]:  # which torch.distributions cannot sum over
            return x, x.sum(1)
        with full_precision(x):
            return self._transform(x, context).call_and_ladj(x)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        if not z.shape[0]:
            return z
        with full_precision(z):
            return self._transform(z, context).inv(z)

    def _transform(self, x: Tensor, context: Context | None) -> Any:
        return self.transform(values_of(context, x) if hasattr(self, "embedding") else None)


def _build(name: str, dim: int, context: int = 0, **settings: int | None) -> Any:
    zuko = import_extra("zuko", "zuko")
    device = torch.empty(0).device
    chosen: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    for key, is_idle in {"passes": name == "NICE", "bins": name != "NSF"}.items():
        if is_idle and key in chosen:
            raise UserError(f"{key}: expected null with name={name}, got {chosen[key]}. Omit it.")
    if chosen.get("passes") == 1 and dim > 1:
        raise UserError("passes: expected at least 2, got 1. Set passes=2, or omit it.")
    if "hidden" in chosen:
        chosen["hidden_features"] = (chosen.pop("hidden"),) * 2
    # the masks depend on the values of tensors, which those of the meta device do not have
    with torch.device("cpu"):
        return getattr(zuko.flows, name)(dim, context, **chosen).transform.to(device)
