import io
import json

import numpy as np
import pytest
import scipy
import torch
from PIL import Image

from submanifold.data import dequantize
from submanifold.evaluation.scores import (
    COMBINATION,
    GREY_LEVEL,
    SCORES,
    Calibration,
    leading_spectrum,
    local_dimension,
    png_bits,
    score,
    score_batch,
)
from submanifold.flows import Autoencoder, Glow
from submanifold.manifold import Hierarchy, Stage


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
    array = images(2, 2)
    x = dequantize(torch.from_numpy(array), torch.Generator().manual_seed(0)).double()
    found = score_batch(model, x, array, {"manifold_density", "dimension"})
    u = model.encode(x)[0].detach()
    for number in range(2):
        jacobian = torch.func.jacrev(lambda one: model.decode(one[None])[0].flatten())(u[number])
        volume = torch.linalg.slogdet(jacobian.T @ jacobian)[1] / 2
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
