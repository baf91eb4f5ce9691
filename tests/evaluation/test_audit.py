"""Audits of densities with known defects."""

import math

import numpy as np
import pytest
import torch
import zuko

import submanifold
from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.evaluation.integral import integrate
from submanifold.flows import Affine, Autoencoder, RealNVP, make_conditional
from submanifold.models import Hierarchy, Mixture, Stage
from submanifold.models.stage import standard_normal_log_prob
from submanifold.runs.information import audit_model

CHECKS = [
    "inverse on data",
    "inverse on samples",
    "log-determinant",
    "integral",
    "float32",
    "gradient",
    "held-out",
]


def normal(dim=3, count=1000, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def audit_normal(x=None, held_out=None, offset=0.0, shift=0.0, cancelled=0.0, root=False):
    """Audit a standard normal density in three dimensions, with defects."""

    def forward(x):
        log_det = offset + (x[:, 0] + cancelled - cancelled - x[:, 0])
        return x, log_det + (0 * x[:, 0]).sqrt() if root else log_det

    def log_prob(x):
        return standard_normal_log_prob(x) + forward(x)[1]

    def inverse(z):
        return z + shift

    x = normal() if x is None else x
    return submanifold.audit(
        log_prob, lambda n: inverse(torch.randn(n, 3)), x, held_out, forward, inverse
    )


def test_a_standard_normal_density_passes_and_nothing_is_changed():
    random = torch.get_rng_state()
    table = audit_normal(held_out=normal(seed=1))
    assert [*table.index] == CHECKS
    assert (table.status == "pass").all()
    value, error = table.loc["integral", ["value", "error"]]
    assert value == pytest.approx(1, abs=4 * error)
    assert 0 < error < 0.03
    assert torch.equal(torch.get_rng_state(), random)
    assert table.equals(audit_normal(held_out=normal(seed=1)))


@pytest.mark.parametrize(
    ("defects", "expected"),
    [
        ({"offset": 0.1}, {"log-determinant": ("fail", 0.1), "integral": ("fail", math.exp(0.1))}),
        ({"offset": 0.005}, {"log-determinant": ("warning", 0.005)}),
        ({"shift": 0.02}, dict.fromkeys(("inverse on data", "inverse on samples"), ("fail", 0.02))),
        ({"shift": 0.002}, dict.fromkeys(("inverse on data",), ("warning", 0.002))),
        ({"cancelled": 2.0**21}, {"float32": ("fail", 0.125)}),
        ({"root": True}, {"gradient": ("fail", 1 / 3)}),
        (
            {"offset": math.nan},
            dict.fromkeys(("log-determinant", "float32"), ("fail", math.nan)),
        ),
    ],
)
def test_a_defect_is_measured(defects, expected):
    table = audit_normal(**defects)
    for name, (status, value) in expected.items():
        assert table.status[name] == status, name
        assert table.value[name] == pytest.approx(value, rel=0.06, nan_ok=True), name


def test_held_out_data_that_are_less_likely_are_a_warning():
    table = audit_normal(0.5 * normal(), normal(seed=1))
    assert table.status["held-out"] == "warning"
    assert table.value["held-out"] == pytest.approx((1 - 0.25) / 2, abs=0.05)


def test_an_exception_is_a_failure_and_a_missing_function_is_not_checked():
    table = submanifold.audit(standard_normal_log_prob, lambda n: [][n], normal())
    assert table.status["integral"] == "fail"
    assert table.why["integral"] == "IndexError: list index out of range"
    needs_functions = ["inverse on data", "log-determinant", "held-out"]
    assert (table.status[needs_functions] == "not checked").all()
    with pytest.raises(UserError, match=r"^x: expected two or more events, finite floats"):
        submanifold.audit(standard_normal_log_prob, normal, normal().byte())


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_the_integral_of_a_correlated_density_is_estimated(offset):
    rng = np.random.default_rng(0)
    root = np.linalg.qr(rng.normal(size=(4, 4)))[0] * [1, 0.1, 3, 1e-3]
    inverse = torch.from_numpy(np.linalg.inv(root).T)

    def log_prob(x):
        return offset + standard_normal_log_prob((x - 5) @ inverse) - math.log(3e-4)

    for _ in range(3):
        samples = torch.from_numpy(rng.normal(size=(4000, 4)) @ root.T + 5)
        value, error = integrate(log_prob, samples)
        assert value == pytest.approx(math.exp(offset), abs=4 * error)
        assert error < 0.05 * value


def test_a_flow_of_another_library_passes():
    torch.manual_seed(0)
    flow = zuko.flows.NSF(3, transforms=1, hidden_features=(8,))()
    precise = zuko.flows.NSF(3, transforms=1, hidden_features=(8,)).double()()
    flows = {torch.float32: flow, torch.float64: precise}
    table = submanifold.audit(
        lambda x: flows[x.dtype].log_prob(x),
        lambda n: flow.rsample((n,)),
        normal(),
        forward=lambda x: flows[x.dtype].transform.call_and_ladj(x),
        inverse=flow.transform.inv,
    )
    assert (table.status.drop(["held-out", "float32"]) == "pass").all()


MODELS = {
    "bijection": lambda flow: Hierarchy([Stage(flow, 3)]),
    "scale": lambda flow: Hierarchy([Stage(flow, 2, off_manifold_scale=0.5)]),
    "stages": lambda flow: Hierarchy([Stage(flow, 2, 0.5), Stage(Affine(2), 1, 2.0)]),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_pass(kind):
    torch.manual_seed(0)
    model = MODELS[kind](perturb(RealNVP(3, 2, 8)))
    table = audit_model(model, normal(), None, None)
    assert [*table.index[table.status != "pass"]] == ["held-out"]


def test_a_density_given_a_context_is_audited():
    for context, size in ((torch.tensor(1), {"classes": 2}), (torch.ones(2), {"columns": 2})):
        flow = perturb(make_conditional(RealNVP(3, 2, 8), **size))
        table = audit_model(Hierarchy([Stage(flow, 3)]), normal(), None, context)
        assert [*table.index[table.status != "pass"]] == ["held-out"]


@pytest.mark.parametrize(
    "model",
    [
        Hierarchy([Stage(Autoencoder((1, 4, 4), 2, 4), 2)]),
        Mixture([Hierarchy([Stage(Affine(3), 2)])]),
    ],
)
def test_models_without_an_exact_density_are_refused(model):
    with pytest.raises(UserError, match=r"^MODEL: expected a model with an exact density on R\^D"):
        audit_model(model, normal(), None, None)
