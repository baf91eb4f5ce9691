"""Hierarchies of nested manifolds, and their slices: manifolds of other dimensions."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from pydantic import PositiveInt, validate_call
from torch import Tensor, nn
from typing_extensions import Self

from submanifold.common.errors import UserError
from submanifold.models.model import Model
from submanifold.models.stage import Stage, standard_normal_log_prob

NOISE_DRAWS = 16


class Hierarchy(Model):
    r"""Stages :math:`f_1, \dots, f_M`, each acting on the manifold coordinates of the one before.

    Each stage, extended by the identity on the v's before it, is a bijection of R^D, so that

    .. math:: \log p(x) = \log N(u_M; 0, I) + \sum_m \log N(v_m; 0, \sigma_v^2 I)
              + \sum_m \log|\det J_{f_m}|

    is an exact, normalized density on R^D (method.md 2), with :math:`u_0 = x` and
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
        UserError: There is no stage, or a stage does not act on the manifold coordinates of the one
            before.

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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x and compute its log-density in one pass; see :meth:`Model.forward`.

        v starts with the last stage's off-manifold coordinates, so that (u, v) is ordered from
        coarse to fine.
        """
        on, off, log_prob = self._encode_stages(x)
        return on[-1], torch.cat(off[::-1], 1), log_prob

    def _encode_stages(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Encode x as :meth:`trace` without noise; the density is the mean over the noise."""
        on, off, log_prob = self.trace(x)
        if any(stage.noise for stage in self.stages):
            generator = torch.Generator().manual_seed(0)

            def draw(h: Tensor) -> Tensor:
                # one draw for all events, so that log p(x) does not depend on the batch
                noise = torch.randn(1, *h.shape[1:], generator=generator, dtype=h.dtype)
                return noise.to(h.device)

            drawn = torch.stack([self.trace(x, draw)[2] for _ in range(NOISE_DRAWS)])
            log_prob = drawn.logsumexp(0) - math.log(NOISE_DRAWS)
        return on, off, log_prob

    def trace(
        self, x: Tensor, draw: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Encode x stage by stage.

        Args:
            x: Events, (batch, *event_shape).
            draw: Draws standard normal noise, broadcastable to its argument, for the stages that
                act on noisy coordinates. Without it there is no noise.

        Returns:
            u_m (batch, d_m) of every stage, v_m (batch, d_{m-1} - d_m) of every stage, and log p(x)
            (batch,) in nats.
        """
        self._check_events(x)
        on, off, log_prob = [x], [], x.new_zeros(len(x))
        for stage in self.stages:
            h = on[-1] if draw is None or not stage.noise else on[-1] + stage.noise * draw(on[-1])
            u, v, log_det = stage(h)
            log_prob = log_prob + log_det + stage.off_manifold_log_prob(v)
            on.append(u)
            off.append(v)
        return on[1:], off, log_prob + standard_normal_log_prob(on[-1])

    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Map (u, v) to events; v = 0, a point on the manifold, by default (Alg. 2)."""
        self._check_coordinates(u, v)
        sizes = [stage.latent_dim - stage.dim for stage in reversed(self.stages)]
        parts = [None] * len(sizes) if v is None else v.split(sizes, 1)
        for stage, part in zip(reversed(self.stages), parts, strict=True):
            u = stage.decode(u, part)
        return u

    @property
    def eigenvalues(self) -> Tensor | None:
        """The leading eigenvalues of the last stage's rotation, (d,); None without a rotation."""
        rotation = self.stages[-1].rotation
        return None if rotation is None else rotation.eigenvalues[: self.dim]

    @property
    def manifold_stage(self) -> int:
        """Number of the last stage that changes the manifold, counted from 1.

        The stages after it are reparametrizations of its coordinates
        (:attr:`Stage.is_reparametrization`).
        """
        number = len(self.stages)
        while number > 1 and self.stages[number - 1].is_reparametrization:
            number -= 1
        return number

    @property
    def max_dim(self) -> int:
        """The largest dimension that :meth:`at_dim` accepts."""
        return self.stages[self.manifold_stage - 1].latent_dim

    def part(self, first: int = 1, last: int | None = None) -> "Hierarchy":
        """Return stages ``first`` to ``last``, counted from 1, as a hierarchy; weights are shared.

        Example:
            >>> h = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=2)])
            >>> h.part(1, 1).dims, h.part(2).dims
            ([8, 4], [4, 2])
        """
        return Hierarchy(self.stages[first - 1 : last])

    def at_dim(self, dim: int) -> Model:
        """Return a model with a manifold of another dimension and the same density.

        The first ``dim`` latents of the :attr:`manifold_stage` span the manifold. A rotation orders
        them, so that one model has a nested manifold of every dimension; with sigma_v = 1 all have
        the same density. The weights are shared.

        At its own dimension the model is returned as it is, with the coordinates of its last stage.
        A reparametrization keeps the order of coordinates only roughly: for nested-then-flow on
        CelebA, the first 100 of 500 have 1.6 times the squared error of ``at_dim(100)``.

        Args:
            dim: 1 to :attr:`max_dim`.

        Returns:
            A hierarchy, or a :class:`Slice` if the last stages are reparametrizations. It has no
            calibration, because its anomaly scores have other values.

        Raises:
            UserError: The dimension is out of range.
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
        model.notes, model.data = self.notes, self.data
        model.calibration = {"why": (
            f"The calibration is for dimension {self.dim}, not {dim}. Score with the model as it "
            f"was trained, train one with stage_{self.manifold_stage}.dim={dim}, or set "
            "model.calibration to submanifold.evaluation.calibration.calibrate(model, images, "
            "device) on validation images."
        )}  # fmt: skip
        return model.train(self.training)

    @torch.no_grad()
    def _nearest(self, x: Tensor, u: Tensor, steps: int) -> Tensor:
        # the coordinates of the manifold's own stage converge faster than reparametrized ones
        last = self.manifold_stage
        if last == len(self.stages):
            return super()._nearest(x, u, steps)
        inner = self.part(last + 1)
        return inner.encode(self.part(1, last)._nearest(x, inner.decode(u), steps))[0]

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
    hierarchy's for every d. To sample, z is decoded from the code, and others are dropped.

    Args:
        hierarchy: The hierarchy.
        dim: d, 1 to :attr:`Hierarchy.max_dim`.

    Raises:
        UserError: d is out of range.

    Example:
        >>> hierarchy = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=4)])
        >>> smaller = hierarchy.at_dim(2)
        >>> smaller.encode(torch.randn(3, 8))[0].shape, smaller.sample(5).shape
        (torch.Size([3, 2]), torch.Size([5, 8]))
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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x and compute the hierarchy's log-density; see :meth:`Model.forward`."""
        on, off, log_prob = self.hierarchy._encode_stages(x)
        index = self.hierarchy.manifold_stage - 1
        z = torch.cat([on[index], off[index]], 1)
        v = torch.cat([z[:, self.dim :], *off[:index][::-1]], 1)
        return z[:, : self.dim], v, log_prob

    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Map (u, v) to events; v = 0, a point on the manifold, by default."""
        return self._views[0].decode(u, v)

    @property
    def eigenvalues(self) -> Tensor | None:
        """See :attr:`Hierarchy.eigenvalues`."""
        return self._views[0].eigenvalues

    def code_log_prob(self, u: Tensor) -> Tensor:
        """Compute the log-density of the code u of a sample in nats, (batch,).

        Raises:
            UserError: The dimension is less than the hierarchy's. The density is then a marginal,
                which is unknown.
        """
        if self.dim < self.hierarchy.dim:
            raise UserError(
                f"dim: expected {self.hierarchy.dim} or more for the density on the manifold, got "
                f"{self.dim}, for which it is an unknown marginal."
            )
        self._check_coordinates(u)
        _, code_flow, stage = self._views
        z, rest = u[:, : self.hierarchy.dim], u[:, self.hierarchy.dim :]
        return code_flow.log_prob(z) + stage.off_manifold_log_prob(rest)

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n events on the manifold; see :meth:`Model.sample`."""
        _, code_flow, stage = self._views
        weight, code_dim = next(self.parameters()), self.hierarchy.dim
        noise = torch.randn(n, max(code_dim, self.dim), generator=generator, dtype=weight.dtype)
        noise = temperature * noise.to(weight.device)
        with torch.no_grad():
            z = code_flow.decode(noise[:, :code_dim])
            rest = stage.off_manifold_scale * noise[:, code_dim:]
            return self.decode(torch.cat([z, rest], 1)[:, : self.dim])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of :meth:`from_config`."""
        return {"dim": self.dim, **self.hierarchy.config}

    @classmethod
    @validate_call
    def from_config(cls, dim: PositiveInt, stages: list[dict[str, Any]]) -> Self:
        """Build an untrained slice from its :attr:`config`."""
        return cls(Hierarchy.from_config(stages), dim)
