"""Contract of every registered term, and of one encoding for all."""

import pytest
import torch

from strategies import perturb
from submanifold.common.distributed import Shard
from submanifold.flows import RealNVP
from submanifold.losses import Loss, draws, encode
from submanifold.models import Hierarchy, Stage

# settings with which a term draws random numbers
RANDOM = {"random_dim": 2.0, "exact_up_to": 2}


def registered():
    """Each term with default settings, and with those that draw random numbers."""
    for name, field in Loss.model_fields.items():
        fields = field.annotation.model_fields
        for penalty in ("mse", "huber") if "penalty" in fields else (None,):
            chosen = {"weight": 0.5} | ({"penalty": penalty} if penalty else {})
            for random in ({}, {k: v for k, v in RANDOM.items() if k in fields}):
                yield pytest.param(
                    name,
                    field.annotation(**chosen, **random),
                    id=f"{name}-{penalty}-{'random' if random else 'default'}",
                )
        if "gradient" in fields:
            yield pytest.param(name, field.annotation(weight=0.5, gradient="encoder"), id="encoder")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return perturb(Hierarchy([Stage(RealNVP(8, 3, mixing=True), 4)]).double(), 0.3)


def forward(model, rows, shard):
    return encode(model, rows, draws(rows, torch.Generator().manual_seed(2), shard))


def value_and_gradient(term, model, rows, shard):
    model.zero_grad()
    value = term(forward(model, rows, shard))
    value.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([value.detach()[None], *gradients])


@pytest.mark.parametrize(("name", "term"), registered())
def test_every_term_is_finite_differentiable_and_independent_of_shards(name, term, model):
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).double()
    full = value_and_gradient(term, model, x, Shard())
    assert full.isfinite().all()
    assert full[1:].abs().max() > 1e-3
    for count in (2, 3):
        shards = [Shard(index, count) for index in range(count)]
        parts = [value_and_gradient(term, model, each.rows(x), each) for each in shards]
        torch.testing.assert_close(torch.stack(parts).mean(0), full)


@pytest.mark.parametrize(("name", "term"), registered())
def test_every_term_accepts_an_empty_batch(name, term, model):
    assert term(forward(model, torch.empty(0, 8).double(), Shard())).shape == ()


def test_terms_share_one_encoding_and_one_projection():
    calls = []

    class Counted(RealNVP):
        def forward(self, x, context=None):
            calls.append("forward")
            return super().forward(x)

        def inverse(self, z, context=None):
            calls.append("inverse")
            return super().inverse(z)

    terms = {param.values[0]: param.values[1] for param in registered()}
    terms = {name: terms[name] for name in ("likelihood", "reconstruction", "off_manifold")}
    Loss(**terms)(encode(Hierarchy([Stage(Counted(4), 2)]), torch.randn(3, 4)))
    assert calls == ["forward", "inverse"]
