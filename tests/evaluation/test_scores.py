import copy
import io
import json

import numpy as np
import pytest
import scipy
import torch
from PIL import Image

from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.data import dequantize
from submanifold.evaluation.scores import (
    COMBINATION,
    GREY_LEVEL,
    LEAST,
    SCORES,
    Calibration,
    calibrate,
    leading_spectrum,
    local_dimension,
    png_bits,
    score,
    score_batch,
)
from submanifold.flows import Autoencoder, Glow, RealNVP
from submanifold.models import Hierarchy, Mixture, Stage


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    found = Hierarchy([Stage(Glow((1, 8, 8), levels=2, steps=2, width=8, whiten=False), 6)])
    with torch.no_grad():
        found(dequantize(torch.from_numpy(images(64))))
    return found.double().eval()


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


NAMES = ("density", "off_manifold", "encoder_distance")


def normal_scores(count, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=count) for name in NAMES}


def test_tail_probabilities_of_normal_data_are_uniform():
    calibration = Calibration.fit(normal_scores(5000, 0), NAMES)
    scores = calibration.complete(normal_scores(5000, 1))
    for name in (*normal_scores(1, 0), "typicality", COMBINATION):
        tails = calibration.tail(name, scores[name])
        assert scipy.stats.kstest(tails, "uniform").statistic < 0.035, name


@pytest.mark.parametrize(("count", "repeats"), [(20, 40), (145, 20)])
def test_at_most_a_share_alpha_of_normal_images_has_a_p_value_of_alpha(count, repeats):
    rng = np.random.default_rng(count)
    root = np.linalg.cholesky(0.4 * np.eye(5) + 0.6)

    def draw(size):
        heavy = root @ rng.normal(size=(5, size)) / np.sqrt(rng.chisquare(3, size) / 3)
        return dict(zip(("density", "b", "c", "d", "e"), heavy, strict=True))

    shares = []
    for _ in range(repeats):
        scores = draw(count)
        calibration = Calibration.fit(scores, tuple(scores))
        tails = calibration.tail(COMBINATION, calibration.complete(draw(300))[COMBINATION])
        shares.append([(tails <= alpha).mean() for alpha in (0.05, 0.1)])
    expected, spread = np.array([0.05, 0.1]), np.std(shares, axis=0) / np.sqrt(repeats)
    assert (np.mean(shares, axis=0) <= expected + 3 * spread).all()
    assert (np.mean(shares, axis=0) >= expected / 3).all(), "not too cautious either"


def test_images_that_are_copies_count_once_if_they_are_one_group():
    alone = normal_scores(100, 0)
    copies = {name: np.repeat(values, 8) for name, values in alone.items()}
    single = Calibration.fit(alone, NAMES)
    grouped = Calibration.fit(copies, NAMES, np.repeat(np.arange(100), 8))
    assert (grouped.count, grouped.groups) == (800, 100)
    assert grouped.basis == "800 images in 100 groups"
    assert (single.groups, single.basis) == (100, "100 images")
    assert grouped.least_tail == single.least_tail == pytest.approx(1 / 101)
    others = normal_scores(2000, 2)
    for name in (*NAMES, "typicality", COMBINATION):
        tails, expected = (
            known.tail(name, known.complete(others)[name]) for known in (grouped, single)
        )
        assert np.abs(tails - expected).mean() < 0.02, name
        assert tails.min() >= 1 / 101 - 1e-9


@pytest.mark.parametrize(("count", "groups", "message"), [
    (LEAST - 1, None, "expected at least 20, .* got 19 images"),
    (1, None, "got 1 images"),
    (500, np.zeros(500, int), "got 500 images in 1 groups"),
    (500, np.arange(500) // 490, "got 500 images in 2 groups"),
])  # fmt: skip
def test_too_few_images_give_no_calibration(count, groups, message):
    with pytest.raises(UserError, match=message):
        Calibration.fit(normal_scores(count, 0), NAMES, groups)


def test_a_model_with_too_few_normal_images_has_the_reason_in_place_of_a_calibration(model):
    device = torch.device("cpu")
    model = copy.deepcopy(model).float()
    found = calibrate(model, images(LEAST, 1), device)
    assert Calibration.from_dict(found).count == LEAST
    found = calibrate(model, images(LEAST - 1, 1), device)
    assert list(found) == ["why"]
    assert "got 19 images" in found["why"]


@pytest.mark.parametrize(("value", "tail"), [(0.0, 1.0), (1.0, 31 / 101), (2.0, 1 / 101)])
def test_a_score_that_equals_normal_ones_is_no_more_extreme_than_they_are(value, tail):
    scores = {"density": np.repeat([0.0, 1.0], [70, 30])}
    calibration = Calibration.fit(scores, ("density",))
    found = calibration.tail("density", np.array([value]))
    assert found == pytest.approx(tail, abs=0.02)  # between two levels


def test_the_combination_is_about_the_mean_of_its_parts():
    scores = {**normal_scores(500, 0), "constant": np.ones(500)}
    calibration = Calibration.fit(scores, tuple(scores))
    # the trace of the inverse covariance, with its ridge, times the covariance
    assert calibration.complete(scores)[COMBINATION].mean() == pytest.approx(3 / 1.03, abs=0.05)


def test_a_score_beyond_all_has_the_least_probability_and_one_below_all_the_largest():
    calibration = Calibration.fit(normal_scores(99, 0), NAMES)
    tails = calibration.tail("density", np.array([1e9, -1e9]))
    np.testing.assert_allclose(tails, [1 / 100, 1])


def test_typicality_is_the_distance_from_the_median():
    calibration = Calibration.fit(normal_scores(501, 0), NAMES)
    middle = np.median(normal_scores(501, 0)["density"])
    both = {name: np.array([middle - 1, middle, middle + 1]) for name in normal_scores(1, 0)}
    np.testing.assert_allclose(calibration.complete(both)["typicality"], [1, 0, 1])


def test_a_calibration_survives_its_file():
    calibration = Calibration.fit(normal_scores(500, 0), NAMES)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    scores = calibration.complete(normal_scores(50, 1))
    for name, values in scores.items():
        difference = calibration.tail(name, values) - again.tail(name, values)
        assert np.abs(difference).max() < 1e-3


def test_what_is_strange_in_several_ways_is_stranger_than_in_one():
    calibration = Calibration.fit(normal_scores(2000, 0), NAMES)
    one = {"density": [0.0, 2.5], "off_manifold": [2.5, 2.5], "encoder_distance": [0.0, 2.5]}
    found = calibration.complete({name: np.array(values) for name, values in one.items()})
    assert found[COMBINATION][1] > found[COMBINATION][0]


def test_the_combination_of_normal_scores_is_their_mahalanobis_distance():
    rng = np.random.default_rng(0)
    root = np.array([[1.0, 0, 0], [0.5, 0.8, 0], [0, 0.2, 2.0]])
    draw = lambda count: dict(zip(NAMES, root @ rng.normal(size=(3, count)), strict=True))  # noqa: E731
    calibration, scores = Calibration.fit(draw(20_000), NAMES), draw(200)
    x = np.stack([scores[name] for name in NAMES])
    wanted = np.einsum("in,ij,jn->n", x, np.linalg.inv(root @ root.T), x)
    found = calibration.complete(scores)[COMBINATION]
    assert scipy.stats.spearmanr(found, wanted).statistic > 0.99
    np.testing.assert_allclose(found, wanted, rtol=0.25, atol=0.4)


def test_a_score_that_does_not_fit_the_others_is_strange_though_each_is_usual():
    rng = np.random.default_rng(0)
    one = rng.normal(size=4000)
    tied = {"density": one, "off_manifold": one + 0.05 * rng.normal(size=4000)}
    calibration = Calibration.fit(tied, ("density", "off_manifold"))
    apart = calibration.complete({"density": np.array([1.0]), "off_manifold": np.array([-1.0])})
    for name in tied:
        assert calibration.tail(name, apart[name])[0] > 0.1
    assert calibration.tail(COMBINATION, apart[COMBINATION])[0] < 1e-3


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_a_score_that_overflows_is_as_strange_as_can_be(value):
    calibration = Calibration.fit({**normal_scores(500, 0), "constant": np.ones(500)},
                                  (*NAMES, "constant"))  # fmt: skip
    scores = {name: np.array([value, 0.0]) for name in NAMES} | {"constant": np.ones(2)}
    found = calibration.complete(scores)[COMBINATION]
    assert np.isfinite(found).all()
    assert calibration.tail(COMBINATION, found) == pytest.approx([1 / 501, 1.0], abs=0.05)


def test_scores_are_what_they_say(model):
    array = images(3, 1)
    x = dequantize(torch.from_numpy(array), torch.Generator().manual_seed(0)).double()
    found = score_batch(model, x, array, set(SCORES) - {"typicality"})
    u, v, log_prob = model(x)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(found["density"], -log_prob.detach())
    torch.testing.assert_close(found["on_manifold"], -normal.log_prob(u).sum(1).detach())
    torch.testing.assert_close(found["off_manifold"], v.square().sum(1).detach() / 2)
    errors = (x - model.project(x)).square().mean((1, 2, 3)).detach()
    torch.testing.assert_close(found["encoder_distance"], errors)
    assert (found["nearest_distance"] <= errors * (1 + 1e-6)).all()
    bits = 64 * 8 - log_prob.detach() / np.log(2)
    torch.testing.assert_close(found["complexity"], bits - torch.tensor(png_bits(array)))


def test_the_density_on_the_manifold_is_that_of_the_change_of_variables(model):
    model = perturb(copy.deepcopy(model).double(), 0.2)
    array = images(2, 2)
    x = dequantize(torch.from_numpy(array), torch.Generator().manual_seed(0)).double()
    found = score_batch(model, x, array, {"manifold_density", "dimension"})
    u = model.encode(x)[0].detach()
    for number in range(2):
        jacobian = torch.func.jacrev(lambda one: model.decode(one[None])[0].flatten())(u[number])
        volume = torch.linalg.slogdet(jacobian.T @ jacobian)[1] / 2
        assert volume.abs() > 0.5, "a model that changes volumes"
        wanted = volume - torch.distributions.Normal(0.0, 1.0).log_prob(u[number]).sum()
        torch.testing.assert_close(found["manifold_density"][number], wanted.detach())
        values = torch.linalg.eigvalsh(jacobian.T @ jacobian)
        torch.testing.assert_close(
            -found["dimension"][number], local_dimension(values[None], 64)[0].detach()
        )


def test_the_spectrum_is_of_the_leading_coordinates(model):
    u = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert leading_spectrum(model, u, most=4).shape == (2, 4)
    assert leading_spectrum(model, u).shape == (2, 6)


def test_the_number_of_a_chart_is_no_coordinate():
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
        wanted = {
            "on_manifold": -on_chart,
            "manifold_density": metric.slogdet()[1] / 2 - on_chart - others[0],
            "dimension": -local_dimension(torch.linalg.eigvalsh(metric)[None], 4)[0],
        }
        for name, value in wanted.items():
            assert found[name][at].item() == pytest.approx(value.item(), rel=1e-6), name
    assert leading_spectrum(mixture, mixture.encode(x)[0].detach(), most=2).shape == (12, 2)


def test_directions_far_above_a_grey_level_count_and_those_far_below_do_not():
    values = torch.tensor([[1e-12, GREY_LEVEL**2, 1.0, 9.0]], dtype=torch.float64)
    assert local_dimension(values, 1).item() == pytest.approx(2.5, abs=1e-3)


def test_png_bits_are_those_of_files():
    array = np.concatenate([images(1), np.zeros((1, 1, 8, 8), np.uint8)])
    bits = png_bits(array)
    buffer = io.BytesIO()
    Image.fromarray(array[0, 0]).save(buffer, "png", optimize=True)
    assert bits[0] == 8 * len(buffer.getvalue())
    assert bits[1] < bits[0]
    assert png_bits(np.repeat(array, 3, 1))[1] < png_bits(np.repeat(array, 3, 1))[0]


def test_scores_are_the_same_every_time(model):
    array = images(10)
    one, other = (score(model.float(), array) for _ in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_model_without_a_density_is_scored_by_all_else():
    torch.manual_seed(0)
    model = Hierarchy([Stage(Autoencoder((1, 8, 8), 6, width=4), 6)]).eval()
    with torch.no_grad():
        model(dequantize(torch.from_numpy(images(64))))
    scores = score(model, images(50))
    assert list(scores) == ["on_manifold", "off_manifold", "encoder_distance"]
    known = Calibration.fit(scores, ("density", *scores, "complexity"))
    assert known.combined == tuple(scores)
    found = Calibration.from_dict(json.loads(json.dumps(known.to_dict()))).complete(scores)
    assert list(found) == [*scores, COMBINATION]
    assert np.isfinite(known.tail(COMBINATION, found[COMBINATION])).all()
