"""Hierarchies of nested manifolds, and views of them at other dimensions."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from submanifold.common.errors import unexpected
from submanifold.flows.context import Context
from submanifold.geometry.nearest import Nearest
from submanifold.models.defensive import DefensiveComponent, build_component
from submanifold.models.model import Model
from submanifold.models.stage import Stage, check_dim, standard_normal_log_prob

NOISE_DRAWS = 16


class Hierarchy(Model):
    r"""Stages :math:`f_1, \dots, f_M`, each acting on the manifold coordinates of the one before.

    Each stage, extended by the identity on the v's before it, is a bijection of R^D, so that

    .. math:: \log p(x) = \log N(u_M; 0, I) + \sum_m \log N(v_m; 0, \sigma_v^2 I)
              + \sum_m \log|\det J_{f_m}|

    is an exact, normalized density on R^D (:ref:`theory-2`), with :math:`u_0 = x` and
    :math:`(u_m, v_m) = f_m(u_{m-1})`. If a stage is an injection, the density is on the manifold
    only, and the same sum is that density at the projection of x.

    If a stage acts on noisy coordinates :math:`u_{k-1} + \sigma \epsilon`, the density is the mean
    over the noise :math:`\epsilon \sim N(0, I)`, as in noisy injective flows (Cunningham et al.
    2020). It is estimated with :data:`NOISE_DRAWS` draws, the same for all events and calls. For
    these draws the estimate is the log of a normalized density; its expectation is a lower bound of
    log p(x), which is looser in higher dimensions (0.63 nats at D = 3,072, d = 500).

    The manifold may have another dimension than that of the last stage (:meth:`at_dim`). Its
    coordinates are then the first ``view_dim`` latents of the last stage that was trained to
    order more of them; if there is none, of the :attr:`manifold_stage`, in the rotation's order.

    Args:
        stages: The stages, outermost first; stage_n of the settings is ``stages[n - 1]``.
        view_dim: Dimension of the manifold, 1 to :attr:`max_dim`; None is that of the last stage.
        defensive: Second component of the density, see :class:`.DefensiveComponent`.

    Example:
        >>> h = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=2)])
        >>> u, v = h.encode(torch.randn(3, 8))
        >>> u.shape, v.shape, h.decode(u).shape
        (torch.Size([3, 2]), torch.Size([3, 6]), torch.Size([3, 8]))
    """

    kind, parts = "hierarchy", {"stages": Stage, "defensive": build_component}

    def __init__(
        self,
        stages: Sequence[Stage],
        view_dim: int | None = None,
        defensive: DefensiveComponent | None = None,
    ):
        for number, (outer, inner) in enumerate(pairwise(stages), start=2):
            if inner.event_shape != (outer.dim,):
                shape = f"({outer.dim},), the coordinates of stage {number - 1}"
                expected = f"stage {number} to act on events of shape {shape}"
                raise unexpected("stages", expected, inner.event_shape)
        has_density = all(stage.has_density for stage in stages)
        super().__init__(stages[0].event_shape, stages[-1].dim, has_density, defensive)
        self.stages: Sequence[Stage] = nn.ModuleList(stages)  # type: ignore[assignment]
        self.view_dim, number = view_dim, len(stages)
        if view_dim is not None:
            check_dim(view_dim, self.max_dim)
            self.dim, number = view_dim, self._stages_of(view_dim)
        # the latents of the last of the first are the coordinates; the second act on the code
        self._cut = [*stages[:number]], [*stages[number:]]

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Model.forward`; v starts with the last stage's coordinates, the coarsest."""
        on, off, log_prob = self.trace(x, context=context)
        if any(stage.noise for stage in self.stages):
            generator = torch.Generator().manual_seed(0)

            def draw(h: Tensor) -> Tensor:
                # one draw for all events, so that log p(x) does not depend on the batch
                noise = torch.randn(1, *h.shape[1:], generator=generator, dtype=h.dtype)
                return noise.to(h.device)

            drawn = torch.stack([self.trace(x, draw, context)[2] for _ in range(NOISE_DRAWS)])
            log_prob = drawn.logsumexp(0) - math.log(NOISE_DRAWS)
        last = len(self._cut[0]) - 1
        z = torch.cat([on[last], off[last]], 1)
        v = torch.cat([z[:, self.dim :], *off[:last][::-1]], 1)
        return z[:, : self.dim], v, log_prob

    def trace(
        self,
        x: Tensor,
        draw: Callable[[Tensor], Tensor] | None = None,
        context: Context | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Compute u_m (batch, d_m) and v_m (batch, d_{m-1} - d_m) of every stage, and log p(x).

        ``draw`` returns standard normal noise, broadcastable to its argument, for stages with
        noise; without it there is none.
        """
        self._check(x=x)
        on, off, log_prob = [x], [], x.new_zeros(x.shape[0])
        for stage in self.stages:
            h = on[-1] if draw is None or not stage.noise else on[-1] + stage.noise * draw(on[-1])
            u, v, log_det = stage(h, context)
            log_prob = log_prob + log_det + stage.off_manifold_log_prob(v)
            on.append(u)
            off.append(v)
        return on[1:], off, log_prob + standard_normal_log_prob(on[-1])

    def _decode(self, u: Tensor, v: Tensor | None = None, context: Context | None = None) -> Tensor:
        self._check(u=u, v=v)
        sizes = self._off_dims
        rests = [None] * len(sizes) if v is None else v.split(sizes, 1)
        for stage, rest in zip(reversed(self._cut[0]), rests, strict=True):
            u = stage.decode(u, rest, context)
        return u

    def _project(self, x: Tensor, nearest: bool, context: Context | None) -> Nearest:
        number = self.manifold_stage
        if self.view_dim is not None or number == len(self.stages):
            return super()._project(x, nearest, context)
        # the search converges faster without the reparametrizations
        u, image = Hierarchy(self.stages[:number])._project(x, nearest, context)
        return Nearest(Hierarchy(self.stages[number:])._coordinates_of(u, context), image)

    def _coordinates_of(self, x: Tensor, context: Context | None) -> Tensor:
        self._check(x=x)
        *outer, last = self._cut[0]
        for stage in outer:
            x = stage.coordinates(x, stage.dim, context)
        return last.coordinates(x, self.dim, context)

    @property
    def dims(self) -> list[int]:
        """Dimensions from the data space to the manifold, D to d."""
        return [self.event_dim, *(stage.dim for stage in self._cut[0][:-1]), self.dim]

    @property
    def code_dims(self) -> tuple[int, int]:
        """Number of columns of u and of v."""
        return self.dim, sum(self._off_dims)

    @property
    def _off_dims(self) -> list[int]:
        """Number of columns of v by stage, the last one first."""
        *outer, last = self._cut[0]
        return [last.latent_dim - self.dim, *(s.latent_dim - s.dim for s in reversed(outer))]

    @property
    def eigenvalues(self) -> Tensor | None:
        """Mean squared contributions of the coordinates to the data, (d,); None if unknown.

        They are the eigenvalues of the last stage's rotation, or of the one before an ordered
        stage, which keeps the order.
        """
        rotation = self._cut[0][-1].rotation
        if rotation is None and self._cut[0][-1].ordered and len(self._cut[0]) > 1:
            rotation = self._cut[0][-2].rotation
        return None if rotation is None else rotation.eigenvalues[: self.dim]

    @property
    def off_manifold_scales(self) -> Tensor:
        """Standard deviations of the coordinates v of :meth:`forward`: sigma_v, or 1 in views."""
        scales = [1.0] * self._cut[0][-1].dim
        for stage in reversed(self._cut[0]):
            scales += [stage.off_manifold_scale] * (stage.latent_dim - stage.dim)
        return torch.tensor(scales[self.dim :]).to(next(self.parameters()))

    def code_log_prob(self, u: Tensor, context: Context | None = None) -> Tensor:
        """See :meth:`Model.code_log_prob`; unknown for views of fewer dimensions than a code."""
        self._check(u=u)
        (*_, last), code = self._cut
        if code and self.dim < last.dim:
            expected = f"{last.dim} or more for the density on the manifold"
            raise unexpected("dim", expected, f"{self.dim}, for which it is an unknown marginal")
        z, rest = u.tensor_split([last.dim], 1)
        log_prob = Hierarchy(code).log_prob(z, context) if code else standard_normal_log_prob(z)
        return log_prob + last.off_manifold_log_prob(rest)

    def _draw_codes(
        self, n: int, temperature: float, generator: torch.Generator | None, context: Context | None
    ) -> Tensor:
        (*_, last), code = self._cut
        size = max(self.dim, last.dim if code else 0)
        weight = next(self.parameters())
        noise = temperature * torch.randn(n, size, generator=generator, dtype=weight.dtype)
        z, rest = noise.to(weight.device).tensor_split([last.dim], 1)
        z = Hierarchy(code).decode(z, context=context) if code else z
        return torch.cat([z, last.off_manifold_scale * rest], 1)[:, : self.dim]

    @property
    def manifold_stage(self) -> int:
        """Number of stages up to the last one that is not a reparametrization of the manifold."""
        number = len(self.stages)
        while number > 1 and self.stages[number - 1].is_reparametrization:
            number -= 1
        return number

    def _stages_of(self, dim: int) -> int:
        """Number of stages up to the one whose first ``dim`` latents are coordinates of a view."""
        for number in range(len(self.stages), self.manifold_stage, -1):
            stage = self.stages[number - 1]
            if stage.ordered and dim < stage.latent_dim:
                return number
        return self.manifold_stage

    @property
    def max_dim(self) -> int:
        """The largest dimension that :meth:`at_dim` accepts."""
        return self.stages[self.manifold_stage - 1].latent_dim

    def at_dim(self, dim: int) -> "Hierarchy":
        """Return a view: the same weights and density, and a manifold of another dimension.

        ``dim`` is 1 to :attr:`max_dim`; at its own dimension the model is returned as it is. A view
        has no calibration, because its anomaly scores have other values.

        Example:
            >>> hierarchy = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=4)])
            >>> hierarchy.at_dim(2).encode(torch.randn(3, 8))[0].shape
            torch.Size([3, 2])
        """
        if dim == self.dim:
            return self
        view = Hierarchy(self.stages, dim, self.defensive).train(self.training)
        scale = self.calibration.get("noise_scale")  # the density at it is the same
        why = (
            f"The calibration is for dimension {self.dim}, not {dim}. Score with the model as it "
            f"was trained, train one with stage_{self.manifold_stage}.dim={dim}, or use "
            "model.with_facts(calibration=calibrate(model, events, device)) with validation images."
        )
        calibration = {"noise_scale": scale, "why": why}
        return view.with_facts(data=self.data, calibration=calibration, notes=self.notes)
