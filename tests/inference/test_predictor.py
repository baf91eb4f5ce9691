"""The contract of a predictor: images, rows of tables, vectors; conditional or not; threads."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

from calibrated import (
    calibrated_model,
    conditional_rows,
    conditional_table_model,
    png,
    smooth_images,
    table_model,
)
from calibrated import table_rows as rows
from strategies import perturb
from submanifold import Predictor
from submanifold.common.errors import UserError
from submanifold.data import Events, dequantize
from submanifold.data.batches import as_input, to_context
from submanifold.data.images import load_pictures
from submanifold.evaluation.calibration import calibrate
from submanifold.flows import (
    Glow,
    RealNVP,
    SoftRealNVP,
    Tabular,
    make_conditional,
    with_noise_scale,
)
from submanifold.models import Hierarchy, Stage
from submanifold.models.io import load_tensors, save_tensors


@dataclass
class Case:
    """A model, inputs in the user's units, and arguments that the model needs."""

    model: Any
    x: Any
    of_events: dict[str, Any]
    of_samples: dict[str, Any]

    @property
    def predictor(self):
        return Predictor(self.model, batch_size=7)


def points(count, seed):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def with_calibration(model, events):
    return model.with_facts(calibration=calibrate(model, events, torch.device("cpu")))


def labelled():
    flow = perturb(make_conditional(Glow((1, 8, 8), levels=2, steps=1, width=4), classes=3), 0.05)
    model = Hierarchy([Stage(flow, dim=9)])
    with torch.no_grad():
        model(dequantize(torch.from_numpy(smooth_images(64, 0, 1))), torch.arange(64) % 3)
    model = model.with_facts(data={"size": 8, "channels": 1, "crop": "square"})
    events = Events(smooth_images(40, 1, 1), np.arange(40) % 3)
    labels = {"label": np.arange(20) % 3}
    return Case(
        with_calibration(model.eval(), events), smooth_images(20, 2, 1), labels, {"label": 2}
    )


def table(flow):
    model = table_model(flow, 2, rows(500, 0), rows(100, 1))
    return Case(model, rows(20, 2).set_axis(range(5, 25)), {}, {})


CASES = {
    "images": lambda: Case(calibrated_model(), smooth_images(20, 2), {}, {}),
    "images with labels": labelled,
    "table": lambda: table(RealNVP(4)),
    "noise-conditional table": lambda: table(SoftRealNVP(4)),
    "table with a condition": lambda: Case(
        conditional_table_model(),
        conditional_rows(20, 2),
        {},
        {"condition": conditional_rows(3, 4)[["dose", "age"]]},
    ),
    "vectors": lambda: Case(
        with_calibration(perturb(Hierarchy([Stage(RealNVP(4), 2)]), 0.2).eval(), points(100, 0)),
        points(20, 1),
        {},
        {},
    ),
}


@cache
def build(name):
    torch.manual_seed(0)
    return CASES[name]()


@pytest.fixture(params=CASES)
def case(request):
    return build(request.param)


def part(x, numbers):
    return x.iloc[numbers] if isinstance(x, pd.DataFrame) else x[numbers]


def inputs(case):
    events = case.predictor.events(case.x, **case.of_events)
    return as_input(events.x), to_context(events)


@torch.no_grad()
def over_draws(case, x, context, noise_scale=None):
    """Log-densities, of rows of a table the log of the mean over eight dequantizations."""
    if noise_scale is not None:
        context = with_noise_scale(context, x.new_full(x.shape[:1], noise_scale))
    if "table" not in case.model.data:
        return case.model.log_prob(x, context).numpy()
    draws = zip(*case.predictor.preprocessor.draw(x.numpy(), None, 8), strict=True)
    log_probs = [
        case.model.log_prob(torch.from_numpy(drawn), context).double().numpy() + log_weights
        for drawn, log_weights in draws
    ]
    return special.logsumexp(log_probs, axis=0) - np.log(8)


def test_scores_are_those_of_the_model(case):
    model, (x, context) = case.model, inputs(case)
    with torch.no_grad():
        u, v, log_prob = model(x, context)
        projections = model.encoder_projection(x, context), model.project(x, True, context)
    scores = case.predictor.score(case.x, nearest=True, alpha=0.2, **case.of_events)
    assert scores.index.tolist() == [*getattr(case.x, "index", range(20))]
    for name, code in (("code_log_prob", u), ("off_manifold_log_prob", v)):
        expected = stats.norm.logpdf(code.numpy()).sum(1)
        np.testing.assert_allclose(scores[name], expected, rtol=1e-4)
    for name, projection in zip(("encoder_mse", "nearest_mse"), projections, strict=True):
        error = (x - projection).square().flatten(1).mean(1)
        np.testing.assert_allclose(scores[name], error, rtol=1e-3, atol=1e-6)
    volume = 0
    if "table" in model.data:
        volume = case.predictor.preprocessor.log_dets(x.numpy(), None)
        log_prob = torch.from_numpy(over_draws(case, x, context))
        assert "bits_per_dim" not in scores
    else:
        bits = (8 if x.ndim == 4 else 0) - log_prob.numpy() / (model.event_dim * np.log(2))
        np.testing.assert_allclose(scores["bits_per_dim"], bits, rtol=1e-4)
    np.testing.assert_allclose(scores["log_prob"], log_prob.numpy() + volume, rtol=1e-4)
    assert ("complexity" in scores) == (x.ndim == 4)
    assert scores["p_value"].between(1 / (model.calibration["groups"] + 1), 1).all()
    assert (scores["ood"] == (scores["p_value"] <= 0.2)).all()


def test_log_densities_are_in_the_units_of_the_inputs(case):
    model, (x, context) = case.model, inputs(case)
    scale = model.calibration["noise_scale"]
    volume = -model.event_dim * np.log(256) if x.ndim == 4 else 0.0
    if "table" in model.data:
        volume = case.predictor.preprocessor.log_dets(x.numpy(), None)
    for noise_scale in (None, scale):
        found = case.predictor.log_prob(case.x, noise_scale, **case.of_events)
        expected = over_draws(case, x, context, noise_scale)
        np.testing.assert_allclose(found, expected + volume, rtol=1e-4)


def test_codes_decode_to_the_events_and_to_projections(case):
    model, (x, context) = case.model, inputs(case)
    u, v = case.predictor.encode(case.x, **case.of_events)
    assert (u.shape[1], v.shape[1]) == model.code_dims
    with torch.no_grad():
        decoded = model.decode(torch.from_numpy(u).to(x), torch.from_numpy(v).to(x), context)
    np.testing.assert_allclose(decoded, x, atol=1e-3)
    projected, errors = case.predictor.project(case.x, nearest=True, **case.of_events)
    assert type(projected) is type(case.x)
    assert (errors >= 0).all()
    if context is not None:
        return
    nearest, _ = case.predictor.encode(case.x, "nearest")
    points = case.predictor.decode(nearest)
    if isinstance(points, pd.DataFrame):
        pd.testing.assert_frame_equal(points.set_axis(projected.index), projected)
    else:
        np.testing.assert_allclose(points.astype(float), projected, atol=1 if x.ndim == 4 else 1e-4)


@pytest.mark.parametrize("deviations", [1, 10, 100, 1000])
def test_codes_of_vectors_far_from_the_data_decode_to_them(deviations):
    torch.manual_seed(0)
    predictor = Predictor(perturb(Hierarchy([Stage(Tabular(6), 6)]), 0.3))
    x = (deviations * torch.randn(200, 6)).numpy()
    error = np.linalg.norm(predictor.decode(predictor.encode(x)[0]) - x, axis=1)
    assert (error < 1e-6 * np.linalg.norm(x, axis=1)).all()  # 40 times the norm in float32


def test_an_event_has_the_same_results_in_any_batch(case):
    numbers = [17, 3, 9]
    of_events = {name: value[numbers] for name, value in case.of_events.items()}
    whole = case.predictor.score(case.x, **case.of_events).iloc[numbers]
    few = Predictor(case.model).score(part(case.x, numbers), **of_events)
    pd.testing.assert_frame_equal(whole.set_axis(range(3)), few.set_axis(range(3)), rtol=1e-3)


def test_samples_depend_only_on_the_seed(case):
    first, again, other = (
        case.predictor.sample(5, 0.7, seed, **case.of_samples) for seed in (0, 0, 1)
    )
    assert type(first) is type(case.x)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(first) == 5 * len(case.of_samples.get("condition", [0]))


def test_samples_of_counts_are_in_the_range_of_the_training_rows():
    training = rows(500, 0)
    predictor = Predictor(table_model(RealNVP(4), 3, training, rows(100, 1)))
    ages = predictor.sample(500, temperature=10)["age"]
    assert (ages.min(), ages.max()) == (training["age"].min(), training["age"].max())


def results(predictor, case, pool):
    """Results of all methods, for the two halves of the events at once."""
    methods = predictor.score, predictor.encode, predictor.project, predictor.log_prob
    calls = [(predictor.sample, (4, 1.0, seed), case.of_samples) for seed in (0, 1)]
    for half in (slice(0, 10), slice(10, 20)):
        of_events = {name: value[half] for name, value in case.of_events.items()}
        calls += [(method, (part(case.x, half),), of_events) for method in methods]
    found = pool(lambda call: call[0](*call[1], **call[2]), 2 * calls)
    return [
        array for result in found for array in (result if isinstance(result, tuple) else (result,))
    ]


def test_threads_share_a_predictor(case):
    expected, interval = results(case.predictor, case, map), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            found = results(case.predictor, case, threads.map)
    finally:
        sys.setswitchinterval(interval)
    assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("name", ["table", "table with a condition"])
def test_columns_are_found_by_name_and_those_of_arrays_by_position(name, caplog):
    case = build(name)
    predictor, frame = case.predictor, case.x
    expected = predictor.score(frame)
    shuffled = predictor.score(frame[[*frame][::-1]].assign(note="x"))
    pd.testing.assert_frame_equal(shuffled, expected)
    assert caplog.text.count("columns note are unknown to the model; they are ignored") == 1
    array = frame[[*predictor.columns.inputs]].to_numpy()
    if predictor.condition is not None:
        with pytest.raises(UserError, match=r"^table: expected a DataFrame, whose names tell"):
            predictor.score(array)
        return
    pd.testing.assert_frame_equal(predictor.score(array).set_axis(frame.index), expected)
    projected, _ = predictor.project(array)
    assert np.array_equal(projected, predictor.project(frame)[0].to_numpy())


def test_images_are_taken_as_files_are_decoded(tmp_path):
    case = build("images")
    large = smooth_images(3, 3).repeat(2, 2).repeat(3, 3)  # 16 x 24 pixels
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, large, strict=True):
        path.write_bytes(png(image))
    expected = load_pictures(paths, **case.model.data)
    last = large.transpose(0, 2, 3, 1)
    for images in (last, last / 255, (last / 255).astype(np.float32)):
        assert np.array_equal(case.predictor.events(images).x, expected)
    grey = build("images with labels").predictor
    for images in (last[..., 0], last[..., :1]):
        assert grey.events(images, label=1).x.shape == (3, 1, 8, 8)
    assert np.array_equal(case.predictor.events(case.x).x, case.x)


def test_projections_have_the_index_of_their_rows():
    case = build("table")
    frame, _ = case.predictor.project(case.x)
    assert frame.index.tolist() == case.x.index.tolist() == [*range(5, 25)]
    pd.testing.assert_frame_equal(case.predictor.project(case.x[3:5])[0], frame[3:5], rtol=1e-3)


def test_far_vectors_have_the_smallest_p_value():
    found = build("vectors").predictor.score(points(8, 2) + 20, alpha=1 / 101)
    assert found["p_value"].tolist() == [1 / 101] * 8
    assert found["ood"].all()  # at most alpha


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        (
            "vectors",
            lambda p: p.score(np.zeros((2, 4))),
            r"events: expected float32 of shape \(N, 4\)",
        ),
        ("vectors", lambda p: p.encode(points(0, 0)), "with N at least 1, got float32"),
        (
            "images",
            lambda p: p.score(np.zeros((2, 9, 9, 2), np.uint8)),
            "events: expected uint8 of",
        ),
        ("images", lambda p: p.score(np.full((2, 8, 8, 3), 2.0)), "floats in .0, 1."),
        ("images", lambda p: p.score(smooth_images(2, 0)[0]), r"got one of shape \(3, 8, 8\)"),
        ("images", lambda p: p.score(np.zeros((9, 8, 3), np.uint8)), "Pass image.None."),
        ("images", lambda p: p.score([np.zeros((3, 8, 8)), np.zeros((3, 9, 9))]), "one shape"),
        ("images", lambda p: p.score(None), "events: expected uint8 of shape"),
        ("images", lambda p: p.log_prob(smooth_images(2, 0), 0.5), "noise_scale: expected None"),
        ("images with labels", lambda p: p.decode(np.zeros((2, 9))), "an unconditional one"),
        (
            "images",
            lambda p: p.encode(smooth_images(2, 0), "nearst"),
            "projection: expected encoder, default or nearest, got nearst",
        ),
        ("images", lambda p: p.score(smooth_images(2, 0), label=1), "label: expected none"),
        (
            "images",
            lambda p: p.score(smooth_images(2, 0), alpha=1e-3),
            "alpha: expected at least 1/2",
        ),
        ("images", lambda p: p.sample(condition=rows(2, 0)), "condition: expected none"),
        ("images", lambda p: p.columns, "model: expected a model of a table, got one of images"),
        (
            "images with labels",
            lambda p: p.sample(2),
            "label: expected a label from 0 to 2, .* none",
        ),
        ("images with labels", lambda p: p.sample(2, label=3), "label: .* got 3"),
        ("images with labels", lambda p: p.encode(smooth_images(2, 0, 1), label=[0]), "label: "),
        ("table", lambda p: p.score(rows(0, 0)), "table: expected at least one row"),
        ("table", lambda p: p.score(rows(3, 0), label=1), "label: expected none"),
        ("table", lambda p: p.project(np.zeros((2, 3))), "expected an array of 4 columns"),
        ("table", lambda p: p.sample(0), "count: expected 1 to 10,000,000, got 0"),
        ("vectors", lambda p: p.sample(10**8), "count: expected 1 to 10,000,000, got 100,000,000"),
        (
            "table with a condition",
            lambda p: p.sample(2),
            r"conditional on \(age, dose\), got none",
        ),
        (
            "table with a condition",
            lambda p: p.sample(condition=rows(2, 0)[["age"]]),
            "without dose",
        ),
    ],
)
def test_mistakes_have_one_message(name, call, message):
    with pytest.raises(UserError, match=message):
        call(build(name).predictor)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_the_generator_does_not_distinguish_are_refused(seed):
    with pytest.raises(UserError, match=r"seed: expected 0 to 4294967295, got"):
        CASES[next(iter(CASES))]().predictor.sample(1, seed=seed)


def forged(model, path, **changes):
    """Write a model file whose data or calibration were changed, with a right checksum."""
    model.save(path)
    tensors, header = load_tensors(path)
    for name, change in changes.items():
        change(header[name])
    save_tensors(tensors, path, header)


def first_column(**values):
    return {"data": lambda data: data["table"]["columns"][0].update(values)}


def entry(name, value):
    return {"calibration": lambda calibration: calibration.update({name: value})}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("table", {"data": lambda data: data.update(table=5)}),
        ("table", {"data": lambda data: data["table"].pop("columns")}),
        ("table", {"data": lambda data: data["table"]["columns"].pop()}),
        ("table", first_column(kind="number")),
        ("table", first_column(scale=0.0)),
        ("table", first_column(scale=float("nan"))),
        ("table", first_column(kind="categorical", categories=[])),
        ("images", {"data": lambda data: data.update(size=10**9)}),
        ("images", {"data": lambda data: data.pop("channels")}),
        ("images", {"data": lambda data: data.update(crop="round")}),
        ("images", {"data": lambda data: data.update(margin=4)}),
        ("images", entry("groups", 1e308)),
        ("images", entry("groups", 0)),
        ("images", entry("groups", 10**9)),
        ("images", entry("count", "many")),
        ("images", entry("combined", [])),
        ("images", entry("combined", ["density"])),
        ("images", entry("mean", [0.0])),
        ("images", entry("precision", None)),
        ("images", entry("unknown", 1)),
        ("table", {"calibration": lambda c: c["quantiles"]["combination"].reverse()}),
        ("table", {"calibration": lambda c: c["quantiles"].pop("combination")}),
    ],
)
def test_forged_data_and_calibrations_are_refused(tmp_path, kind, changes):
    path = tmp_path / "model"
    forged(build(kind).model, path, **changes)
    expected = "data and a calibration of its model"
    with pytest.raises(UserError, match=rf"^{path}: expected {expected}, got [^\n]*Pass a file"):
        Predictor.load(path)
