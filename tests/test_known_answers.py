"""Every known answer is in its interval, and docs/evidence/known-answers.csv has these answers."""

import csv
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import known_answers
from known_answers import CASES
from submanifold.data import synthetic

pytestmark = pytest.mark.pipeline

VARIANCES = np.array([4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025])


def bits(nats, dim=8):
    return nats / (dim * math.log(2))


def gaussian_nll(model, data):
    """-log density that a Gaussian gives to another, by the variances of both."""
    return 0.5 * np.sum(np.log(2 * math.pi * model) + data / model)


def huber(x, delta=0.1):
    return x**2 / 2 if abs(x) < delta else delta * (abs(x) - delta / 2)


def ring_entropy(sigma):
    """Entropy of the noisy circle of radius 1, by its density along a ray."""
    ring = synthetic.Circle(noise=sigma)

    def integrand(r):
        log_density = ring.log_prob(np.array([[r, 0.0]]))[0]
        return -2 * math.pi * r * math.exp(log_density) * log_density

    return quad(integrand, 1 - 9 * sigma, 1 + 9 * sigma)[0]


def standard_normal_bits(quantised):
    """Of U(-1/2, 1/2), whose variance is 1/12."""
    return quantised + bits(gaussian_nll(np.ones(1), 1 / 12), 1)


def arc_variance(bend=1.2, radius=2.0, thickness=0.075):
    """Variance along the axis of symmetry of an arc, by its moments."""
    mean = quad(math.cos, 0, bend)[0] / bend
    square = quad(lambda t: math.cos(t) ** 2, 0, bend)[0] / bend
    return (radius**2 + thickness**2) * square - (radius * mean) ** 2


NLL = gaussian_nll(VARIANCES, VARIANCES)
VON_MISES = synthetic.VonMisesCircle(radius=3.0, concentration=8.0)
FORMULAS = {
    1: [NLL, bits(NLL), VARIANCES[3:].sum() / 8],
    2: [
        bits(gaussian_nll(VARIANCES + 0.01, VARIANCES + 0.01)),
        bits(gaussian_nll(VARIANCES + 0.01, VARIANCES)),
        (3 * 0.01 + VARIANCES[3:].sum()) / 8,
    ],
    3: [
        bits(NLL),
        0.5,
        (VARIANCES[:4].sum() / 2 + VARIANCES[4:].sum()) / 8,
        VARIANCES[4:].sum() / 8,
        VARIANCES[2:].sum() / 8,
    ],
    4: [1.0, 0.05 * huber(5), 0.05 * 5**2],
    5: [standard_normal_bits(8), 8.0],
    7: [
        ring_entropy(0.1),
        ring_entropy(0.05),
        VON_MISES.manifold_entropy,
        math.exp(VON_MISES.manifold_log_prob(np.array([[3.0, 0.0]]))[0]),
    ],
    8: [
        synthetic.Sphere().manifold_entropy,
        *(synthetic.VmfSphere(concentration=kappa).manifold_entropy for kappa in (5.0, 10.0)),
    ],
    11: [
        *(np.cumsum([0.075**2, 0.15**2, 0.3**2]) / 4),
        *(np.cumsum([0.15**2, 0.3**2, arc_variance()]) / 4),
    ],
    9: [synthetic.SwissRoll().manifold_entropy, synthetic.Paraboloid().manifold_entropy],
}


SURFACES = 8, 9, 10, 11  # take half of the time: tests/test_known_surfaces.py
SLOW = 6, 7, 8, 9, 11


def parameters(cases):
    """Cases as parameters of a fixture; those that train for half a minute are marked slow."""
    slow = pytest.mark.slow
    return [pytest.param(case, marks=slow if case in SLOW else ()) for case in cases]


def answers_of(case):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield CASES[case]()
    torch.set_num_threads(threads)


OTHERS = parameters(case for case in CASES if case not in SURFACES)


@pytest.fixture(scope="module", params=OTHERS, ids="case {}".format)
def found(request):
    yield from answers_of(request.param)


def test_every_value_is_in_its_interval(found):
    outside = [
        f"{answer.quantity}: {answer.reached:.6g}, expected {known_answers.allowed(answer)}"
        for answer in found
        if not answer.holds
    ]
    assert not outside, "\n".join(outside)


def test_every_exact_value_follows_from_a_formula(found):
    # 0 and 1 are differences, masses and answers to yes or no
    used = {answer.exact for answer in found} - {None, 0.0, 1.0}
    formulas = set(FORMULAS.get(found[0].case, [])) - {1.0}
    assert sorted(used) == pytest.approx(sorted(formulas), abs=6e-6)


def test_the_page_names_every_quantity_and_its_exact_value(found):
    with known_answers.PAGE.open(encoding="utf-8", newline="") as file:
        rows = [row[:3] for row in csv.reader(file) if row[0] == str(found[0].case)]
    assert rows == [known_answers.row(answer)[:3] for answer in found]
