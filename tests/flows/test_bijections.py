"""The contract of flows: each entry of the registry, and each layer, is drawn and checked."""

import copy
import inspect
import json
import math
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from strategies import DTYPES, assert_close, assert_finite_gradients, perturb, tolerance
from submanifold.common.errors import UserError
from submanifold.evaluation.integral import dense_log_det
from submanifold.flows import (
    FLOWS,
    ActNorm,
    AffineCoupling,
    Autoencoder,
    Bijection,
    Compose,
    FlowSettings,
    Injection,
    Linear,
    MaskedAffineCoupling,
    MaskedSplineCoupling,
    MixtureOfLogistics,
    QuantileSpline,
    RealNVP,
    Reflections,
    Split,
    Squeeze,
    Zuko,
    build_flow,
    context_of,
    describe_flow,
    initialize,
    make_conditional,
    with_noise_scale,
)
from submanifold.flows.conformal import ConditionalOrthogonal, SpecialConformal
from submanifold.flows.linear import Similarity
from submanifold.flows.orthogonal import BlockReflections
from submanifold.flows.registry import SELECTABLE
from submanifold.geometry.linearization import jvp
from submanifold.models import Hierarchy, Mixture, Stage

few = st.integers(1, 3)
dims = st.integers(1, 9)
seeds = st.integers(0, 2**31)
shapes = {1: st.tuples(dims), 3: st.sampled_from([(1, 4, 4), (3, 4, 8), (1, 12, 4)])}


@st.composite
def flows(draw, name):
    """A small flow of random arguments, whose types are those of their defaults."""
    flow = FLOWS[name]
    shape = draw(shapes[draw(st.sampled_from(flow.axes))])
    event, *others = inspect.signature(flow).parameters.values()
    values = {event.name: shape[0] if flow.axes == (1,) else shape}
    for each in others:
        if each.name == "dim":
            values["dim"] = draw(st.integers(1, min(5, math.prod(shape))))
        elif isinstance(each.default, bool):
            values[each.name] = draw(st.booleans())
        elif isinstance(each.default, str):
            values[each.name] = draw(
                st.sampled_from(get_args(get_type_hints(flow.__init__)[each.name]))
            )
        else:
            none = st.none() if each.default is None else st.nothing()
            values[each.name] = draw(none | st.integers(1, 2))
    torch.manual_seed(draw(seeds))
    try:
        return flow(**values)
    except UserError:  # arguments that do not fit each other
        assume(False)


class Joined(Bijection):
    """A split whose two outputs are concatenated."""

    def __init__(self, channels):
        super().__init__()
        self.split = Split(channels)

    def forward(self, x, context=None):
        kept, latent, log_det = self.split(x)
        return torch.cat([kept, latent], 1), log_det

    def inverse(self, z, context=None):
        return self.split.inverse(*z.chunk(2, 1))


def image_coupling(channels):
    net = nn.Conv2d(channels // 2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, channels, 1)
    return AffineCoupling(nn.Sequential(*net))


def vector_coupling(mask):
    net = nn.Linear(len(mask), 6), nn.Tanh(), nn.Linear(6, 2 * len(mask))
    return MaskedAffineCoupling(mask, nn.Sequential(*net))


def spline_coupling(mask):
    net = nn.Linear(len(mask), 6), nn.Tanh(), nn.Linear(6, 12 * len(mask))
    return MaskedSplineCoupling(mask, nn.Sequential(*net), bins=3)


def squeezed(layers, c, h, w):
    return Compose([Squeeze(), *(layer(4 * c) for layer in layers)]), (c, 2 * h, 2 * w)


def channelwise(layer):
    positions = st.tuples(few, few) | st.just(())
    return st.builds(lambda c, s: (layer(c), (c, *s)), dims, positions)


def of_vectors(layer, *arguments):
    return st.builds(lambda d, *rest: (layer(d, *rest), (d,)), dims, *arguments)


some_layers = st.permutations([ActNorm, Linear, Joined, image_coupling])
LAYERS = {
    ActNorm: channelwise(ActNorm),
    Similarity: channelwise(Similarity),
    Linear: channelwise(Linear),
    ConditionalOrthogonal: channelwise(lambda c: ConditionalOrthogonal(c, 2)),
    AffineCoupling: st.builds(lambda c: (image_coupling(2 * c), (2 * c, 2, 3)), few),
    MaskedAffineCoupling: st.lists(st.booleans(), min_size=1, max_size=9).map(
        lambda mask: (vector_coupling(mask), (len(mask),))
    ),
    MaskedSplineCoupling: st.lists(st.booleans(), min_size=1, max_size=9).map(
        lambda mask: (spline_coupling(mask), (len(mask),))
    ),
    Squeeze: st.builds(squeezed, st.just([]), few, few, few),
    Split: st.builds(lambda c: (Joined(2 * c), (2 * c, 2, 3)), few),
    Compose: st.builds(squeezed, some_layers, few, few, few),
    Reflections: of_vectors(Reflections, few),
    BlockReflections: of_vectors(BlockReflections, few),
    SpecialConformal: of_vectors(SpecialConformal),
    MixtureOfLogistics: of_vectors(MixtureOfLogistics, few),
    QuantileSpline: of_vectors(QuantileSpline, few),
}
BIJECTIONS = {name: flow for name, flow in FLOWS.items() if not issubclass(flow, Injection)}
INJECTIONS = FLOWS.keys() - BIJECTIONS.keys()

every_flow = pytest.mark.parametrize("name", FLOWS)
every_injection = pytest.mark.parametrize("name", sorted(INJECTIONS))
every_bijection = pytest.mark.parametrize(
    "kind", [*BIJECTIONS, *LAYERS], ids=lambda kind: getattr(kind, "__name__", kind)
)
few_examples = settings(max_examples=8, deadline=None, derandomize=True)
some_examples = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def cases(draw, name, size, scaled=None):
    """(flow, x, context) of a flow that may depend on classes, columns and a noise scale."""
    flow, context = draw(flows(name)), None
    depends = draw(st.sampled_from([None, "classes", "columns"]))
    if depends:
        try:
            make_conditional(flow, **{depends: 2})
            context = torch.randn(size, 2) if depends == "columns" else torch.arange(size) % 2
        except UserError:  # it cannot depend on a context
            del flow.embedding
    scaled = draw(st.booleans()) if scaled is None else scaled
    scale = torch.rand(size) if scaled and flow.takes_noise_scale else None
    return flow, torch.randn(size, *flow.event_shape), with_noise_scale(context, scale)


@st.composite
def perturbed(draw, kind):
    """(bijection, x, context) after a small change of all weights."""
    torch.manual_seed(draw(seeds))
    dtype, size, context = draw(st.sampled_from(DTYPES)), draw(few), None
    if kind in LAYERS:
        bijection, shape = draw(LAYERS[kind])
        return perturb(bijection).to(dtype), torch.randn(size, *shape, dtype=dtype), context
    flow, x, context = draw(cases(kind, size))
    return perturb(flow).to(dtype), x.to(dtype), flow.embed(context)


@every_bijection
@some_examples
@given(st.data())
def test_inverse_undoes_forward_and_forward_the_inverse(kind, data):
    bijection, x, context = data.draw(perturbed(kind))
    z, log_det = bijection(x, context)
    assert z.dtype == log_det.dtype == x.dtype
    assert log_det.shape == (len(x),)
    assert z[0].numel() == x[0].numel()
    forward, inverse = (lambda x: bijection(x, context)), (lambda z: bijection.inverse(z, context))
    noise = torch.randn_like(z)
    with torch.no_grad():
        assert ((inverse(forward(x)[0]) - x).abs() < tolerance(x)).all()
    assert_close(forward(inverse(noise))[0], noise)


@every_bijection
@some_examples
@given(st.data())
def test_log_det_is_that_of_the_autograd_jacobian(kind, data):
    bijection, x, context = data.draw(perturbed(kind))
    double = copy.deepcopy(bijection).double()

    def at(row):
        return lambda x: double(x, None if row is None else row.repeat(len(x)))

    rows = [None] * len(x)
    if context is not None:
        rows = [context.rows([number]) for number in range(len(x))]
    expected = [
        dense_log_det(at(row), event[None]) for row, event in zip(rows, x.double(), strict=True)
    ]
    assert_close(bijection(x, context)[1], torch.cat(expected))


@every_injection
@some_examples
@given(st.data())
def test_forward_is_a_left_inverse_of_an_injection(name, data):
    flow = data.draw(flows(name)).double()
    if not isinstance(flow, Autoencoder):  # whose left inverse is trained
        perturb(flow)
    u = torch.randn(3, flow.dim, dtype=torch.float64)
    x = flow.inverse(u)
    assert x.shape == (3, *flow.event_shape)
    assert (flow(x)[0] - u).abs().max() < 1e-8
    for dtype in DTYPES:
        found = flow.to(dtype)(x.to(dtype))
        assert found[0].dtype == found[1].dtype == flow.inverse(u.to(dtype)).dtype == dtype


@every_injection
@some_examples
@given(st.data())
def test_volume_of_an_injection_is_that_of_the_autograd_jacobian(name, data):
    flow = perturb(data.draw(flows(name))).double()
    u = torch.randn(flow.dim, dtype=torch.float64)
    volume = flow(flow.inverse(u[None]))[1]
    jacobian = torch.func.jacfwd(lambda u: flow.inverse(u[None]).flatten())(u)
    assert torch.linalg.matrix_rank(jacobian) == flow.dim
    if flow.has_volume:
        assert_close(volume[0], -0.5 * torch.linalg.slogdet(jacobian.T @ jacobian)[1])
    else:
        assert volume.isnan().all()


@every_flow
@few_examples
@given(st.data())
def test_empty_batches_have_empty_results_and_zero_gradients(name, data):
    flow, x, context = data.draw(cases(name, 0))
    context = flow.embed(context)
    z, log_det = flow(x.requires_grad_(), context)
    back = flow.inverse(z, context)
    assert z.shape == (0, flow.latent_dim)
    assert log_det.shape == (0,)
    assert back.shape == x.shape
    if back.requires_grad:
        (back.sum() + log_det.sum()).backward()
        assert all(p.grad is None or p.grad.eq(0).all() for p in flow.parameters())


@every_flow
@few_examples
@given(st.data())
def test_the_description_rebuilds_the_flow(name, data):
    flow, _, context = data.draw(cases(name, 2))
    description = json.loads(json.dumps(describe_flow(perturb(flow))))
    rebuilt = build_flow(description)
    rebuilt.load_state_dict(flow.state_dict())
    assert type(rebuilt) is type(flow)
    assert (rebuilt.event_shape, rebuilt.arguments) == (flow.event_shape, flow.arguments)
    assert (context_of(rebuilt), describe_flow(rebuilt)) == (context_of(flow), describe_flow(flow))
    u = torch.randn(2, flow.latent_dim)
    expected = flow.inverse(u, flow.embed(context))
    assert torch.equal(rebuilt.inverse(u, rebuilt.embed(context)), expected)
    with torch.device("meta"):
        assert build_flow(description).state_dict().keys() == flow.state_dict().keys()


@pytest.mark.parametrize("name", SELECTABLE)
@few_examples
@given(st.data())
def test_settings_build_the_flow(name, data):
    flow = data.draw(flows(name))
    arguments = [*inspect.signature(FLOWS[name]).parameters]
    chosen = arguments[1 + isinstance(flow, Injection) :]
    raw = {"type": name, **{argument: flow.arguments[argument] for argument in chosen}}
    parsed = TypeAdapter(FlowSettings).validate_python(raw)
    built = build_flow(parsed.model_dump(), flow.event_shape, getattr(flow, "dim", 1))
    assert built.arguments == flow.arguments
    with pytest.raises(UserError, match=r"^type: expected one of .*, got"):
        build_flow(parsed.model_dump(), (4, 4), 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "nice"}, "expected one of .* others, got nice"),
        ({"type": "affine", "dim": 0}, "for events of shape"),
        ({"type": "affine", "dim": 2, "width": 3}, "width"),
        ({"type": "zuko", "dim": 3, "name": "MAF", "bins": 4}, "bins: expected null with name=MAF"),
        ({"type": "zuko", "dim": 3, "passes": 1}, "passes: expected at least 2"),
        ({"type": "zuko", "dim": 10**5}, "at most 1,073,741,824 weights"),
    ],
)
def test_invalid_descriptions_raise(config, message):
    with pytest.raises(ValueError, match=message):
        build_flow(config)


def test_the_context_of_initialized_layers_and_models_may_be_named():
    x = torch.randn(5, 3)
    for part in (Linear(3), Mixture([Hierarchy([Stage(RealNVP(3), 2)])])):
        for results in zip(part(x), part(x, context=None), strict=True):
            assert torch.equal(*results)


@every_flow
@few_examples
@given(st.data())
def test_initialized_flows_have_finite_gradients_of_all_parameters(name, data):
    flow, x, context = data.draw(cases(name, 16, scaled=True))
    initialize(flow, x.requires_grad_(), context=flow.embed(context))
    assert not any(getattr(each, "uninitialized", False) for each in flow.modules())
    embedded = perturb(flow, 0.05).embed(context)
    z, log_det = flow(x, embedded)
    assert_finite_gradients(flow, z, log_det, flow.inverse(z, embedded))


@every_flow
@few_examples
@given(st.data())
def test_autocast_keeps_the_dtype_of_latents_and_log_dets(name, data):
    flow = data.draw(flows(name))
    x = torch.randn(3, *flow.event_shape)
    exact, exact_log_det = flow(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
        back = flow.inverse(z)
    assert z.dtype == log_det.dtype == back.dtype == torch.float32
    # coupling nets start at zero, and everything else is computed in full precision
    assert_close(z, exact)
    assert_close(log_det.nan_to_num(), exact_log_det.nan_to_num())
    assert_close(back, flow.inverse(exact))


@every_flow
@few_examples
@given(st.data())
def test_inverse_has_forward_mode_derivatives(name, data):
    flow = perturb(data.draw(flows(name))).double()
    u, direction = torch.randn(2, 3, flow.latent_dim, dtype=torch.float64)
    with torch.no_grad():
        step = 1e-6 * direction
        differences = (flow.inverse(u + step) - flow.inverse(u - step)) / 2e-6
    tangent = jvp(flow.inverse, u, direction)
    torch.testing.assert_close(tangent, differences, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["NSF", "MAF", "NICE"])
def test_networks_of_zuko_have_two_hidden_layers(name):
    flow = Zuko(4, name, transforms=2, hidden=7)
    widths = [each.out_features for each in flow.modules() if hasattr(each, "out_features")]
    assert widths.count(7) == 2 * 2
