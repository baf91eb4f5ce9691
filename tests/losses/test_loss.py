import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

from strategies import affine, perturb
from submanifold.flows import Affine, Glow, RealNVP, SoftRealNVP
from submanifold.losses import InputNoise, Loss, draws, encode
from submanifold.losses.reconstruction import Reconstruction
from submanifold.losses.terms import Likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.training import Phase, TrainingSettings


def halving():
    """z = 2 x on two coordinates, of which the first is the manifold."""
    flow = affine(torch.eye(2))
    torch.nn.init.constant_(flow.norm.log_scale, math.log(2))
    return Hierarchy([Stage(flow, 1)])


BATCH = torch.tensor([[0.5, 1.0], [0.0, 3.0]])
# by hand: z = (1, 2) and (0, 6); log|det| = 2 log 2; the projection drops the second coordinate
NATS = [0.5 * (1 + 4) + math.log(2 * math.pi) - 2 * math.log(2)]
NATS += [0.5 * 36 + math.log(2 * math.pi) - 2 * math.log(2)]
BITS = sum(NATS) / 2 / (2 * math.log(2))
MSE = (1.0**2 + 3.0**2) / 4


def test_the_loss_is_bits_per_dim_plus_lambda_times_the_mean_square():
    terms = Loss(reconstruction={"penalty": "mse", "weight": 3.0})(encode(halving(), BATCH))
    assert terms["bits_per_dim"].item() == pytest.approx(BITS, rel=1e-6)
    assert terms["mse"].item() == pytest.approx(MSE, rel=1e-6)
    assert terms["likelihood"].item() == pytest.approx(BITS, rel=1e-6)
    assert terms["reconstruction"].item() == pytest.approx(3 * MSE, rel=1e-6)
    assert terms["loss"].item() == pytest.approx(BITS + 3 * MSE, rel=1e-6)


def test_the_huber_penalty_follows_equation_2():
    # delta 2: half of 1 squared, and 2 (3 - 2 / 2) beyond; zeros elsewhere
    terms = Loss(reconstruction={"penalty": "huber", "weight": 1.0, "delta": 2.0})(
        encode(halving(), BATCH)
    )
    assert terms["reconstruction"].item() == pytest.approx((0.5 + 4.0) / 4, rel=1e-6)
    assert terms["mse"].item() == pytest.approx(MSE, rel=1e-6)
    residual = torch.linspace(-3, 3, 601, dtype=torch.float64)
    expected = torch.where(residual.abs() <= 0.7, 0.5 * residual**2, 0.7 * (residual.abs() - 0.35))
    penalty = Reconstruction(penalty="huber", weight=1, delta=0.7)
    torch.testing.assert_close(penalty.elementwise(residual), expected)
    torch.testing.assert_close(
        Reconstruction(penalty="huber", weight=1, delta=1e9).elementwise(residual),
        Reconstruction(penalty="mse", weight=1.0).elementwise(residual) / 2,
    )


def test_a_loss_has_a_term():
    with pytest.raises(
        ValueError, match=r"likelihood\.weight: expected a positive .*, got 0 for all"
    ):
        Loss(likelihood={"weight": 0.0})
    assert Loss(likelihood={"weight": 0.0}, off_manifold={"weight": 1.0}).terms.keys() == {
        "off_manifold"
    }


def test_likelihood_training_skips_the_projection_except_in_validation():
    assert set(Loss()(encode(halving(), BATCH))) == {"loss", "likelihood", "bits_per_dim"}
    with torch.no_grad():
        terms = Loss()(encode(halving(), BATCH))
    assert terms["loss"].item() == pytest.approx(BITS, rel=1e-6)
    assert terms["mse"].item() == pytest.approx(MSE, rel=1e-6)


def test_a_penalty_on_images_trains_the_inner_stage_only():
    torch.manual_seed(0)
    outer = perturb(Hierarchy([Stage(Glow((3, 4, 4), 2, 1, 4), 6)])).requires_grad_(False)
    inner = perturb(Hierarchy([Stage(RealNVP(6), 2)]))
    u = torch.randn(5, 6)
    penalty = {"penalty": "mse", "weight": 2.0}
    terms = Loss(reconstruction={**penalty, "space": "image"})(encode(inner, u, outer=outer))
    images = outer.decode(u) - outer.decode(inner.encoder_projection(u))
    assert terms["mse"].item() == pytest.approx(images.square().mean().item(), rel=1e-5)
    assert terms["bits_per_dim"].item() == pytest.approx(inner.bits_per_dim(u).mean().item())
    latent = Loss(reconstruction=penalty)(encode(inner, u, outer=outer))
    assert latent["mse"].item() == pytest.approx(
        (u - inner.encoder_projection(u)).square().mean().item()
    )
    assert latent["mse"].item() != pytest.approx(terms["mse"].item(), rel=0.01)
    terms["reconstruction"].backward()
    assert all(p.grad is None for p in outer.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in inner.parameters())


def test_input_noise_changes_the_density_but_not_the_target():
    noise = torch.randn(BATCH.shape, generator=torch.Generator().manual_seed(3))
    hierarchy, noisy = halving(), BATCH + 0.5 * noise
    draw = draws(BATCH, torch.Generator().manual_seed(3))
    loss = Loss(reconstruction={"penalty": "mse", "weight": 3.0})
    terms = loss(encode(hierarchy, BATCH, draw, InputNoise(0.5)))
    bits = hierarchy.bits_per_dim(noisy).mean()
    mse = (BATCH - hierarchy.encoder_projection(noisy)).square().mean()
    assert terms["bits_per_dim"].item() == pytest.approx(bits.item(), rel=1e-6)
    assert terms["mse"].item() == pytest.approx(mse.item(), rel=1e-6)
    assert terms["loss"].item() == pytest.approx((bits + 3 * mse).item(), rel=1e-6)
    assert terms["mse"].item() != pytest.approx(MSE, rel=1e-3)


def test_a_projection_through_the_first_stages():
    torch.manual_seed(0)
    hierarchy, x = Hierarchy([Stage(Affine(6), 4), Stage(Affine(4), 1)]), torch.randn(7, 6)
    for last_stage, projected in (
        (1, Hierarchy(hierarchy.stages[:1]).encoder_projection(x)),
        (None, hierarchy.encoder_projection(x)),
    ):
        term = Reconstruction(penalty="mse", weight=3.0, last_stage=last_stage)
        terms = Loss(reconstruction=term)(encode(hierarchy, x))
        error = (x - projected).square().mean().item()
        assert terms["mse"].item() == pytest.approx(error, rel=1e-5)
        assert terms["reconstruction"].item() == pytest.approx(3 * error, rel=1e-5)


def test_log_uniform_noise_scales_penalize_the_projection_of_clean_events():
    model = perturb(Hierarchy([Stage(SoftRealNVP(4, couplings=2, hidden=8), 2)]), 0.5)
    loss, x = Loss(reconstruction={"penalty": "mse", "weight": 3.0}), torch.randn(5, 4)
    found = loss(encode(model, x, noise=InputNoise(1.0, smallest=0.1)))
    mse = (x - model.encoder_projection(x)).square().mean().item()
    assert found["mse"].item() == pytest.approx(mse, rel=1e-6)
    assert found["reconstruction"].item() == pytest.approx(3 * mse, rel=1e-6)
    assert found["bits_per_dim"].item() != pytest.approx(model.bits_per_dim(x).mean().item())


def test_a_trimmed_likelihood_leaves_out_the_events_of_the_lowest_density():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    x[:8] += 100
    kept = Loss()(encode(halving(), x[8:]))["bits_per_dim"].item()
    trimmed = Loss(likelihood={"trim": 0.2})(encode(halving(), x))
    assert trimmed["likelihood"].item() == pytest.approx(kept, rel=1e-6)


@pytest.mark.parametrize("extreme", [1e25, math.nan])
@pytest.mark.parametrize("noise_scale", [None, torch.linspace(0, 1, 50)])
def test_a_trimmed_likelihood_leaves_out_events_whose_density_is_not_finite(extreme, noise_scale):
    model, x = halving(), torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    x[2], x[7:11] = 100.0, extreme
    encoding = replace(encode(model, x), noise_scale=noise_scale)
    kept = torch.cat([x[:2], x[3:7], x[11:]])
    expected = model.to_bits_per_dim(model.log_prob(kept)).mean()
    torch.testing.assert_close(Likelihood(trim=0.1)(encoding), expected)


def test_log_uniform_noise_without_a_penalty_takes_one_pass():
    model = perturb(Hierarchy([Stage(SoftRealNVP(4, couplings=2, hidden=8), 2)]), 0.5)
    x, noise, passes = torch.randn(5, 4), InputNoise(1.0, smallest=0.1), []
    model.stages[0].register_forward_hook(lambda *_: passes.append(1))
    Phase(model, Loss(), TrainingSettings(steps=1), noise=noise).evaluate(x)
    assert len(passes) == 1
    with torch.no_grad():  # a validation reports the projection of clean events
        Phase(model, Loss(), TrainingSettings(steps=1), noise=noise).evaluate(x)
    assert len(passes) == 3


def test_a_trimmed_likelihood_compares_events_of_similar_noise_scales():
    """At large scales the density is lower; the outliers are at small scales."""
    model = halving()
    scale = torch.linspace(0, 1, 50)
    x = torch.stack([100 * scale, torch.zeros(50)], 1)
    x[:5] = 40.0
    encoding = replace(encode(model, x), noise_scale=scale)
    expected = model.to_bits_per_dim(model.log_prob(x[5:])).mean()
    torch.testing.assert_close(Likelihood(trim=0.1)(encoding), expected)


def test_noise_scales_are_log_uniform_from_the_smallest_to_the_largest():
    model = Hierarchy([Stage(SoftRealNVP(500, couplings=2, hidden=4), 2)])
    clean = torch.zeros(2000, 500)
    draw = draws(clean, torch.Generator().manual_seed(0))
    noisy, scale = InputNoise(2.0, smallest=0.02).add(model, clean, draw)
    sizes = noisy.square().mean(1).sqrt()
    torch.testing.assert_close(sizes, 0.02 * 100**scale, rtol=0.2, atol=0)
    law = stats.loguniform(0.02, 2.0)
    assert stats.kstest(sizes.numpy(), law.cdf).statistic < 0.04
