"""The contract of every registered kind of model, with every registered flow."""

import pytest
import torch
from torch.autograd import forward_ad

from strategies import OF_EVENTS, SMALL_FLOWS, assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.flows import RealNVP
from submanifold.flows.registry import SELECTABLE
from submanifold.models import (
    CrossFitted,
    Hierarchy,
    Mixture,
    Model,
    ModelSettings,
    NormalComponents,
    Stage,
    manifold_density,
)

SHAPES = {1: (6,), 3: (3, 8, 8)}
IMAGE, VECTOR = SHAPES[3], SHAPES[1]


def stage(flow="realnvp", dim=3, **settings):
    flows = flow if isinstance(flow, list) else {"type": flow, **SMALL_FLOWS.get(flow, {})}
    return {"flow": flows, "dim": dim, **settings}


def build(shape, *stages, charts=1):
    settings = ModelSettings.model_validate({"stages": stages, "charts": charts})
    return settings.extend(None, shape)[0]


def rotated(model, *inner):
    """Add a rotation to the last stage of a hierarchy, and then further stages."""
    rotation = model.stages[-1].add_rotation()
    size = rotation.event_shape[0]
    rotation.fit(torch.linalg.qr(torch.randn(size, size)).Q, torch.linspace(2, 1, size))
    return Hierarchy([*model.stages, *inner])


def reparametrized(model, ordered=False):
    dim = model.stages[-1].dim
    return rotated(model, Stage(RealNVP(dim, couplings=2), dim, ordered=ordered))


MODELS = {
    **{
        f"{flow}, {axes} axes": lambda flow=flow, axes=axes: build(SHAPES[axes], stage(flow))
        for flow, kind in SELECTABLE.items()
        for axes in kind.axes
    },
    "two stages": lambda: build(IMAGE, stage("glow", 20), stage(dim=6)),
    "two flows": lambda: build(
        VECTOR, stage(flow=[{"type": "realnvp", "couplings": 2}, {"type": "affine"}])
    ),
    "no manifold": lambda: build(VECTOR, stage("affine", None)),
    "noisy": lambda: build(VECTOR, stage("affine", 4), stage(dim=3, noise=0.1)),
    "noisy injective": lambda: build(VECTOR, stage("conformal"), stage(dim=2, noise=0.1)),
    "two stages on an injection": lambda: build(IMAGE, stage("autoencoder", 7), stage(dim=5)),
    "rotated": lambda: rotated(build(IMAGE, stage("glow"))),
    "reparametrized": lambda: reparametrized(build(IMAGE, stage("glow"))),
    "smaller view": lambda: reparametrized(build(VECTOR, stage())).at_dim(2),
    "ordered view": lambda: reparametrized(build(IMAGE, stage("glow")), ordered=True).at_dim(2),
    "larger view": lambda: reparametrized(build(IMAGE, stage("glow"))).at_dim(5),
    "view on an injection": lambda: reparametrized(
        build(IMAGE, stage("autoencoder", 7), stage(dim=4))
    ).at_dim(5),
    "mixture": lambda: build(VECTOR, stage(), stage(dim=2), charts=3),
    "mixture of different charts": lambda: Mixture(
        [
            build(VECTOR, stage(dim=4), stage("affine")),
            build(VECTOR, stage("affine", 4, off_manifold_scale=2.0), stage(noise=0.3)),
        ]
    ),
    "mixture of images": lambda: build(IMAGE, stage("glow"), charts=2),
    "cross-fitted": lambda: CrossFitted(
        build(VECTOR, stage(dim=2)), [build(VECTOR, stage()) for _ in range(3)]
    ),
    "mixture of injections": lambda: build(VECTOR, stage("conformal"), charts=2),
}

VOLUMES = [
    lambda model, x: manifold_density(model, x),
    lambda model, x: manifold_density(model, x, exact_up_to=1),
]
OF_CODES = {
    "decode": lambda model, u, v: model.decode(u),
    "decode all": lambda model, u, v: model.decode(u, v),
    "code_log_prob": lambda model, u, v: model.code_log_prob(u),
}


def make(name):
    torch.manual_seed(0)
    return perturb(MODELS[name](), 0.05).eval()


@pytest.fixture(params=MODELS)
def model(request):
    return make(request.param)


def events(model, count=3):
    return torch.rand(count, *model.event_shape) - 0.5


def results(method, *arguments):
    """Tensors that a method returns, or the message of its UserError."""
    try:
        found = method(*arguments)
    except UserError as error:
        return str(error)
    return [found] if isinstance(found, torch.Tensor) else list(found)


def test_every_registered_kind_is_tested():
    assert {type(MODELS[name]()) for name in MODELS} == {*Model.__subclasses__()}


def test_results_have_the_documented_shapes(model):
    x = events(model)
    u, v, log_prob = model(x)
    assert (u.shape, v.shape) == tuple((3, columns) for columns in model.code_dims)
    assert model.coordinates(u).shape == (3, model.dim)
    assert log_prob.shape == (3,)
    assert model.dims[0] == model.event_dim
    assert model.dims[-1] == model.dim
    projected = model.encoder_projection(x), model.project(x), model.project(x, nearest=True)
    for each in (model.decode(u), model.decode(u, v), *projected):
        assert each.shape == x.shape
        assert each.dtype == x.dtype


def test_samples_are_reproducible_points_of_the_manifold(model):
    draw = [model.sample(4, 0.7, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draw[0].shape == (4, *model.event_shape)
    assert not draw[0].requires_grad
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    if model.has_density and not isinstance(model, Mixture):  # charts may overlap
        assert_close(model.project(draw[0]), draw[0])


def test_encoding_and_decoding_are_inverse_and_projections_are_idempotent(model):
    if not model.has_density:
        pytest.skip("an injection has no inverse on R^D")
    x = events(model)
    u, v = model.encode(x)
    assert_close(model.decode(u, v), x)
    if not isinstance(model, Mixture):
        assert_close(
            torch.cat(model.encode(model.encoder_projection(x)), 1), torch.cat([u, 0 * v], 1)
        )


def test_results_do_not_depend_on_the_rest_of_the_batch(model):
    def rows(x):
        u, v, log_prob = model(x)
        return torch.cat([u, v, log_prob[:, None], model.decode(u).flatten(1)], 1).nan_to_num()

    x = events(model)
    assert_close(torch.cat([rows(event[None]) for event in x]), rows(x))


def test_a_saved_model_loads_as_the_same_model(model, tmp_path):
    of_images = len(model.event_shape) == 3
    data = {"size": 8, "channels": 3} if of_images else {"dim": 6}
    described = model.with_facts(data=data, notes={"a": [1, None]}, calibration={"why": "ä"})
    described.save(tmp_path / "model")
    x, loaded = events(model), Model.load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.describe() == described.describe()
    assert loaded.calibration == {"why": "ä"}
    for found, expected in zip(loaded(x), model(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_facts_are_those_of_one_model():
    model = Hierarchy([Stage(RealNVP(4), 2)])
    described = model.with_facts(notes={"a": 1}).with_facts(calibration={"why": "few"})
    assert (described.notes, described.calibration, model.notes) == ({"a": 1}, {"why": "few"}, {})
    with pytest.raises(AttributeError, match="notes"):
        model.notes = {"a": 1}
    with pytest.raises(TypeError, match="item assignment"):
        described.notes["a"] = 2
    described.defensive = NormalComponents(4, 0.1)
    assert model.defensive is None


# the compiled kernels are for the couplings of images in single precision
CASES = [
    *((name, torch.float32) for name in MODELS),
    *((name, torch.float64) for name in MODELS if "glow" in name),
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.filterwarnings("ignore:std")  # of no numbers
def test_empty_batches_give_empty_results(name, dtype):
    model = make(name).to(dtype)
    x = events(model).to(dtype)
    u, v = model.encode(x)
    calls = [
        *((method, (x,)) for method in [*OF_EVENTS.values(), *VOLUMES]),
        *((method, (u, v)) for method in OF_CODES.values()),
    ]
    for method, arguments in calls:
        expected = results(method, model, *arguments)
        found = results(method, model, *(each[:0] for each in arguments))
        if isinstance(expected, str):
            assert found == expected
            continue
        for some, none in zip(expected, found, strict=True):
            assert none.shape == (0, *some.shape[1:])
            assert none.dtype == some.dtype
    assert model.sample(0).shape == (0, *model.event_shape)
    x = x[:0].requires_grad_()
    u, v, log_prob = model(x)
    (u.sum() + v.sum() + log_prob.sum() + model.decode(u).sum()).backward()
    assert x.grad.shape == x.shape
    assert all(weight.grad.eq(0).all() for weight in model.parameters() if weight.grad is not None)


WRONG_EVENTS = {
    "bytes": lambda x: (x * 9).byte(),
    "integers": lambda x: x.long(),
    "double precision": lambda x: x.double(),
    "no batch axis": lambda x: x[0],
    "an extra axis": lambda x: x[None],
    "too many elements": lambda x: torch.cat([x, x], -1),
    "too few elements": lambda x: x[..., :-2],
    "an array": lambda x: x.numpy(),
}


@pytest.mark.parametrize("method", ["log_prob", "encode", "nearest projection"])
def test_events_of_a_wrong_shape_or_dtype_are_refused(model, method):
    if method == "log_prob" and not model.has_density:
        pytest.skip("no density on R^D")
    x = events(model)
    for change in WRONG_EVENTS.values():
        with pytest.raises(
            UserError, match=r"^x: expected torch.float32 of shape \(batch, .*, got"
        ):
            OF_EVENTS[method](model, change(x))


def test_models_support_forward_mode_and_functional_calls(model):
    x = events(model)
    u = model.encode(x)[0].detach()
    tangent = torch.randn_like(u)
    _, expected = torch.func.jvp(model.decode, (u,), (tangent,))
    with forward_ad.dual_level():
        dual = model.decode(forward_ad.make_dual(u, tangent))
        assert_close(forward_ad.unpack_dual(dual).tangent, expected)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, (x,))[0].square().sum()

    assert torch.func.grad(loss)(weights).keys() == weights.keys()


def plane(kind):
    """A model of each kind on R^2, with a density that integrates to one."""
    torch.manual_seed(0)
    flow = {"type": "realnvp", "couplings": 4, "hidden": 8, "mixing": True}
    outer = {"flow": flow, "dim": 1, "off_manifold_scale": 0.7}
    inner = {"flow": {"type": "realnvp", "couplings": 2, "hidden": 4}, "dim": 1}
    model = {
        "hierarchy": lambda: build((2,), outer, inner),
        "noisy": lambda: build((2,), outer, {**inner, "noise": 0.5}),
        "view": lambda: build((2,), outer, inner).at_dim(2),
        "mixture": lambda: build((2,), outer, inner, charts=3),
    }[kind]()
    return perturb(model, 0.2).double()


@pytest.mark.parametrize("kind", ["hierarchy", "noisy", "view", "mixture"])
def test_densities_integrate_to_one(kind):
    axis = torch.arange(-15, 15, 0.1, dtype=torch.float64)
    with torch.no_grad():
        density = plane(kind).log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1, abs=1e-3)
