"""What every kind of model accepts and refuses."""

import re

import pytest
import torch
from torch.autograd import forward_ad

from strategies import assert_close, perturb
from submanifold.data import dequantize
from submanifold.errors import UserError
from submanifold.flows import Affine, Autoencoder, Glow, Jet, RealNVP
from submanifold.manifold import Hierarchy, Mixture, Model, Stage

IMAGE = (3, 4, 4)


def rotated(stage):
    rotation = stage.add_rotation()
    size = rotation.event_shape[0]
    rotation.fit(torch.linalg.qr(torch.randn(size, size)).Q, torch.linspace(2, 1, size))
    return stage


MODELS = {
    "vectors": lambda: Hierarchy([Stage(RealNVP(8), 4), Stage(RealNVP(4), 2)]),
    "images": lambda: Hierarchy([Stage(Glow(IMAGE, 1, 1, 4), 20), Stage(RealNVP(20), 6)]),
    "patches": lambda: Hierarchy([Stage(Jet(IMAGE, 2, 2, 1, 4, 2), 20)]),
    "noisy": lambda: Hierarchy([Stage(Affine(8), 4), Stage(RealNVP(4), 4, noise=0.1)]),
    "rotated": lambda: Hierarchy([rotated(Stage(RealNVP(8), 4))]),
    "injection": lambda: Hierarchy([Stage(Autoencoder(IMAGE, 7, 4), 7), Stage(RealNVP(7), 5)]),
    "slice": lambda: Hierarchy(
        [rotated(Stage(Glow(IMAGE, 1, 1, 4), 9)), Stage(RealNVP(9), 9)]
    ).at_dim(12),
    "mixture": lambda: Mixture([Hierarchy([Stage(RealNVP(8), 3)]) for _ in range(2)]),
}

OF_EVENTS = {
    "forward": lambda model, x: model(x),
    "log_prob": lambda model, x: model.log_prob(x),
    "bits_per_dim": lambda model, x: model.bits_per_dim(x),
    "encode": lambda model, x: model.encode(x),
    "encode nearest": lambda model, x: model.encode(x, nearest=True),
    "project": lambda model, x: model.project(x),
    "project nearest": lambda model, x: model.project(x, steps=1),
    "rejection_map": lambda model, x: model.rejection_map(x),
}

WRONG_EVENTS = [
    (lambda x: (x * 9).byte(), "got uint8 of shape", ""),
    (lambda x: x.long(), "got int64 of shape", "x.to(torch.float32)"),
    (lambda x: x.double(), "got float64 of shape", "x.to(torch.float32)"),
    (lambda x: x.half(), "got float16 of shape", "x.to(torch.float32)"),
    (lambda x: x[0], "got float32 of shape", "x[None]"),
    (lambda x: x[None], "got float32 of shape (1, 3, ", ""),
    (lambda x: x.sum(), "got float32 of shape ()", ""),
    (lambda x: torch.cat([x, x], -1), "got float32 of shape", ""),
    (lambda x: x[..., :-2], "got float32 of shape", ""),
    (lambda x: x.numpy(), "got ndarray", "torch.as_tensor"),
]
WRONG = [
    (lambda code: code[:, :-1], "encode"),
    (lambda code: torch.cat([code, code], 1), "encode"),
    (lambda code: code[0], "encode"),
    (lambda code: code.double(), "torch.float32"),
    (lambda code: code.long(), "torch.float32"),
]
WRONG_COORDINATES = {"u": WRONG, "v": [*WRONG, (lambda code: code[:-1], "encode")]}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    return perturb(MODELS[request.param](), 0.05).eval()


def events(model, rows=3):
    return torch.rand(rows, *model.event_shape) - 0.5


def test_every_kind_of_model_is_here():
    ours = {kind for kind, each in Model.kinds.items() if each.__module__.startswith("submanifold")}
    assert {MODELS[name]().kind for name in MODELS} == ours


@pytest.mark.parametrize("method", OF_EVENTS)
def test_events_of_another_shape_or_dtype_are_refused(model, method):
    if method in ("log_prob", "bits_per_dim") and not model.has_density:
        pytest.skip("no density on all of space")
    x, shape = events(model), ", ".join(map(str, model.event_shape))
    for change, given, fix in WRONG_EVENTS:
        with pytest.raises(UserError, match=r"^x: expected float32 .*, got .*\.") as caught:
            OF_EVENTS[method](model, change(x))
        assert f"of shape (batch, {shape}), got" in str(caught.value)
        assert given in str(caught.value)
        assert fix in str(caught.value)


@pytest.mark.parametrize("name", WRONG_COORDINATES)
def test_coordinates_of_another_shape_or_dtype_are_refused(model, name):
    u, v = (each.detach() for each in model.encode(events(model)))
    for change, fix in WRONG_COORDINATES[name]:
        both = (change(u), v) if name == "u" else (u, change(v))
        with pytest.raises(UserError, match=f"^{name}: expected float32 .*, got .*{fix}"):
            model.decode(*both)
        if name == "u":
            for method in (model.decode, model.code_log_prob):
                with pytest.raises(UserError, match=f"^u: expected float32 .*, got .*{fix}"):
                    method(change(u))


def test_a_message_states_what_was_expected_and_given_and_the_fix():
    model = MODELS["images"]()
    images = torch.zeros(5, *IMAGE, dtype=torch.uint8)
    expected = (
        "x: expected float32 of shape (batch, 3, 4, 4), got uint8 of shape (5, 3, 4, 4). "
        "Convert bytes with submanifold.data.dequantize(x)."
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        model.log_prob(images)
    assert model.log_prob(dequantize(images)).isfinite().all()


def test_a_model_in_double_precision_takes_double_precision():
    model = MODELS["vectors"]().double()
    assert model.log_prob(events(model).double()).dtype == torch.float64
    with pytest.raises(UserError, match=r"expected float64 .*, got float32 .*x.to\(torch.float64"):
        model.log_prob(events(model))


def test_the_checks_hold_under_autocast(model):
    x = events(model)
    with torch.autocast("cpu", torch.bfloat16):
        u, v, _ = model(x)
        assert model.decode(u, v).dtype == torch.float32
        with pytest.raises(UserError, match="got bfloat16"):
            model(x.bfloat16())


def test_the_checks_hold_in_torch_func_and_forward_mode(model):
    x = events(model)
    u = model.encode(x)[0].detach()
    tangent = torch.randn_like(u)
    _, pushed = torch.func.jvp(model.decode, (u,), (tangent,))
    with forward_ad.dual_level():
        dual = model.decode(forward_ad.make_dual(u, tangent))
        assert_close(forward_ad.unpack_dual(dual).tangent, pushed)
    if len(model.event_shape) == 1:  # vmap has no channels_last, which images have
        by_rows = torch.func.vmap(lambda row: model.decode(row[None])[0])(u)
        assert_close(by_rows, model.decode(u))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, (x,))[0].square().sum()

    assert torch.func.grad(loss)(weights).keys() == weights.keys()
    with pytest.raises(UserError, match=r"^u: expected"):
        torch.func.vmap(model.decode)(u)


@pytest.mark.parametrize("rows", [0, 3])
def test_the_checks_read_no_values_and_accept_no_rows(model, rows):
    with torch.device("meta"):
        model._check_events(torch.empty(rows, *model.event_shape))
        u, v = (torch.empty(rows, columns) for columns in model.code_dims)
        model._check_coordinates(u, v)
