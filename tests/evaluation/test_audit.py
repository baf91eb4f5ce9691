"""Audits of flows with known defects, and of the functions that other packages name differently."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zuko
from scipy.special import logsumexp
from torch import nn

import submanifold
from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.evaluation import audit as module
from submanifold.flows import Affine, Autoencoder, Glow, RealNVP, make_conditional
from submanifold.models import Hierarchy, Mixture, Stage
from submanifold.models.stage import standard_normal_log_prob


class Normal(nn.Module):
    """A standard normal density in three dimensions, with defects."""

    def __init__(self, offset=0.0, shift=0.0, cancelled=0.0, root=False, message=None):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))
        self.shift, self.cancelled, self.root, self.message = shift, cancelled, root, message

    def forward(self, x):
        log_det = self.offset + (x[:, 0] + self.cancelled - self.cancelled - x[:, 0])
        return x, log_det + (0 * x[:, 0]).sqrt() if self.root else log_det

    def inverse(self, z):
        if self.message:
            raise RuntimeError(self.message)
        return z + self.shift


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 2000)
    monkeypatch.setattr(module, "COMPONENTS", 2)


def normal(dim=3, count=1000, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_a_standard_normal_density_passes_and_nothing_is_changed():
    flow, random = Normal().double().train(), torch.get_rng_state()
    result = submanifold.audit(flow, normal(), normal(seed=1))
    assert (result.table.status == "pass").all()
    value, error = result.table.loc["integral", ["value", "error"]]
    assert value == pytest.approx(1, abs=4 * error)
    assert 0 < error < 0.03
    assert flow.training
    assert flow.offset.dtype == torch.float64
    assert flow.offset.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert result.table.equals(submanifold.audit(flow, normal(), normal(seed=1)).table)
    assert all(name in str(result) for name in module.CHECKS)


@pytest.mark.parametrize(
    ("defects", "expected"),
    [
        ({"offset": 0.1}, {"log-determinant": ("fail", 0.1), "integral": ("fail", math.exp(0.1))}),
        ({"offset": 0.005}, {"log-determinant": ("warning", 0.005)}),
        ({"shift": 0.02}, dict.fromkeys(("inverse on data", "inverse on samples"), ("fail", 0.02))),
        (
            {"shift": 0.002},
            dict.fromkeys(("inverse on data", "inverse on samples"), ("warning", 0.002)),
        ),
        (
            {"shift": 0.02, "message": "singular"},
            dict.fromkeys(
                ("inverse on data", "inverse on samples", "inverse far away", "integral"),
                ("fail", math.nan),
            ),
        ),
        ({"cancelled": 2.0**21}, {"float32": ("fail", 0.125)}),
        ({"root": True}, {"gradient": ("fail", 1 / 3)}),
        (
            {"offset": math.nan},
            {
                "integral": ("fail", 0.0),
                **dict.fromkeys(("log-determinant", "float32"), ("fail", math.nan)),
            },
        ),
    ],
)
def test_a_defect_is_measured(defects, expected):
    table = submanifold.audit(Normal(**defects), normal()).table
    for name, (status, value) in expected.items():
        assert table.status[name] == status, name
        assert table.value[name] == pytest.approx(value, rel=0.06, nan_ok=True), name
    if "offset" not in defects:
        others = table.drop([*expected, "inverse far away", "held-out"])
        assert (others.status == "pass").all()
    if "message" in defects:
        assert table.meaning["inverse on data"] == "RuntimeError: singular"


def test_held_out_data_that_are_less_likely_are_a_warning():
    table = submanifold.audit(Normal(), 0.5 * normal(), normal(seed=1)).table
    assert table.status["held-out"] == "warning"
    assert table.value["held-out"] == pytest.approx((1 - 0.25) / 2, abs=0.05)


@pytest.mark.parametrize("effective", [0.1, 2.0], ids=["importance", "bridge"])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_the_integral_of_a_correlated_density_is_estimated(monkeypatch, effective, offset):
    monkeypatch.setattr(module, "FEWEST_EFFECTIVE", effective)
    rng = np.random.default_rng(0)
    root = np.linalg.qr(rng.normal(size=(4, 4)))[0] * [1, 0.1, 3, 1e-3]

    def log_prob(x):
        z = np.linalg.solve(root, x.T - 5).T
        return offset - 0.5 * np.square(z).sum(1) - 2 * math.log(2 * math.pi) - math.log(3e-4)

    values = [module.integrate(log_prob, rng.normal(size=(4000, 4)) @ root.T + 5) for _ in range(5)]
    for value, error in values:
        assert value == pytest.approx(math.exp(offset), abs=4 * error)
        assert error < 0.05 * value


def base():
    return SimpleNamespace(log_prob=standard_normal_log_prob, sample=lambda n: torch.randn(n, 3))


class Latent(nn.Module):
    """A base as that of normflows."""

    log_prob = staticmethod(standard_normal_log_prob)

    def forward(self, count):
        z = torch.randn(count, 3)
        return z, self.log_prob(z)


class OfNormflows(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flows, self.q0 = nn.ModuleList([flow]), Latent()

    def forward(self, z):
        return self.flows[0].inverse(z)

    def inverse(self, x):
        return self.flows[0](x)[0]

    def log_prob(self, x):
        z, log_det = self.flows[0](x)
        return self.q0.log_prob(z) + log_det


class Map(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context=None):
        return self.flow(x)

    def inverse(self, z, context=None):
        return self.flow.inverse(z), None


class OfNflows(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self._transform, self._distribution = Map(flow), base()

    def log_prob(self, x):
        z, log_det = self._transform(x)
        return self._distribution.log_prob(z) + log_det


class OfFreia(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x_or_z, c=None, rev=False, jac=True):
        return (self.flow.inverse(x_or_z), None) if rev else self.flow(x_or_z)


FLOWS = {
    "bijection": lambda flow: flow,
    "stage": lambda flow: Stage(flow, 2, off_manifold_scale=0.5),
    "hierarchy": lambda flow: Hierarchy([Stage(flow, 2, 0.5), Stage(Affine(2), 1, 2.0)]),
    "normflows": OfNormflows,
    "nflows": OfNflows,
    "FrEIA": OfFreia,
    "zuko": lambda flow: zuko.flows.NSF(3, transforms=1, hidden_features=(8,)),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_flows_of_all_packages_pass(kind):
    torch.manual_seed(0)
    flow = FLOWS[kind](perturb(RealNVP(3, 2, 8)))
    table = submanifold.audit(flow, normal()).table.drop("inverse far away")
    assert [*table.index[table.status != "pass"]] == ["held-out"]


def test_a_density_given_a_context_is_audited_in_this_package():
    for context, size in ((torch.tensor(1), {"classes": 2}), (torch.ones(2), {"columns": 2})):
        flow = perturb(make_conditional(RealNVP(3, 2, 8), **size))
        table = submanifold.audit(flow, normal(), context=context).table
        assert [*table.index[table.status != "pass"]] == ["held-out"]
        with pytest.raises(UserError, match=r"^context: expected that of one event.*context\[0\]"):
            submanifold.audit(flow, normal(), context=context[None])
    with pytest.raises(UserError, match=r"^context: expected none for a flow of another package"):
        submanifold.audit(Normal(), normal(), context=torch.ones(1))


def test_images_have_a_log_determinant_but_no_integral():
    flow = perturb(Glow((3, 8, 8), levels=2, steps=1, width=4))
    table = submanifold.audit(flow, torch.rand(20, 3, 8, 8) - 0.5).table
    assert table.status["log-determinant"] == "pass"
    assert table.meaning["integral"] == "Only in up to 100 dimensions."


class Misshapen(Normal):
    """A normal density whose functions return other shapes."""

    def __init__(self, z=lambda z: z, log_det=lambda y: y, x=lambda x: x, log_prob=lambda y: y):
        super().__init__()
        self.changes = z, log_det, x, log_prob

    def forward(self, x):
        return [
            change(part) for change, part in zip(self.changes, super().forward(x), strict=False)
        ]

    def inverse(self, z):
        return self.changes[2](z)

    def log_prob(self, x):
        return self.changes[3](standard_normal_log_prob(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": lambda z: z[:, :2]}, r"forward\(x\)\[0\]: expected shape \(9, 3\), got \(9, 2\)"),
        (
            {"log_det": lambda y: y[:, None]},
            r"forward\(x\)\[1\]: expected shape \(9,\), got \(9, 1\)",
        ),
        ({"log_det": torch.sum}, r"forward\(x\)\[1\]: expected shape \(9,\), got \(\)"),
        ({"x": lambda x: x[..., None]}, r"inverse\(z\): expected shape \(9, 3\), got \(9, 3, 1\)"),
        ({"x": lambda x: (x, 0)}, r"inverse\(z\): expected shape \(9, 3\), got tuple"),
        ({"log_prob": torch.mean}, r"log_prob\(x\): expected shape \(9,\), got \(\)"),
    ],
)
def test_functions_that_return_other_shapes_are_refused(changes, message):
    with pytest.raises(UserError, match=rf"^flow\.{message}"):
        submanifold.audit(Misshapen(**changes), normal(count=9))


@pytest.mark.parametrize(
    ("flow", "x", "message"),
    [
        (
            Normal(),
            normal().byte(),
            r"x: expected .* floats .*, got torch.uint8 of shape \(1000, 3\)",
        ),
        (RealNVP(3), normal() / 0, "x: expected finite numbers"),
        (RealNVP(2), normal(), r"x: expected events that the flow takes, got shape \(1000, 3\) "),
        (abs, normal(), "flow: expected a torch.nn.Module, got builtin_function_or_method. Wrap"),
        (
            nn.Identity(),
            normal(),
            r"flow: expected a flow, or a module with forward.*, got Identity",
        ),
        (Stage(Autoencoder((1, 4, 4), 2, 4), 2), torch.rand(9, 1, 4, 4), "flow: .* an injection"),
        (Mixture([Hierarchy([Stage(Affine(3), 2)])]), normal(), "flow: .* noise or charts"),
    ],
)
def test_what_cannot_be_audited_is_refused(flow, x, message):
    with pytest.raises(UserError, match=f"^{message}"):
        submanifold.audit(flow, x)


@pytest.mark.parametrize(("width", "method"), [(0.1, "bridge"), (0.13, "importance")])
def test_importance_sampling_needs_a_tenth_of_the_draws(monkeypatch, width, method):
    """Of 64 narrow normals, which two normals do not resolve: 7 and 13% of the draws count."""
    rng = np.random.default_rng(0)
    centers = np.stack(np.meshgrid(range(8), range(8)), -1).reshape(-1, 2)
    samples = centers[rng.integers(64, size=4000)] + width * rng.normal(size=(4000, 2))

    def log_prob(x):
        squares = np.square((x[:, None] - centers) / width).sum(2)
        return logsumexp(-squares / 2, 1) - math.log(64 * 2 * math.pi * width**2)

    value, error = module.integrate(log_prob, samples)
    assert value == pytest.approx(1, abs=4 * error)
    estimates = {}
    for name, least in {"importance": 0.0, "bridge": 2.0}.items():
        monkeypatch.setattr(module, "FEWEST_EFFECTIVE", least)
        estimates[name] = module.integrate(log_prob, samples)
    assert estimates["bridge"] != estimates["importance"]
    assert (value, error) == estimates[method]
