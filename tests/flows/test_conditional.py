"""Every flow that can depend on a context: contract, start and refusals."""

import copy

import pytest
import torch

from strategies import affine, assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.flows import (
    FLOWS,
    Conformal,
    Context,
    Injection,
    RealNVP,
    SoftRealNVP,
    build_flow,
    context_of,
    describe_flow,
    make_conditional,
    with_noise_scale,
)
from submanifold.geometry.linearization import jacobian

IMAGE = (2, 4, 4)
ARGUMENTS = {
    "glow": {"shape": IMAGE, "levels": 2, "steps": 2, "width": 5},
    "soft_glow": {"shape": IMAGE, "levels": 1, "steps": 1, "width": 5},
    "realnvp": {"dim": 4, "couplings": 2},
    "soft_realnvp": {"dim": 4, "couplings": 2},
    "affine": {"dim": 4},
    "gaussianization": {"dim": 4, "layers": 2},
    "tabular": {"dim": 4, "couplings": 2, "hidden": 8, "bins": 4},
    "zuko": {"dim": 4, "name": "MAF", "transforms": 1, "hidden": 16},
    "trumpet": {"event_shape": IMAGE, "dim": 3, "steps": 1, "width": 4},
    "autoencoder": {"event_shape": IMAGE, "dim": 3, "width": 4},
}
CONTEXTS = {"classes": lambda n: torch.arange(n) % 3, "columns": lambda n: torch.randn(n, 3)}

every_flow = pytest.mark.parametrize("name", ARGUMENTS)
every_context = pytest.mark.parametrize("kind", CONTEXTS)


def build(name, kind="classes"):
    torch.manual_seed(0)
    return make_conditional(FLOWS[name](**ARGUMENTS[name]), **{kind: 3})


def test_all_flows_but_two_can_depend_on_a_context():
    assert FLOWS.keys() - ARGUMENTS.keys() == {"conformal", "rotation"}
    with pytest.raises(UserError, match="expected a flow that can depend on a context, got confor"):
        make_conditional(Conformal((4,), 2), classes=2)


@every_flow
@every_context
def test_the_flow_depends_on_the_context_of_each_event(name, kind):
    flow = perturb(build(name, kind))
    x = torch.randn(4, *flow.event_shape)
    embedded = flow.embed(with_noise_scale(CONTEXTS[kind](4), torch.rand(4)))
    z, log_det = flow(x, embedded)
    back = flow.inverse(z, embedded)
    for n in range(4):
        row = embedded.rows([n])
        assert_close(flow(x[n : n + 1], row)[0], z[n : n + 1])
        assert_close(flow.inverse(z[n : n + 1], row), back[n : n + 1])
    assert not torch.allclose(flow(x, embedded.rows([3, 2, 1, 0]))[0], z, atol=1e-5)
    if name != "autoencoder" and not isinstance(flow, Injection):
        assert_close(back, x)
        assert log_det.isfinite().all()


@pytest.mark.parametrize("name", sorted(ARGUMENTS.keys() - {"zuko"}))
def test_it_starts_as_the_unconditional_flow(name):
    plain = perturb(FLOWS[name](**ARGUMENTS[name]))
    flow = make_conditional(copy.deepcopy(plain), classes=3)
    x = torch.randn(3, *flow.event_shape)
    found = flow(x, flow.embed(torch.tensor([0, 1, 2])))
    for each, expected in zip(found, plain(x), strict=True):
        torch.testing.assert_close(each, expected, equal_nan=True)
    assert describe_flow(flow) == {**describe_flow(plain), "context": {"classes": 3}}


@pytest.mark.parametrize("name", ["glow", "realnvp", "tabular", "zuko", "affine"])
def test_jacobians_repeat_the_context(name):
    flow = perturb(build(name)).double()
    u, context = torch.randn(2, flow.latent_dim, dtype=torch.float64), torch.tensor([0, 2])
    embedded = flow.embed(context)
    together = jacobian(flow.inverse, u, context=embedded)
    for n in range(2):
        row = slice(n, n + 1)
        assert_close(jacobian(flow.inverse, u[row], context=embedded.rows(row)), together[row])


@every_flow
def test_missing_and_wrong_contexts_are_refused(name):
    flow = perturb(build(name))
    x = torch.randn(4, *flow.event_shape)
    with pytest.raises(UserError, match=r"^context: expected one row for each of 4 events, got no"):
        flow(x)
    for context, message in [
        (torch.tensor([0]), "expected one row for each of 4 events, got 1"),
        (torch.tensor([0, 1]), "expected one row for each of 4 events, got 2"),
        (torch.arange(8) % 3, "expected one row for each of 4 events, got 8"),
        (torch.tensor([], dtype=torch.long), "expected one row for each of 4 events, got 0"),
        (torch.tensor([True, False, True, True]), r"expected integers of shape \(batch,\), got"),
        (torch.tensor([0, 1, 3]), "expected classes from 0 to 2, got 0 to 3"),
        (torch.rand(3), "expected integers of shape"),
        (torch.zeros(3, 1, dtype=torch.long), r"expected integers of shape \(batch,\), got"),
    ]:
        with pytest.raises(UserError, match=message):
            flow(x, flow.embed(context))
        with pytest.raises(UserError, match=message):
            flow.inverse(torch.randn(4, flow.latent_dim), flow.embed(context))
    columns = build(name, "columns")
    for context in (torch.rand(3, 2), torch.tensor([0, 1, 2])):
        with pytest.raises(UserError, match=r"expected floats of shape \(batch, 3\)"):
            columns.embed(context)


def test_an_unconditional_flow_has_no_context():
    flow = RealNVP(4)
    assert context_of(flow) == {}
    assert flow.embed(torch.tensor([0, 1])) is None
    with pytest.raises(UserError, match="expected a noise scale alone, for an unconditional flow"):
        SoftRealNVP(4).embed(torch.tensor([0, 1]))


@pytest.mark.parametrize("kind", CONTEXTS)
def test_the_noise_scale_is_beside_the_embedding_and_zero_by_default(kind):
    flow, context = perturb(build("soft_realnvp", kind)), CONTEXTS[kind](3)
    embedded = flow.embed(with_noise_scale(context, torch.tensor([0.1, 0.2, 0.3])))
    torch.testing.assert_close(embedded.noise_scale, torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(embedded.values, flow.embedding(context))
    default = flow.embed(context)
    assert torch.equal(default.values, embedded.values)
    assert torch.equal(default.noise_scale, torch.zeros(3))
    with pytest.raises(UserError, match="context: expected values, got a noise scale alone"):
        flow.embed(Context(noise_scale=torch.rand(3)))


@pytest.mark.parametrize(
    "context",
    [{}, {"classes": 0}, {"classes": 2, "columns": 1}, {"labels": 3}, [3], {"classes": "a"}],
)
def test_invalid_contexts_of_a_config_raise(context):
    with pytest.raises((UserError, ValueError, TypeError)):
        build_flow({"type": "affine", "dim": 2, "context": context})


def test_a_conditional_gaussian_is_exact():
    """Log-densities of two Gaussians of different means and variances, in closed form."""
    flow = make_conditional(affine(torch.eye(2)), classes=2).double()
    mean = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    log_std = torch.tensor([[0.3, -0.5], [-1.0, 0.2]], dtype=torch.float64)
    with torch.no_grad():
        # z = (x - mean) / std; log-scales pass through 4 tanh(s / 4)
        raw = 4 * torch.atanh(-log_std / 4)
        flow.of_context.weight[:] = torch.cat([raw, -mean * (-log_std).exp()], 1).T
    x, labels = torch.randn(6, 2, dtype=torch.float64), torch.arange(6) % 2
    z, log_det = flow(x, flow.embed(labels))
    normal = torch.distributions.Normal(mean[labels], log_std[labels].exp())
    standard = torch.distributions.Normal(0, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(standard.log_prob(z).sum(1) + log_det, normal.log_prob(x).sum(1))


@pytest.mark.parametrize("name", ["tabular", "realnvp"])
@pytest.mark.parametrize("others", [0, 2])
def test_a_mask_reaches_the_flow_beside_the_embedding_of_the_other_columns(name, others):
    settings = {"type": name, **ARGUMENTS[name], "context": {"columns": 3 + others, "mask": 3}}
    flow = perturb(build_flow(settings), 0.5)
    context = torch.cat([(torch.rand(6, 3) < 0.5).float(), torch.randn(6, others)], 1)
    embedded = flow.embed(context)
    assert ((embedded.values[:, :3] > 0) == (context[:, :3] > 0)).all()
    size = embedded.values.shape[1]
    assert size == (3 if not others else 3 + 32)
    x = torch.randn(6, 4)
    for column in range(3 + others):
        changed = context.clone()
        changed[:, column] = 1 - changed[:, column]
        difference = flow(x, flow.embed(changed))[0] - flow(x, embedded)[0]
        assert (difference.abs().amax(1) > 1e-6).all()
    rebuilt = build_flow(describe_flow(flow))
    rebuilt.load_state_dict(flow.state_dict())
    assert_close(rebuilt(x, rebuilt.embed(context))[0], flow(x, embedded)[0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "^context: expected values or a noise scale, got none"),
        (
            {"noise_scale": torch.rand(3, 1)},
            r"expected shape \(batch,\), got shape \(3, 1\)",
        ),
        (
            {"values": torch.arange(3), "noise_scale": torch.rand(2)},
            "expected one scale for each of 3 rows of values, got 2",
        ),
    ],
)
def test_a_context_has_a_row_of_each_part_for_each_event(parts, message):
    with pytest.raises(UserError, match=message):
        Context(**parts)


def test_rows_and_copies_of_a_context_have_both_parts():
    context = Context(torch.tensor([4, 5, 6]), torch.tensor([0.0, 0.5, 1.0]))
    for index in ([2, 0], torch.tensor([2, 0])):
        assert context.rows(index).values.tolist() == [6, 4]
        assert context.rows(index).noise_scale.tolist() == [1.0, 0.0]
    assert context.rows(slice(1)).repeat(2).noise_scale.tolist() == [0.0, 0.0]
    assert context.repeat(2).values.tolist() == [4, 5, 6, 4, 5, 6]
    assert len(Context(noise_scale=torch.rand(7))) == 7
