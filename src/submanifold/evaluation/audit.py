"""Checks of a density: whether its values, its inverse and its gradients can be trusted."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.evaluation.integral import dense_log_det, integrate
from submanifold.models.diagnostics import LARGEST_INVERSE_ERROR

EVENTS = 1000  #: Number of events that are used.
JACOBIAN_DIM, INTEGRAL_DIM = 4096, 100  # largest dimensions of these checks
DRAWS, LARGEST_ERROR = 20_000, 0.1  # of an integral
Measured = tuple[float, float] | str  # a value and its standard error, or why there is none


@dataclass(frozen=True)
class _Density:
    log_prob: Callable[[Tensor], Tensor]
    x: Tensor
    forward: Callable[[Tensor], Sequence[Tensor]] | None
    inverse: Callable[[Tensor], Tensor] | None

    def round_trip(self, events: Tensor) -> Measured:
        if self.forward is None or self.inverse is None:
            return "Needs forward and inverse."
        error = (self.inverse(self.forward(events)[0]) - events).abs().max()
        return float(error / events.std()), 0.0

    def log_determinant(self) -> Measured:
        if self.forward is None or self.x[0].numel() > JACOBIAN_DIM:
            return f"Needs forward, and at most {JACOBIAN_DIM:,} dimensions."
        events = self.x[: max(1, min(8, JACOBIAN_DIM // self.x[0].numel()))].double()
        difference = self.forward(events)[1] - dense_log_det(self.forward, events)
        return float(difference.abs().max()), 0.0

    def integral(self, sample: Callable[[int], Tensor]) -> Measured:
        if self.x[0].numel() > INTEGRAL_DIM:
            return f"Only in up to {INTEGRAL_DIM} dimensions."
        value, error = integrate(self.log_prob, sample(DRAWS).to(self.x))
        return "Its standard error is too large." if error > LARGEST_ERROR else (value, error)

    def rounding(self) -> Measured:
        single, double = self.log_prob(self.x.float()), self.log_prob(self.x.double())
        return float((single - double).abs().max()), 0.0

    @torch.enable_grad()
    def gradient(self, parameters: Iterable[Tensor]) -> Measured:
        events = self.x[:100].clone().requires_grad_()
        inputs = [events, *(weight for weight in parameters if weight.requires_grad)]
        gradients = torch.autograd.grad(self.log_prob(events).sum(), inputs, allow_unused=True)
        finite = torch.cat([g.flatten().isfinite() for g in gradients if g is not None])
        return 1 - float(finite.double().mean()), 0.0

    def gap(self, held_out: Tensor | None) -> Measured:
        if held_out is None:
            return "Needs held-out data."
        events = self.x, held_out[:EVENTS].to(self.x)
        parts = [self.log_prob(part).double() / part[0].numel() for part in events]
        error = sum(float(part.var()) / len(part) for part in parts) ** 0.5
        return float(parts[0].mean() - parts[1].mean()), error


def audit(
    log_prob: Callable[[Tensor], Tensor],
    sample: Callable[[int], Tensor],
    x: Tensor,
    held_out: Tensor | None = None,
    forward: Callable[[Tensor], Sequence[Tensor]] | None = None,
    inverse: Callable[[Tensor], Tensor] | None = None,
    parameters: Iterable[Tensor] = (),
) -> pd.DataFrame:
    """Check the functions of a flow of any library (docs/how-to/audit.md).

    ``log_prob`` maps events (batch, ...) to nats (batch,), ``sample`` draws (count, ...),
    ``forward`` maps events to latents and the log-determinant (batch,), ``inverse`` latents to
    events, all in the precision of their argument, float32 or float64. Of the training data ``x``
    (N, ...), and of ``held_out``, at most 1,000 events are used. ``parameters`` are weights.
    The result has ``status``, ``value`` and standard ``error`` of each check, limits that the value
    exceeds by three errors, and ``why`` there is none.

    Example:
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> audit(normal.log_prob, lambda n: normal.sample((n,)), torch.randn(9, 2)).status.iloc[3]
        'pass'
    """
    if not x.is_floating_point() or len(x) < 2 or not x.isfinite().all():
        raise unexpected("x", "two or more events, finite floats (N, ...)", x.dtype, "Convert it")
    density = _Density(log_prob, x[:: math.ceil(len(x) / EVENTS)], forward, inverse)
    inverse_limits = 1e-4, LARGEST_INVERSE_ERROR
    checks: dict[str, tuple[Callable[[], Measured], float, float]] = {
        "inverse on data": (lambda: density.round_trip(density.x), *inverse_limits),
        "inverse on samples": (lambda: density.round_trip(sample(EVENTS).to(x)), *inverse_limits),
        "log-determinant": (density.log_determinant, 1e-4, 1e-2),
        "integral": (lambda: density.integral(sample), 0.01, 0.05),
        "float32": (density.rounding, 0.01, 0.1),
        "gradient": (lambda: density.gradient(parameters), 0, 0),
        "held-out": (lambda: density.gap(held_out), 0.05, 0.5),
    }
    with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():
        rows = {name: _check(float(name == "integral"), *check) for name, check in checks.items()}
    columns = ["status", "value", "error", "warning_above", "fail_above", "why"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("check")


def _check(target: float, measure: Callable[[], Measured], *limits: float) -> tuple[object, ...]:
    torch.manual_seed(0)
    try:
        measured = measure()
    except Exception as error:  # of another library
        return "fail", math.nan, 0.0, *limits, f"{type(error).__name__}: {error}"
    if isinstance(measured, str):
        return "not checked", math.nan, 0.0, *limits, measured
    excess = abs(measured[0] - target) - 3 * measured[1]
    passed = sum(excess <= limit for limit in limits)  # 0 for NaN
    return ("fail", "warning", "pass")[passed], *measured, *limits, ""
