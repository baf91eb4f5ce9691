"""A step on a device: no tensor of another device, and no wait of the host for a value.

The meta device has shapes and no values, so that reading a value raises, as would a copy to the
host on a GPU. Mixing devices raises too.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strategies import SMALL_FLOWS
from submanifold.common.device import choose_precision
from submanifold.flows import FLOWS, Injection
from submanifold.flows.registry import SELECTABLE
from submanifold.geometry.linearization import Linearization
from submanifold.losses import Loss
from submanifold.models import Hierarchy, Mixture, Stage
from submanifold.training import Phase, Trainer, TrainingSettings


class OneDevice(TorchDispatchMode):
    """Raise where an operation other than a copy gets tensors of two devices, as CUDA does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [
            t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim()
        ]
        if len({t.device for t in tensors}) > 1 and "copy" not in func.__name__:
            raise RuntimeError(f"{func} got tensors of two devices")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_meta(monkeypatch):
    """Compute on the meta device, which has neither autocast nor norms of many tensors at once."""
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda weights, norm, **_: clip(weights, norm)
    )
    with OneDevice():
        yield torch.device("meta")


def flow_of(name):
    shape = (3, 8, 8) if 3 in FLOWS[name].axes else 12
    given = (shape, 6) if issubclass(FLOWS[name], Injection) else (shape,)
    return FLOWS[name](*given, **SMALL_FLOWS.get(name, {}))


def initialized(module):
    """Initialize a model from random data, so that it is past the data-dependent first batch."""
    module(torch.randn(16, *module.event_shape))
    return module


MODELS = {name: lambda name=name: Hierarchy([Stage(flow_of(name), 6)]) for name in SELECTABLE}
MODELS["two stages"] = lambda: Hierarchy([Stage(flow_of("glow"), 12), Stage(flow_of("realnvp"), 6)])
MODELS["mixture"] = lambda: Mixture([Hierarchy([Stage(flow_of("realnvp"), 6)]) for _ in range(2)])


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_stays_on_the_device_and_reads_no_value(on_meta, name):
    model = initialized(MODELS[name]()).to(on_meta)
    settings = TrainingSettings(steps=3, batch_size=4, precision="float32")
    loss = Loss(reconstruction={"penalty": "mse", "weight": 10.0})
    trainer = Trainer(Phase(model, loss, settings))
    for _ in range(2):
        values = trainer.step(torch.randn(4, *model.event_shape, device=on_meta))
    assert {value.device.type for value in values.values()} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        values["loss"].item()


def test_jacobian_products_stay_on_the_device(on_meta):
    model = initialized(MODELS["two stages"]()).to(on_meta)
    u = torch.randn(4, 6, device=on_meta)
    at = Linearization(model.decode, u)
    assert at.vjp(at.jvp(u)).device.type == "meta"


@pytest.mark.parametrize("is_emulated", [False, True])
def test_bfloat16_is_used_where_it_is_not_emulated(is_emulated, monkeypatch):
    def is_supported(including_emulation=True):
        return including_emulation or not is_emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    weight = SimpleNamespace(dtype=torch.float32, device=torch.device("cuda"))
    expected = torch.float32 if is_emulated else torch.bfloat16
    assert choose_precision("auto", weight) == expected
