"""Small calibrated models of images and of a table, for tests of inference."""

import io

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import stats

from strategies import initialized_glow, linear_gaussian, perturb
from submanifold.data import Events
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.preprocessor import events_of
from submanifold.evaluation.calibration import Calibration, calibrate
from submanifold.evaluation.scores import QUICK, score
from submanifold.flows import RealNVP, make_conditional
from submanifold.models import Hierarchy, Stage

MATRIX = np.array([[2.0, 0.5], [-1.0, 3.0]])
MEAN = np.array([10.0, -4.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])


def smooth_images(count, seed, channels=3):
    """Images with a vertical gradient and little noise, uint8 (count, channels, 8, 8)."""
    rng = np.random.default_rng(seed)
    gradient = np.linspace(60, 180, 8)[:, None] * np.ones(8)
    brightness = rng.normal(0, 15, (count, channels, 1, 1))
    pixels = gradient + brightness + rng.normal(0, 3, (count, channels, 8, 8))
    return pixels.clip(0, 255).astype(np.uint8)


def calibrated_model(channels=3):
    """A Glow initialized from smooth images and calibrated on 200 others."""
    model = initialized_glow(smooth_images(256, 0, channels), 16, steps=2, whiten=channels == 3)
    model.stages[0].add_rotation()
    data = {"size": 8, "channels": channels, "crop": "square", "margin": 0}
    held_out = score(model, smooth_images(200, 1, channels))
    return model.with_facts(data=data, calibration=Calibration.fit(held_out, QUICK).to_dict())


def table_rows(count, seed):
    """Rows of continuous, quantized and categorical columns of different scales."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "weight": rng.normal(70, 12, count),
            "income": rng.lognormal(8, 1, count),
            "age": rng.integers(18, 80, count),
            "city": rng.choice(["Bern", "Rome"], count),
        }
    )


def table_model(flow, dim, train, held_out):
    """A model of the columns of a table, calibrated on other rows."""
    preprocessor = Preprocessor.fit(train)
    if len(preprocessor.maskable):
        size = len(preprocessor.maskable)
        make_conditional(flow, columns=size, mask=size)
    model = perturb(Hierarchy([Stage(flow, dim)]), 0.1).eval()
    events, of_training = (preprocessor.transform(rows) for rows in (held_out, train))
    return described(model, {"table": preprocessor.to_dict()}, events, of_training)


def described(model, data, held_out, train=None):
    """A model of a table with a description of its data, calibrated on held-out events."""
    model = model.with_facts(data={**data, "label": None})
    calibration = calibrate(model, held_out, torch.device("cpu"), train=train)
    return model.with_facts(calibration=calibration)


def png(image):
    """Encode an image (channels, height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


def conditional_rows(count, seed):
    """Rows of weight and height, whose means are linear in age and dose."""
    rng = np.random.default_rng(seed)
    given = np.stack([rng.uniform(20, 80, count), rng.normal(3, 2, count)], 1)
    y = MEAN + given @ MATRIX.T + rng.multivariate_normal([0, 0], COVARIANCE, count)
    return pd.DataFrame(
        {"weight": y[:, 0], "age": given[:, 0], "height": y[:, 1], "dose": given[:, 1]}
    )


def conditional_log_prob(table):
    """Exact log-density of weight and height given age and dose."""
    mean = MEAN + table[["age", "dose"]].to_numpy() @ MATRIX.T
    residual = table[["weight", "height"]].to_numpy() - mean
    return stats.multivariate_normal([0, 0], COVARIANCE).logpdf(residual)


def conditional_table_model():
    """The exact density of weight and height given age and dose, with a manifold of dimension 1."""
    inputs, given = Preprocessor.fit(conditional_rows(500, 0)).split(["age", "dose"])
    (m, s), (mc, sc) = (
        np.array([(each.origin + each.offset, each.scale) for each in p.columns]).T
        for p in (inputs, given)
    )
    a, b = MATRIX * sc / s[:, None], (MEAN + MATRIX @ mc - m) / s
    scale_tril = np.linalg.cholesky(COVARIANCE) / s[:, None]
    flow = linear_gaussian(*map(torch.from_numpy, (a, b, scale_tril))).float()
    model = Hierarchy([Stage(flow, dim=1)]).eval()
    data = {"table": inputs.to_dict(), "condition": given.to_dict()}
    table = conditional_rows(200, 1)
    held_out = Events(
        inputs.transform(table[["weight", "height"]]).x, given.indicators(table[["age", "dose"]])
    )
    return described(model, data, held_out)


def mixed_rows(count, seed):
    """Rows whose columns are of all kinds and have missing values, a condition of them, too."""
    rng = np.random.default_rng(seed)
    dose, ward = rng.integers(1, 9, count), rng.choice(["A", "B", "C"], count)
    rows = pd.DataFrame(
        {
            "weight": 60 + 3.0 * dose + rng.normal(0, 4, count),
            "dose": dose,
            "visits": rng.poisson(4, count) + dose,
            "ward": ward,
            "age": rng.normal(50, 9, count),
            "city": np.where(rng.random(count) < 0.7, ward, "D"),
        }
    )
    return rows.mask(rng.random(rows.shape) < 0.1)


def mixed_conditional_model():
    """A model of :func:`mixed_rows` given dose, ward and age, calibrated on other rows."""
    torch.manual_seed(0)
    inputs, given = Preprocessor.fit(mixed_rows(400, 0)).split(["dose", "ward", "age"])
    size = len(inputs.maskable) + given.indicator_count
    flow = make_conditional(RealNVP(len(inputs.varying)), columns=size, mask=len(inputs.maskable))
    model = perturb(Hierarchy([Stage(flow, dim=2)]), 0.1).eval()
    data = {"table": inputs.to_dict(), "condition": given.to_dict()}
    train, held_out = (events_of(inputs, given, mixed_rows(100, seed)) for seed in (3, 1))
    return described(model, data, held_out, train)
