"""Audit of a flow of any library: whether its density, inverse and gradients can be trusted."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import log_expit, logsumexp
from scipy.stats import multivariate_t
from torch import Tensor, nn

from submanifold.common.errors import unexpected
from submanifold.common.progress import ProgressBar
from submanifold.common.text_tables import format_table
from submanifold.evaluation.baselines import evenly_spaced
from submanifold.flows import Flow, context_of
from submanifold.models import Hierarchy, Model, Stage
from submanifold.models.diagnostics import LARGEST_INVERSE_ERROR
from submanifold.models.stage import standard_normal_log_prob

EVENTS, GRADIENT_EVENTS, JACOBIANS, JACOBIAN_DIM, JACOBIAN_ROWS = 1000, 100, 8, 4096, 256
INTEGRAL_DIM, DRAWS, COMPONENTS, FREEDOM, ITERATIONS = 100, 10_000, 16, 5, 1000
LARGEST_ERROR, FEWEST_EFFECTIVE = 0.1, 0.1  # of an integral, the second as a fraction of the draws
FAR = 10  # scale of events that are far away, relative to that of the data

_INVERSE = 1e-4, LARGEST_INVERSE_ERROR, "standard deviations"
CHECKS: dict[str, tuple[float, float, str, str]] = {  # limits, unit and meaning
    "inverse on data": (*_INVERSE, "Error of inverse(forward(x)): samples are not of the density."),
    "inverse on samples": (*_INVERSE, "The same at samples of the flow."),
    "inverse far away": (*_INVERSE, f"The same at data {FAR} times as far from their mean."),
    "log-determinant": (1e-4, 1e-2, "nats", "Error of log-densities, by a dense float64 Jacobian."),
    "integral": (0.01, 0.05, "less 1", "Likelihoods can be compared only if it is 1."),
    "float32": (0.01, 0.1, "nats", "Rounding of log-densities, compared with float64."),
    "gradient": (0, 0, "", "Fraction of derivatives that are not finite: one ends a training."),
    "held-out": (0.05, 0.5, "nats per dimension", "Mean log p of x less that of held-out data."),
}
WIDTH = 50  # of texts, in characters
COLUMNS = "status", "value", "error", "warning_above", "fail_above", "unit", "meaning"
Map = Callable[[Tensor], Tensor]
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
Measured = tuple[float, float] | str  # a value and its standard error, or why there is none


@dataclass(frozen=True)
class Audit:
    """A printable table of checks.

    Attributes:
        table: By the name of a check its ``status`` (``pass``, ``warning``, ``fail`` or ``not
            checked``), ``value`` and standard ``error``, limits ``warning_above`` and
            ``fail_above``, ``unit``, and ``meaning``, or why it failed or is not checked.
    """

    table: pd.DataFrame

    def __str__(self) -> str:
        rows = self.table.rename(columns=lambda name: name.replace("_", " ")).to_dict("index")
        return format_table(
            [
                {"check": name}
                | {
                    column: f"{value:.3g}"
                    if isinstance(value, float)
                    else "\n".join(wrap(value, WIDTH))
                    for column, value in row.items()
                }
                for name, row in rows.items()
            ]
        )


class _Functions(NamedTuple):
    forward: Forward
    inverse: Map
    log_prob: Map
    draw: Callable[[int], Tensor] | None = None  # of latents, unless they are standard normal


def audit(flow: Any, x: Any, held_out: Any = None, context: Tensor | None = None) -> Audit:
    """Check the inverse, log-determinant, integral, precision and gradients of a flow.

    Copies are checked in evaluation mode. Flows are those of this package, ``Flow`` of zuko and of
    nflows, ``NormalizingFlow`` of normflows, ``SequenceINN`` and ``GraphINN`` of FrEIA, and any
    module with ``forward(x)``, which returns (z, log_det), ``inverse(z)``, and ``log_prob(x)``
    unless the latents z are standard normal.

    The integral is estimated from 10,000 draws of a density q, half of which is a mixture of
    normals, fitted to samples of the flow, and half a wider Student-t: by importance sampling where
    the effective number of draws is at least 1,000, as in few dimensions, and otherwise by bridge
    sampling with as many samples of the flow (Bennett 1976; Meng & Wong 1996, section 3). It is not
    checked if its standard error exceeds 0.1, nor in more than 100 dimensions; the log-determinant
    not in more than 4,096.

    A check is a ``warning`` or ``fail`` if its value, of the integral its distance from 1, exceeds
    a limit by three standard errors; and ``fail`` if it is NaN or the flow raises an exception.

    Args:
        flow: The flow. A :class:`.UserError` if it has other functions.
        x: Data that it was trained on, floats (N, ...); at most 1,000 of them are used.
        held_out: Data that it was not trained on, (M, ...).
        context: That of one event, for a conditional flow of this package.

    Example:
        >>> from submanifold.flows import RealNVP
        >>> table = audit(RealNVP(2), torch.randn(500, 2)).table
        >>> table.status["integral"], round(float(table.value["integral"]), 1)
        ('pass', 1.0)
    """
    if not isinstance(flow, nn.Module):
        raise unexpected("flow", "a torch.nn.Module", type(flow).__name__, "Wrap it in one")
    tensors = *flow.parameters(), *flow.buffers(), torch.empty(0)
    like = next(tensor for tensor in tensors if tensor.is_floating_point()).detach()
    dtypes = like.dtype, torch.float32, torch.float64
    copies = [copy.deepcopy(flow).eval().to(dtype) for dtype in dtypes]
    used, single, double = (_functions(copied, context) for copied in copies)
    x = _events("x", x).to(like)
    held_out = None if held_out is None else _events("held_out", held_out).to(like)
    dim = x[0].numel()

    def batched(function: Map, events: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([function(part) for part in events.split(EVENTS)])

    try:
        latents = batched(lambda part: used.forward(part)[0], x)
    except Exception as error:
        got = f"shape {tuple(x.shape)} ({type(error).__name__}: {error})"
        raise unexpected("x", "events that the flow takes", got) from error

    for name, function, shape in (
        ("forward(x)[0]", lambda: latents.flatten(1), (len(x), dim)),
        ("forward(x)[1]", lambda: used.forward(x)[1], (len(x),)),
        ("inverse(z)", lambda: used.inverse(latents), x.shape),
        ("log_prob(x)", lambda: used.log_prob(x), (len(x),)),
    ):
        returned: Any = shape
        with suppress(Exception), torch.no_grad():  # the checks fail with the exception
            result = function()
            returned = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if returned != shape:
            raise unexpected(f"flow.{name}", f"shape {tuple(shape)}", returned, "Correct the flow")

    def sample(count: int) -> Tensor:
        noise = torch.randn(count, *latents.shape[1:]) if used.draw is None else used.draw(count)
        return batched(used.inverse, noise.to(latents))

    def inverse(events: Tensor) -> Measured:
        error = inverse_error(used.forward, used.inverse, events)
        return (error.max() / events.std()).item(), 0.0

    def log_determinant() -> Measured:
        if dim > JACOBIAN_DIM:
            return f"Only in up to {JACOBIAN_DIM:,} dimensions."
        events = x[: max(1, min(JACOBIANS, JACOBIAN_DIM // dim))].double()
        log_det = batched(lambda part: double.forward(part)[1], events)
        return (log_det - dense_log_det(double.forward, events)).abs().max().item(), 0.0

    def integral() -> Measured:
        if dim > INTEGRAL_DIM:
            return f"Only in up to {INTEGRAL_DIM} dimensions."

        def log_prob(rows: np.ndarray) -> np.ndarray:
            events = torch.from_numpy(rows).to(x).view(-1, *x.shape[1:])
            return batched(used.log_prob, events).double().cpu().numpy()

        return integrate(log_prob, sample(2 * DRAWS).flatten(1).double().cpu().numpy())

    def rounding() -> Measured:
        difference = batched(single.log_prob, x.float()) - batched(double.log_prob, x.double())
        return difference.abs().max().item(), 0.0

    def gradient() -> Measured:
        events = x[:GRADIENT_EVENTS].clone().requires_grad_()
        weights = [weight for weight in copies[0].parameters() if weight.requires_grad]
        total = used.log_prob(events).sum()
        gradients = torch.autograd.grad(total, [events, *weights], allow_unused=True)
        finite = torch.cat([g.flatten().isfinite() for g in gradients if g is not None])
        return 1 - finite.double().mean().item(), 0.0

    def gap() -> Measured:
        if held_out is None:
            return "Needs held-out data."
        parts = [batched(used.log_prob, part).double() / dim for part in (x, held_out)]
        error = sum(part.var().item() / len(part) for part in parts) ** 0.5
        return (parts[0].mean() - parts[1].mean()).item(), error

    far = x.mean(0) + FAR * (x - x.mean(0))
    measures = (
        lambda: inverse(x),
        lambda: inverse(sample(EVENTS)),
        lambda: inverse(far),
        log_determinant,
        integral,
        rounding,
        gradient,
        gap,
    )
    checks = {}
    with (
        torch.random.fork_rng([like.device] if like.is_cuda else []),
        torch.enable_grad(),
        ProgressBar("auditing", "checks", len(CHECKS)) as progress,
    ):
        for name, measure in zip(CHECKS, measures, strict=True):
            torch.manual_seed(0)
            checks[name] = _check(name, measure)
            progress.update()
    return Audit(pd.DataFrame.from_dict(checks, "index", columns=COLUMNS).rename_axis("check"))


def _check(name: str, measure: Callable[[], Measured]) -> tuple[Any, ...]:
    *limits, unit, meaning = CHECKS[name]
    try:
        measured = measure()
    except Exception as error:  # of another library
        return "fail", math.nan, 0.0, *limits, unit, f"{type(error).__name__}: {error}"
    if isinstance(measured, str):
        return "not checked", math.nan, 0.0, *limits, unit, measured
    value, spread = measured
    if name == "integral" and not spread <= LARGEST_ERROR:
        return "not checked", value, spread, *limits, unit, "Its error is too large."
    excess = abs(value - (name == "integral")) - 3 * spread
    passed = sum(excess <= limit for limit in limits)  # 0 for NaN
    return ("fail", "warning", "pass")[passed], value, spread, *limits, unit, meaning


def inverse_error(forward: Forward, inverse: Map, x: Tensor) -> Tensor:
    """Compute the absolute errors of inverse(forward(x)), in the shape of the events x."""
    with torch.no_grad():
        return (inverse(forward(x)[0]) - x).abs()


def dense_log_det(forward: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> Tensor:
    """Compute log|det J| of the first result at x, (batch, ...), by autograd alone: (batch,)."""

    def of(event: Tensor) -> Tensor:
        jacobian = []
        for axes in torch.arange(event.numel(), device=x.device).split(JACOBIAN_ROWS):
            # copy i of the event gives row i of the Jacobian
            batch = event.expand(len(axes), *event.shape).clone().requires_grad_()
            z = forward(batch)[0]
            total = z.flatten(1).gather(1, axes[:, None]).sum()
            jacobian.append(torch.autograd.grad(total, batch)[0].flatten(1))
        return torch.linalg.slogdet(torch.cat(jacobian))[1]

    return torch.stack([*map(of, x)])


def integrate(
    log_prob: Callable[[np.ndarray], np.ndarray], samples: np.ndarray
) -> tuple[float, float]:
    """Estimate the integral of a density p, and its standard error (:func:`audit`).

    ``log_prob`` maps rows (n, D) to nats (n,); half of the samples of p, (2n, D), fit a proposal.
    """
    from sklearn.mixture import GaussianMixture

    center, scale = samples.mean(0), samples.std(0)
    fitted, drawn = np.array_split((samples - center) / scale, 2)
    n, dim = drawn.shape
    mixture = GaussianMixture(COMPONENTS, tol=1e-2, max_iter=300, random_state=0).fit(fitted)
    shape = 2 * np.cov(fitted.T).reshape(dim, dim) + 1e-6 * np.eye(dim)
    wide = multivariate_t(np.zeros(dim), shape, FREEDOM, seed=0)
    proposed = mixture.sample(n // 2)[0], wide.rvs(n - n // 2).reshape(-1, dim)

    def log_ratio(y: np.ndarray) -> np.ndarray:
        log_q = np.logaddexp(mixture.score_samples(y), wide.logpdf(y)) - math.log(2)
        return np.nan_to_num(
            log_prob(center + scale * y) + np.log(scale).sum() - log_q, nan=-np.inf
        )

    outside, inside, log_r = log_ratio(np.concatenate(proposed)), log_ratio(drawn), 0.0
    weights = np.exp(outside)
    if weights.sum() ** 2 >= FEWEST_EFFECTIVE * n * (weights**2).sum():
        return float(weights.mean()), float(weights.std() / math.sqrt(n))
    for _ in range(ITERATIONS):
        parts = log_expit(outside - log_r), log_expit(log_r - inside)
        means = [logsumexp(part) - math.log(n) for part in parts]
        log_r += means[0] - means[1]
    terms = [np.exp(part - mean) for part, mean in zip(parts, means, strict=True)]
    value = float(np.exp(log_r))
    return value, value * math.sqrt(sum(term.var() / n for term in terms))


def _events(name: str, data: Any) -> Tensor:
    events = torch.as_tensor(data if isinstance(data, Tensor) else np.asarray(data))
    if not events.is_floating_point() or len(events) < 2:
        got = f"{events.dtype} of shape {tuple(events.shape)}"
        fix = "Convert bytes with submanifold.data.dequantize"
        raise unexpected(name, "two or more events, floats (N, ...)", got, fix)
    if not events.isfinite().all():
        raise unexpected(name, "finite numbers", "infinities or NaN", "Correct them")
    return events[evenly_spaced(np.arange(len(events)), EVENTS)]


def _functions(flow: Any, context: Tensor | None) -> _Functions:
    if isinstance(flow, Flow | Stage):
        flow = Hierarchy([Stage(flow, flow.latent_dim) if isinstance(flow, Flow) else flow])
    if isinstance(flow, Model):
        return _functions_of_model(flow, context)
    if context is not None:
        fix = "Audit a module whose functions pass the context on"
        raise unexpected("context", "none for a flow of another package", "one", fix)
    if hasattr(flow, "base") and hasattr(flow, "transform"):  # zuko
        law = flow()
        return _Functions(
            law.transform.call_and_ladj,
            law.transform.inv,
            law.log_prob,
            lambda n: law.base.sample((n,)),
        )
    if hasattr(flow, "q0") and hasattr(flow, "flows"):  # normflows: its forward samples

        def invert(x: Tensor) -> tuple[Tensor, Tensor]:
            z = flow.inverse(x)  # inverse_and_log_det accumulates in float32
            return z, flow.log_prob(x) - flow.q0.log_prob(z)

        return _Functions(invert, flow, flow.log_prob, lambda n: flow.q0(n)[0])
    if hasattr(flow, "_transform") and hasattr(flow, "_distribution"):  # nflows
        return _Functions(
            flow._transform,
            lambda z: flow._transform.inverse(z)[0],
            flow.log_prob,
            flow._distribution.sample,
        )
    is_reversible = "rev" in inspect.signature(getattr(flow, "forward", len)).parameters  # FrEIA
    if not is_reversible and not hasattr(flow, "inverse"):
        expected = "a flow, or a module with forward(x), which returns (z, log_det), and inverse(z)"
        raise unexpected("flow", expected, type(flow).__name__, "Wrap it in such a module")

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = flow(x)
        return standard_normal_log_prob(z) + log_det

    inverse = (lambda z: flow(z, rev=True)[0]) if is_reversible else flow.inverse
    return _Functions(flow, inverse, getattr(flow, "log_prob", log_prob))


def _functions_of_model(model: Any, context: Tensor | None) -> _Functions:
    stages = getattr(model, "stages", ())
    if not stages or not model.has_density or any(stage.noise for stage in stages):
        got = "one with an injection, noise or charts"
        fix = "Audit its invertible stages, or its charts"
        raise unexpected("flow", "a model with an exact density on R^D", got, fix)
    if context is not None and context.ndim != ("columns" in context_of(model)):
        got = f"shape {tuple(context.shape)}"
        raise unexpected("context", "that of one event", got, "Pass one row, such as context[0]")

    def rows(x: Tensor) -> Tensor | None:
        if context is None:
            return None
        repeated = context.to(x.device).expand(len(x), *context.shape)
        return repeated.to(x) if context.is_floating_point() else repeated

    model = Hierarchy(stages)  # of a view: its coordinates are not normal behind a flow on the code

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        u, v, log_prob = model(x, rows(x))
        z = torch.cat([u, v / model.off_manifold_scales], 1)
        return z, log_prob - standard_normal_log_prob(z)

    def inverse(z: Tensor) -> Tensor:
        u, v = z.tensor_split([model.dim], 1)
        return model.decode(u, model.off_manifold_scales * v, rows(z))

    return _Functions(forward, inverse, lambda x: model.log_prob(x, rows(x)))
