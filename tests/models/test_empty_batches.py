"""Every method of every model accepts a batch of 0 events and returns 0 of what it returns."""

import pytest
import torch

from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.flows import RealNVP
from submanifold.flows.fast import kernels
from submanifold.flows.registry import SELECTABLE
from submanifold.models import Hierarchy, ModelSettings, Stage, on_manifold

SHAPES = {1: (6,), 3: (3, 8, 8)}
SMALL = {
    "glow": {"levels": 2, "steps": 1, "width": 4},
    "soft_glow": {"levels": 2, "steps": 1, "width": 4},
    "realnvp": {"couplings": 2},
    "soft_realnvp": {"couplings": 2},
    "gaussianization": {"layers": 1},
    "conformal": {"layers": 1},
    "jet": {"couplings": 2, "blocks": 1, "width": 8, "heads": 2},
    "trumpet": {"steps": 1, "width": 4},
    "autoencoder": {"width": 4},
}


def build(shape, *stages, charts=1):
    torch.manual_seed(0)
    settings = ModelSettings.model_validate({"stages": stages, "charts": charts})
    return perturb(settings.extend(None, shape)[0])


def single(name, axes):
    return build(SHAPES[axes], {"flow": {"type": name, **SMALL.get(name, {})}, "dim": 2})


def rotated(axes, *inner):
    name = "glow" if axes == 3 else "realnvp"
    outer = single(name, axes)
    outer.stages[0].add_rotation()
    return Hierarchy([*outer.stages, *inner])


def bent(axes=3):
    """A hierarchy whose last stage only bends the coordinates."""
    return rotated(axes, Stage(RealNVP(2, couplings=2), 2))


def stages(name, **last):
    flow = {"type": name, **SMALL.get(name, {})}
    return {"flow": flow, "dim": 3}, {"flow": {"type": "realnvp", "couplings": 2}, "dim": 2, **last}


GLOW = {"flow": {"type": "glow", **SMALL["glow"]}, "dim": 2}
MODELS = {
    **{f"{name}, {axes} axes": lambda name=name, axes=axes: single(name, axes)
       for name, flow in SELECTABLE.items() for axes in flow.axes},
    "glow, two stages": lambda: build(SHAPES[3], *stages("glow")),
    "noisy injective": lambda: build(SHAPES[1], *stages("conformal", noise=0.1)),
    "glow, rotated": lambda: rotated(3),
    "glow, bent": bent,
    "glow, slice": lambda: bent().at_dim(3),
    "smaller slice": lambda: bent(1).at_dim(1),
    "glow, mixture": lambda: build(SHAPES[3], GLOW, charts=2),
    "whole space": lambda: build(SHAPES[1], {"flow": {"type": "affine"}, "dim": None}),
}  # fmt: skip

METHODS = {
    "forward": lambda model, x: model(x),
    "log_prob": lambda model, x: model.log_prob(x),
    "bits_per_dim": lambda model, x: model.bits_per_dim(x),
    "encode": lambda model, x: model.encode(x),
    "encode to the nearest": lambda model, x: model.encode(x, nearest=True),
    "decode": lambda model, x: model.decode(model.encode(x)[0]),
    "decode all": lambda model, x: model.decode(*model.encode(x)),
    "project": lambda model, x: model.project(x),
    "project to the nearest": lambda model, x: model.project(x, steps=1),
    "rejection_map": lambda model, x: model.rejection_map(x),
    "sample": lambda model, x: model.sample(len(x)),
    "code_log_prob": lambda model, x: model.code_log_prob(model.encode(x)[0]),
    "on_manifold": lambda model, x: on_manifold(model, x),
    "on_manifold, estimated": lambda model, x: on_manifold(model, x, exact_up_to=1),
}


def results(method, model, x):
    """What a method returns, as a list, or the message of its refusal."""
    try:
        found = method(model, x)
    except UserError as error:
        return str(error)
    return [found] if isinstance(found, torch.Tensor) else list(found)


# the kernels are for the couplings of images
CASES = [*((name, True) for name in MODELS), *((name, False) for name in MODELS if "glow" in name)]


@pytest.mark.parametrize(("name", "compiled"), CASES)
@pytest.mark.filterwarnings("ignore:std")  # torch's, of no numbers
def test_no_events_give_no_results(monkeypatch, name, compiled):
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    model = MODELS[name]()
    x = torch.rand(2, *model.event_shape) - 0.5
    for method in METHODS.values():
        expected, found = results(method, model, x), results(method, model, x[:0])
        if isinstance(expected, str):
            assert found == expected
            continue
        for some, none in zip(expected, found, strict=True):
            assert none.shape == (0, *some.shape[1:])
            assert none.dtype == some.dtype
    x = x[:0].requires_grad_()
    u, v, log_prob = model(x)
    (u.sum() + v.sum() + log_prob.sum() + model.decode(u).sum()).backward()
    assert x.grad.shape == x.shape
    assert all(weight.grad.eq(0).all() for weight in model.parameters() if weight.grad is not None)
