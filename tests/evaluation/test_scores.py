import copy

import numpy as np
import pytest
import torch

from strategies import initialized_glow, perturb
from submanifold.data import Events, dequantize
from submanifold.data.tables import Preprocessor
from submanifold.evaluation import scores
from submanifold.evaluation.calibration import calibrate
from submanifold.evaluation.scores import (
    GREY_LEVEL,
    SCORES,
    leading_spectrum,
    local_dimension,
    png_bits,
    score,
    score_batch,
)
from submanifold.flows import RealNVP, SoftRealNVP, make_conditional
from submanifold.models import Hierarchy, Mixture, Stage


@pytest.fixture(scope="module")
def model():
    return initialized_glow(images(64), 6, steps=2, whiten=False).double()


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def test_scores_agree_with_their_definitions(model):
    array = images(3, 1)
    x = dequantize(torch.from_numpy(array), torch.Generator().manual_seed(0)).double()
    found = score_batch(model, x, array, set(SCORES) - {"typicality"})
    u, v, log_prob = model(x)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(found["density"], -log_prob.detach())
    torch.testing.assert_close(found["on_manifold"], -normal.log_prob(u).sum(1).detach())
    torch.testing.assert_close(found["off_manifold"], v.square().sum(1).detach() / 2)
    errors = (x - model.encoder_projection(x)).square().mean((1, 2, 3)).detach()
    torch.testing.assert_close(found["encoder_distance"], errors)
    assert (found["nearest_distance"] <= errors * (1 + 1e-6)).all()
    bits = 64 * 8 - log_prob.detach() / np.log(2)
    torch.testing.assert_close(found["complexity"], bits - torch.tensor(png_bits(array)))


def test_manifold_density_obeys_the_change_of_variables(model):
    model = perturb(copy.deepcopy(model).double(), 0.2)
    array = images(2, 2)
    x = dequantize(torch.from_numpy(array), torch.Generator().manual_seed(0)).double()
    found = score_batch(model, x, array, {"manifold_density", "dimension"})
    u = model.encode(x)[0].detach()
    for number in range(2):
        jacobian = torch.func.jacrev(lambda one: model.decode(one[None])[0].flatten())(u[number])
        volume = torch.linalg.slogdet(jacobian.T @ jacobian)[1] / 2
        assert volume.abs() > 0.5, "the model changes volumes"
        expected = volume - torch.distributions.Normal(0.0, 1.0).log_prob(u[number]).sum()
        torch.testing.assert_close(found["manifold_density"][number], expected.detach())
        values = torch.linalg.eigvalsh(jacobian.T @ jacobian)
        torch.testing.assert_close(
            -found["dimension"][number], local_dimension(values[None], (1, 8, 8))[0].detach()
        )


def test_scores_of_a_mixture_ignore_the_chart_number():
    torch.manual_seed(0)
    mixture = Mixture([Hierarchy([Stage(RealNVP(4), dim=3)]) for _ in range(3)]).double()
    perturb(mixture, 0.3)
    x = 2 * torch.randn(12, 4).double()
    names = ("on_manifold", "manifold_density", "dimension")
    found = score_batch(mixture, x, np.empty(0), names)
    with torch.no_grad():
        densities = torch.stack([chart.log_prob(x) for chart in mixture.charts], 1)
        numbers = (densities + mixture.logits.log_softmax(0)).argmax(1)
    assert len(numbers.unique()) == 3
    normal = torch.distributions.Normal(0.0, 1.0)
    for at, chart in enumerate(mixture.charts[number] for number in numbers.tolist()):
        u = chart.encode(x[at : at + 1])[0][0].detach()
        jacobian = torch.func.jacrev(lambda one, chart=chart: chart.decode(one[None])[0])(u)
        metric = jacobian.T @ jacobian
        on_chart = normal.log_prob(u).sum()
        y = chart.decode(u[None])
        others = mixture.log_prob(y) - chart.log_prob(y)  # all charts at the projection
        expected = {
            "on_manifold": -on_chart,
            "manifold_density": metric.slogdet()[1] / 2 - on_chart - others[0],
            "dimension": -local_dimension(torch.linalg.eigvalsh(metric)[None], (4,))[0],
        }
        for name, value in expected.items():
            assert found[name][at].item() == pytest.approx(value.item(), rel=1e-6), name
    assert leading_spectrum(mixture, mixture.encode(x)[0].detach(), count=2).shape == (12, 2)


@pytest.mark.parametrize("code_flow", [[], [Stage(RealNVP(3), 3)]])
def test_views_at_another_dimension_keep_the_noise_scale_but_no_p_values(code_flow):
    torch.manual_seed(0)
    model = perturb(Hierarchy([Stage(SoftRealNVP(5), 3), *code_flow]), 0.5)
    rows = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    calibration = calibrate(model, rows, torch.device("cpu"))
    model = model.with_facts(calibration={**calibration, "noise_scale": 0.7})
    view, names = model.at_dim(2), ["density", "smoothed_density"]
    found, expected = score(view, rows[:9], names), score(model, rows[:9], names)
    np.testing.assert_allclose(found["smoothed_density"], expected["smoothed_density"], rtol=1e-5)
    assert not np.allclose(found["smoothed_density"], found["density"], rtol=0.01)
    assert view.calibration.keys() == {"noise_scale", "why"}
    assert {"quantiles", "groups"} < model.calibration.keys()


def test_local_dimension_counts_directions_above_a_grey_level():
    values = torch.tensor([[1e-12, GREY_LEVEL**2, 1.0, 9.0]], dtype=torch.float64)
    assert local_dimension(values, (1, 1, 1)).item() == pytest.approx(2.5, abs=1e-3)


def test_training_rows_without_a_finite_density_do_not_determine_the_effect_of_missing_values():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 3))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    table = Preprocessor.fit(rows)
    events = table.transform(rows, salt=np.arange(len(rows)))
    torch.manual_seed(0)
    flow = make_conditional(SoftRealNVP(events.x.shape[1]), columns=3)
    model = perturb(Hierarchy([Stage(flow, 2)]), 0.5)
    model = model.with_facts(data={"table": table.to_dict()})
    expected = scores.missing_offsets(model, events)
    chosen = events[~np.isnan(rows).any(1)][:1]
    extreme = np.array(chosen.x)
    extreme[0, 0] = 1e25
    both = Events.concatenate([Events(extreme, chosen.context), events])
    found = scores.missing_offsets(model, both)
    assert len(expected) == 3
    np.testing.assert_allclose(found, expected, rtol=1e-6)
