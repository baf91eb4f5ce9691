import math

import pytest
import torch

from strategies import assert_close, perturb
from submanifold.flows import RealNVP, initialize
from submanifold.losses import Loss, encode
from submanifold.losses.reconstruction import LEAST_RESPONSIBILITY, Reconstruction
from submanifold.models import Hierarchy, Mixture, Stage


def mixture(charts=3, dim=2, inner=1, scale=0.3, mixing=True):
    torch.manual_seed(0)
    flow = {"couplings": 4, "hidden": 8, "mixing": mixing}
    made = Mixture(
        [
            Hierarchy([Stage(RealNVP(dim, **flow), dim), Stage(RealNVP(dim, **flow), inner)])
            for _ in range(charts)
        ]
    ).double()
    perturb(made, scale)
    return made


def test_the_density_is_the_weighted_sum_over_charts():
    made, x = mixture(), torch.randn(20, 2).double()
    shares = made.logits.softmax(0)
    dense = sum(p * chart.log_prob(x).exp() for p, chart in zip(shares, made.charts, strict=True))
    assert_close(made.log_prob(x), dense.log())
    assert len(set(shares.tolist())) == 3, "shares that differ"


def test_events_are_encoded_by_the_responsible_chart():
    made, x = mixture(), 2 * torch.randn(50, 2).double()
    u, v = made.encode(x)
    number = u[:, -1].long()
    assert len(number.unique()) > 1
    assert_close(made.decode(u, v), x)
    for k, chart in enumerate(made.charts):
        own = number == k
        inside, outside = chart.encode(x[own])
        assert torch.equal(u[own, :-1], inside)
        assert torch.equal(v[own], outside)
        assert_close(made.encoder_projection(x[own]), chart.encoder_projection(x[own]))
        assert torch.equal(made.encode_on_charts(x[own]).joint.argmax(0), number[own])


def test_samples_come_from_charts_in_proportion_to_pi():
    made = mixture(charts=2)
    with torch.no_grad():
        made.logits.copy_(torch.tensor([0.0, math.log(3)]))
    drawn = made.sample(4000, generator=torch.Generator().manual_seed(0))
    again = made.sample(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    # a sample is a point of the chart that made it
    missed = torch.stack([(chart.project(drawn) - drawn).norm(dim=1) for chart in made.charts])
    share = (missed.argmin(0) == 1).double().mean().item()
    assert share == pytest.approx(0.75, abs=0.04)


def test_charts_are_initialized_from_clusters():
    torch.manual_seed(0)
    made = Mixture([Hierarchy([Stage(RealNVP(2, mixing=True), 1)]) for _ in range(2)])
    x = torch.cat([torch.randn(60, 2) - 20, torch.randn(20, 2) + 20])
    initialize(made, x, [made])
    assert sorted(made.logits.softmax(0).tolist()) == pytest.approx([0.25, 0.75])
    number = made.encode(x)[0][:, -1]
    assert len(number[:60].unique()) == len(number[60:].unique()) == 1
    assert number[0] != number[-1]


def test_penalties_are_weighted_by_responsibilities():
    made, x = mixture(), torch.randn(20, 2).double()
    encoding = encode(made, x)
    shares = made.encode_on_charts(x).joint.softmax(0)
    shares = shares * (shares > LEAST_RESPONSIBILITY)
    errors = torch.stack([(x - c.encoder_projection(x)).square().mean(1) for c in made.charts])
    assert_close(
        Reconstruction(penalty="mse", weight=1.0)(encoding), (shares * errors).sum(0).mean()
    )
    values = Loss(reconstruction={"penalty": "mse", "weight": 2.0})(encoding)
    assert_close(values["mse"], (shares * errors).sum(0).mean())
    assert_close(values["loss"], made.bits_per_dim(x).mean() + 2 * values["mse"])


def test_the_penalty_does_not_move_the_responsibilities():
    made, x = mixture(), torch.randn(20, 2).double()
    encoding = encode(made, x)
    Reconstruction(penalty="mse", weight=1.0)(encoding).backward(retain_graph=True)
    assert made.logits.grad is None or not made.logits.grad.any()
    encoding.log_prob.sum().backward()
    assert made.logits.grad.abs().max() > 0.01
