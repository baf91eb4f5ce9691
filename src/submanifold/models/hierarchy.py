"""Hierarchies of nested manifolds, and their slices: manifolds of other dimensions."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from pydantic import PositiveInt, validate_call
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows.bijection import Context
from submanifold.geometry.nearest import Nearest
from submanifold.models.model import Model
from submanifold.models.stage import Stage, standard_normal_log_prob

NOISE_DRAWS = 16


class Hierarchy(Model):
    r"""Stages :math:`f_1, \dots, f_M`, each acting on the manifold coordinates of the one before.

    Each stage, extended by the identity on the v's before it, is a bijection of R^D, so that

    .. math:: \log p(x) = \log N(u_M; 0, I) + \sum_m \log N(v_m; 0, \sigma_v^2 I)
              + \sum_m \log|\det J_{f_m}|

    is an exact, normalized density on R^D (:ref:`theory-2`), with :math:`u_0 = x` and
    :math:`(u_m, v_m) = f_m(u_{m-1})`. If a stage is an injection, the density is on the manifold
    only, and the same sum is that density at the projection of x.

    If a stage k acts on noisy coordinates :math:`u_{k-1} + \sigma \epsilon`, the density is the
    mean over the noise :math:`\epsilon \sim N(0, I)`, as in noisy injective flows (Cunningham et
    al. 2020). It is estimated with :data:`NOISE_DRAWS` draws, the same for all events and calls.
    For given draws the estimate is the log of a normalized density; its expectation is a lower
    bound of log p(x), which is looser in higher dimensions (0.63 nats at D = 3,072, d = 500).

    Args:
        stages: The stages, outermost first.

    Raises:
        UserError: A stage does not act on the manifold coordinates of the one before.

    Example:
        >>> h = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=2)])
        >>> u, v = h.encode(torch.randn(3, 8))
        >>> u.shape, v.shape, h.decode(u).shape
        (torch.Size([3, 2]), torch.Size([3, 6]), torch.Size([3, 8]))
    """

    kind = "hierarchy"

    def __init__(self, stages: Sequence[Stage]):
        if not stages:
            raise UserError("stages: expected at least one, got none.")
        for number, (outer, inner) in enumerate(pairwise(stages), start=2):
            if inner.event_shape != (outer.dim,):
                raise UserError(
                    f"stages: expected stage {number} to act on events of shape ({outer.dim},), "
                    f"the coordinates of stage {number - 1}, got {inner.event_shape}."
                )
        dim, event_dim = stages[-1].dim, stages[0].event_dim
        super().__init__(
            stages[0].event_shape,
            dim,
            dims=[event_dim, *(stage.dim for stage in stages)],
            code_dims=(dim, sum(stage.latent_dim - stage.dim for stage in stages)),
            has_density=all(stage.has_density for stage in stages),
        )
        self.stages: Sequence[Stage] = nn.ModuleList(stages)  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Model.forward`; v starts with the last stage's coordinates, the coarsest."""
        on, off, log_prob = self._encode_stages(x, context)
        return on[-1], torch.cat(off[::-1], 1), log_prob

    def _encode_stages(
        self, x: Tensor, context: Context
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Like :meth:`trace` without noise, but with the density as a mean over the noise."""
        on, off, log_prob = self.trace(x, context=context)
        if any(stage.noise for stage in self.stages):
            generator = torch.Generator().manual_seed(0)

            def draw(h: Tensor) -> Tensor:
                # one draw for all events, so that log p(x) does not depend on the batch
                noise = torch.randn(1, *h.shape[1:], generator=generator, dtype=h.dtype)
                return noise.to(h.device)

            drawn = torch.stack([self.trace(x, draw, context)[2] for _ in range(NOISE_DRAWS)])
            log_prob = drawn.logsumexp(0) - math.log(NOISE_DRAWS)
        return on, off, log_prob

    def trace(
        self, x: Tensor, draw: Callable[[Tensor], Tensor] | None = None, context: Context = None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Encode x stage by stage.

        Args:
            x: Events, (batch, *event_shape).
            draw: Draws standard normal noise, broadcastable to its argument, for stages with noise;
                None for no noise.
            context: See :class:`Model`.

        Returns:
            u_m (batch, d_m) and v_m (batch, d_{m-1} - d_m) of every stage, and log p(x) (batch,) in
            nats.
        """
        self._check_events(x)
        on, off, log_prob = [x], [], x.new_zeros(len(x))
        for stage in self.stages:
            h = on[-1] if draw is None or not stage.noise else on[-1] + stage.noise * draw(on[-1])
            u, v, log_det = stage(h, context)
            log_prob = log_prob + log_det + stage.off_manifold_log_prob(v)
            on.append(u)
            off.append(v)
        return on[1:], off, log_prob + standard_normal_log_prob(on[-1])

    def _decode(self, u: Tensor, v: Tensor | None, context: Context) -> Tensor:
        self._check_coordinates(u, v)
        sizes = [stage.latent_dim - stage.dim for stage in reversed(self.stages)]
        parts = [None] * len(sizes) if v is None else v.split(sizes, 1)
        for stage, part in zip(reversed(self.stages), parts, strict=True):
            u = stage.decode(u, part, context)
        return u

    def _nearest(self, x: Tensor, exact: bool, context: Context) -> Nearest:
        last = self.manifold_stage
        if last == len(self.stages):
            return super()._nearest(x, exact, context)
        # the search converges faster without the reparametrizations
        u, image = self.part(1, last)._nearest(x, exact, context)
        return Nearest(self.part(last + 1)._coordinates_of(u, context), image)

    def _coordinates_of(self, x: Tensor, context: Context) -> Tensor:
        self._check_events(x)
        for stage in self.stages:
            x = stage.coordinates(x, context)
        return x

    @property
    def eigenvalues(self) -> Tensor | None:
        """Eigenvalues of the last stage's rotation, (d,); None without a rotation."""
        rotation = self.stages[-1].rotation
        return None if rotation is None else rotation.eigenvalues[: self.dim]

    @property
    def off_manifold_scales(self) -> Tensor:
        """Standard deviations sigma_v of the coordinates v of :meth:`forward`."""
        scales = [torch.full((stage.latent_dim - stage.dim,), stage.off_manifold_scale)
                  for stage in reversed(self.stages)]  # fmt: skip
        return torch.cat(scales).to(next(self.parameters()))

    @property
    def manifold_stage(self) -> int:
        """Number of the last stage that is not a reparametrization of the manifold, from 1."""
        number = len(self.stages)
        while number > 1 and self.stages[number - 1].is_reparametrization:
            number -= 1
        return number

    @property
    def max_dim(self) -> int:
        """The largest dimension that :meth:`at_dim` accepts."""
        return self.stages[self.manifold_stage - 1].latent_dim

    def part(self, first: int = 1, last: int | None = None) -> "Hierarchy":
        """Return stages ``first`` to ``last``, from 1, as a hierarchy that shares their weights."""
        return Hierarchy(self.stages[first - 1 : last])

    def at_dim(self, dim: int) -> Model:
        """Return a model with a manifold of another dimension and the same density.

        The first ``dim`` latents of the :attr:`manifold_stage` span the manifold, in the order of
        its rotation. The weights are shared; the density is the same if sigma_v = 1. At its own
        dimension the model is returned as it is.

        Args:
            dim: 1 to :attr:`max_dim`.

        Returns:
            A hierarchy, or a :class:`Slice` if the last stages are reparametrizations, without a
            calibration, because its anomaly scores have other values.
        """
        if dim == self.dim:
            return self
        model: Model
        if self.manifold_stage < len(self.stages):
            model = Slice(self, dim)
        else:
            *outer, last = self.stages
            inner = Stage(last.flows, dim, last.off_manifold_scale, last.noise)
            model = Hierarchy([*outer, inner])
        model.notes, model.data, model.gaussian = self.notes, self.data, self.gaussian
        scale = self.calibration.get("noise_scale")  # the density at it is the same
        model.calibration = {"noise_scale": scale, "why": (
            f"The calibration is for dimension {self.dim}, not {dim}. Score with the model as it "
            f"was trained, train one with stage_{self.manifold_stage}.dim={dim}, or set "
            "model.calibration to submanifold.evaluation.calibration.calibrate(model, events, "
            "device) on validation images."
        )}  # fmt: skip
        return model.train(self.training)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of :meth:`from_config`."""
        return {"stages": [stage.config for stage in self.stages]}

    @classmethod
    @validate_call
    def from_config(cls, stages: list[dict[str, Any]]) -> Self:
        """Build an untrained hierarchy from its :attr:`config`."""
        return cls([Stage.from_config(**stage) for stage in stages])


class Slice(Model):
    r"""A manifold of another dimension in a hierarchy that ends with reparametrizations.

    The stages up to :attr:`Hierarchy.manifold_stage` map x to latents z, whose first k the later
    stages map to a standard normal code. The coordinates of the slice are the first d latents, in
    the order of the rotation; they differ from the first d of the code. The density on R^D is the
    hierarchy's for every d.

    Args:
        hierarchy: The hierarchy.
        dim: d, 1 to :attr:`Hierarchy.max_dim`.

    Example:
        >>> hierarchy = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=4)])
        >>> hierarchy.at_dim(2).encode(torch.randn(3, 8))[0].shape
        torch.Size([3, 2])
    """

    kind = "slice"

    def __init__(self, hierarchy: Hierarchy, dim: int):
        number = hierarchy.manifold_stage
        *outer, last = hierarchy.stages[:number]
        manifold = Hierarchy([*outer, Stage(last.flows, dim, last.off_manifold_scale)])
        super().__init__(
            hierarchy.event_shape,
            dim,
            code_dims=manifold.code_dims,
            has_density=hierarchy.has_density,
        )
        self.hierarchy = hierarchy
        # tuples are not registered as submodules: the weights are those of the hierarchy
        self._views = manifold, hierarchy.part(number + 1), last

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Model.forward`."""
        on, off, log_prob = self.hierarchy._encode_stages(x, context)
        index = self.hierarchy.manifold_stage - 1
        z = torch.cat([on[index], off[index]], 1)
        v = torch.cat([z[:, self.dim :], *off[:index][::-1]], 1)
        return z[:, : self.dim], v, log_prob

    def _decode(self, u: Tensor, v: Tensor | None, context: Context) -> Tensor:
        return self._views[0]._decode(u, v, context)

    def _nearest(self, x: Tensor, exact: bool, context: Context) -> Nearest:
        return self._views[0]._nearest(x, exact, context)  # without the code of the hierarchy

    @property
    def eigenvalues(self) -> Tensor | None:
        """See :attr:`Hierarchy.eigenvalues`."""
        return self._views[0].eigenvalues

    def code_log_prob(self, u: Tensor, context: Context = None) -> Tensor:
        """See :meth:`Model.code_log_prob`; known only for dimensions from the hierarchy's on."""
        if self.dim < self.hierarchy.dim:
            raise UserError(
                f"dim: expected {self.hierarchy.dim} or more for the density on the manifold, got "
                f"{self.dim}, for which it is an unknown marginal."
            )
        self._check_coordinates(u)
        _, code_flow, stage = self._views
        z, rest = u[:, : self.hierarchy.dim], u[:, self.hierarchy.dim :]
        return code_flow.log_prob(z, context) + stage.off_manifold_log_prob(rest)

    def _draw_codes(
        self, n: int, temperature: float, generator: torch.Generator | None, context: Context
    ) -> Tensor:
        _, code_flow, stage = self._views
        weight, code_dim = next(self.parameters()), self.hierarchy.dim
        noise = torch.randn(n, max(code_dim, self.dim), generator=generator, dtype=weight.dtype)
        noise = temperature * noise.to(weight.device)
        z = code_flow.decode(noise[:, :code_dim], context=context)
        rest = stage.off_manifold_scale * noise[:, code_dim:]
        return torch.cat([z, rest], 1)[:, : self.dim]

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of :meth:`from_config`."""
        return {"dim": self.dim, **self.hierarchy.config}

    @classmethod
    @validate_call
    def from_config(cls, dim: PositiveInt, stages: list[dict[str, Any]]) -> Self:
        """Build an untrained slice from its :attr:`config`."""
        return cls(Hierarchy.from_config(stages), dim)
