"""The preprocessor of tables: kinds of columns, exact round trips, densities, and mistakes."""

import datetime
import json
import math
import shlex

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from calibrated import table_rows
from submanifold.common.errors import UserError
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.columns import Categorical
from submanifold.data.tables.encoder import RowEncoder, tail_log_weight, to_line, uniform_by_content

RNG = np.random.default_rng(0)
N = 500
NORMAL = RNG.normal(size=N)
KINDS = {
    "normal": (NORMAL, "continuous", None),
    "timestamps": (1.7e9 + NORMAL * 1e-3, "continuous", None),
    "large integers": (RNG.integers(0, 10**7, N), "continuous", None),
    "nanoseconds": (1_700_000_000_000_000_000 + RNG.integers(0, 10**14, N), "continuous", None),
    "zeros and others": (np.where(RNG.random(N) < 0.9, 0, NORMAL), "continuous", None),
    "integers": (RNG.integers(-5, 90, N), "quantized", 1),
    "tenths": (RNG.integers(0, 900, N) / 10, "quantized", 0.1),
    "small steps": (np.round(7e-6 * RNG.integers(0, 90, N), 6), "quantized", 7e-6),
    "booleans": (RNG.random(N) < 0.3, "quantized", 1),
    "three values": (RNG.choice([-1.3, math.pi, 9.0], N), "continuous", None),
    "sorted": (np.repeat([1.5, 2.0], [2000, 3000]), "quantized", 0.5),
    "prices": (np.exp(2 * NORMAL), "logarithmic", None),
    "cents": (np.round(0.5 + np.exp(2 * NORMAL), 2), "logarithmic", 0.01),
    "slightly skewed": (np.exp(NORMAL / 2), "continuous", None),
    "rounding errors": (1000 + 1e-13 * NORMAL, "constant", None),
    "one value": (np.full(N, 3.25), "constant", None),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_and_steps_are_found(name):
    values, kind, step = KINDS[name]
    (column,) = Preprocessor.fit(pd.DataFrame({"a": values})).columns
    assert column.kind == kind
    assert getattr(column, "step", None) == pytest.approx(step)


@pytest.mark.parametrize("scale", ["standard", "none"])
@pytest.mark.parametrize("name", KINDS)
def test_rows_come_back_with_their_type(name, scale):
    frame = pd.DataFrame({"a": KINDS[name][0], "b": np.arange(len(KINDS[name][0]))})
    if scale == "none" and name in ("timestamps", "nanoseconds"):
        with pytest.raises(UserError, match="that float32 cannot represent"):
            Preprocessor.fit(frame, scale=scale)
        return
    preprocessor = Preprocessor.fit(frame, scale=scale)
    found = preprocessor.inverse_transform(preprocessor.transform(frame))
    assert (found.dtypes == frame.dtypes).all()
    if KINDS[name][1:] in (("continuous", None), ("logarithmic", None)):
        spread = float(np.std(frame["a"].astype(float)))
        assert np.allclose(
            found["a"] - frame["a"].iloc[0], frame["a"] - frame["a"].iloc[0], atol=1e-5 * spread
        )
    else:
        rounding = 1e-15 if name == "rounding errors" else 0
        assert np.allclose(found["a"].astype(float), frame["a"].astype(float), rounding, 0)
    assert (found["b"] == frame["b"]).all()


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(-(10**6), 10**6),
    decimals=st.integers(0, 6),
    steps=st.lists(st.integers(0, 65_000), min_size=3, max_size=60, unique=True),
    scale=st.sampled_from(["standard", "none"]),
)
def test_numbers_with_decimals_come_back_exactly(start, decimals, steps, scale):
    """Printing and reading a number gives the float nearest to the decimal; so must the inverse."""
    values = [float(f"{(start + each) / 10**decimals:.{decimals}f}") for each in steps]
    frame = pd.DataFrame({"a": values})
    try:
        preprocessor = Preprocessor.fit(frame, scale=scale)
    except UserError as error:
        assert (scale, "float32" in str(error)) == ("none", True)  # noqa: PT017
        return
    x = preprocessor.transform(frame)
    if preprocessor.columns[0].kind == "quantized":
        assert list(preprocessor.inverse_transform(x)["a"]) == values


def test_the_log_determinant_is_that_of_the_transformation():
    """Of a normal variable in its own units, log-density = standard log-density + log_det."""
    values = 1e6 + 250 * RNG.normal(size=(4000, 2))
    preprocessor = Preprocessor.fit(values)
    log_dets = preprocessor.log_dets(preprocessor.transform(values).x, None)
    np.testing.assert_allclose(log_dets, -2 * math.log(250), atol=0.05)


def test_the_logarithm_of_a_log_normal_variable_is_normal():
    """Its density, the normal one and the log-determinant, is the log-normal density."""
    prices = np.exp(3 + 2 * RNG.normal(size=4000))
    frame = pd.DataFrame({"price": prices})
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame).x
    found = stats.norm.logpdf(x[:, 0]) + preprocessor.log_dets(x, None)
    expected = stats.lognorm.logpdf(prices, 2, scale=math.exp(3))
    assert abs(found - expected)[prices > 50 * prices.min()].max() < 0.3
    assert found.mean() == pytest.approx(expected.mean(), abs=0.02)
    # around zero it is linear, so that the density is one on all numbers
    numbers = np.linspace(-1, 1, 2001)[:, None] * prices.min()
    near_zero = preprocessor.transform(numbers).x
    slopes = np.log(np.gradient(near_zero[:, 0].astype(float), numbers[:, 0]))
    log_dets = preprocessor.log_dets(near_zero, None)
    np.testing.assert_allclose(slopes[1:-1], log_dets[1:-1], atol=0.01)
    values = preprocessor.inverse_transform(near_zero)["price"]
    np.testing.assert_allclose(values, numbers[:, 0], atol=1e-5 * prices.min())
    as_number = Preprocessor.fit(frame, columns={"price": "number"})
    assert as_number.columns[0].kind == "continuous"


def test_draws_of_a_logarithmic_column_with_a_step_estimate_its_probability():
    """The mean of p(x) / q(x) over draws of the noise is the integral of p over the step."""
    prices = np.round(np.exp(2 + 2 * RNG.normal(size=4000)) + 0.5)
    frame = pd.DataFrame({"price": prices[prices < 40_000]})
    preprocessor = Preprocessor.fit(frame)
    (column,) = preprocessor.columns
    assert (column.kind, column.step, column.low) == ("logarithmic", 1, 1)
    chosen = pd.DataFrame({"price": [1.0, 2.0, 5.0, 300.0]})
    events = preprocessor.transform(chosen)
    draws, log_weights = preprocessor.draw(events.x, None, 4000)
    terms = stats.norm.logpdf(draws[:, :, 0]) + log_weights
    found = logsumexp(terms, 0) - math.log(4000) + preprocessor.log_dets(events.x, None)
    ends = np.arcsinh(np.add.outer([0.0, 1.0], chosen["price"].to_numpy()) / column.linear_width)
    low, high = stats.norm.cdf((ends - column.offset) / column.scale)
    np.testing.assert_allclose(np.exp(found), high - low, rtol=0.02)


def test_the_density_of_a_quantized_column_bounds_its_probability():
    """A uniform density over the dequantized values of a fair die gives each face 1/6."""
    die = pd.DataFrame({"a": RNG.integers(1, 7, 6000)})
    preprocessor = Preprocessor.fit(die)
    (column,) = preprocessor.columns
    x = preprocessor.transform(die, salt=np.arange(6000)).x[:, 0]
    ends = (np.array([0.0, 6.0]) - column.offset) / column.scale
    assert x.min() == pytest.approx(ends[0], abs=0.01)
    assert x.max() == pytest.approx(ends[1], abs=0.01)
    (log_det,) = preprocessor.log_dets(np.zeros((1, 1)), None)
    log_density = -math.log(ends[1] - ends[0]) + log_det
    assert np.exp(log_density) == pytest.approx(1 / 6)


def test_copies_are_equal_rows_with_a_value_that_no_other_row_has():
    """Rows of counts and categories are equal by chance, and so are the zeros of a column."""
    zeros = np.where(np.arange(40) % 2, NORMAL[:40], 0)
    frame = pd.DataFrame({"n": np.arange(40) % 3, "city": ["x", "y"] * 20, "size": zeros})
    twice = pd.concat([frame, frame], ignore_index=True)
    preprocessor = Preprocessor.fit(twice)
    events = preprocessor.transform(twice, salt=np.arange(80))
    expected = np.arange(80)
    expected[41::2] -= 40
    np.testing.assert_array_equal(preprocessor.copies(events), expected)


def test_other_draws_stay_in_the_cells_of_their_rows():
    frame = pd.DataFrame(
        {
            "a": NORMAL,
            "n": RNG.integers(0, 5, N),
            "d": RNG.integers(0, 9, N) / 10,
            "city": RNG.choice(["x", "y", "z"], N),
            "gaps": np.where(RNG.random(N) < 0.5, RNG.integers(0, 5, N), np.nan),
        }
    )
    preprocessor = Preprocessor.fit(frame)
    events = preprocessor.transform(frame, salt=np.arange(N))
    x, mask = events.x, events.context
    draws, _ = preprocessor.draw(x, mask, 50)
    trained = [preprocessor.redraw(x, mask, seed) for seed in range(50)]
    for several in (draws, trained):
        for drawn in several[:3]:
            pd.testing.assert_frame_equal(
                preprocessor.inverse_transform(drawn, mask), preprocessor.inverse_transform(events)
            )
            assert drawn[:, 0] == pytest.approx(x[:, 0], rel=1e-6)
        assert (np.std(several, axis=0)[:, 1:].mean(0) > 0.01).all()
    # they depend on the row alone, not on the noise that it has already
    again, _ = preprocessor.draw(preprocessor.transform(frame).x[7:9], mask[7:9], 50)
    np.testing.assert_array_equal(again, draws[:, 7:9])


def test_noise_of_missing_values_is_normal_and_has_its_density():
    frame, _, gaps = table_with_gaps()
    preprocessor = Preprocessor.fit(frame[["normal", "full"]])
    events = preprocessor.transform(frame[["normal", "full"]])
    drawn, log_weights = preprocessor.draw(events.x, events.context, 3)
    expected = gaps[:, 0] * (drawn[:, :, 0] ** 2 + math.log(2 * math.pi)) / 2
    np.testing.assert_allclose(log_weights, expected, atol=1e-4)
    noise = drawn[:, gaps[:, 0], 0]
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.1)
    of_all = preprocessor.log_dets(events.x, None)
    in_units = preprocessor.log_dets(events.x, events.context) - of_all
    scale = preprocessor.varying[0].scale
    assert in_units.tolist() == pytest.approx((gaps[:, 0] * math.log(scale)).tolist())


def test_noise_does_not_depend_on_units():
    frame = pd.DataFrame({"a": NORMAL, "n": RNG.integers(0, 5, N), "d": RNG.integers(0, 9, N) / 10})
    grams = frame.assign(a=1000 * frame["a"], d=1000 * frame["d"])
    x, in_grams = (Preprocessor.fit(table).transform(table).x for table in (frame, grams))
    np.testing.assert_allclose(in_grams, x, rtol=0, atol=1e-6)


def test_noise_is_uniform_and_determined_by_the_row():
    values = RNG.integers(0, 3, (3000, 4))
    noise = uniform_by_content(values, np.arange(3000))[0]
    assert abs(np.sort(noise, axis=0) - np.linspace(0, 1, 3000)[:, None]).max() < 0.04
    assert abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.06
    assert np.array_equal(uniform_by_content(values[7:9], np.arange(7, 9))[0], noise[7:9])
    without = uniform_by_content(values, 0)[0]
    assert len(np.unique(without)) == without.shape[1] * len(np.unique(values, axis=0))
    frame = pd.DataFrame(values, columns=list("abcd"))
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame).x
    assert np.array_equal(preprocessor.transform(frame[5:6]).x, x[5:6])
    assert np.array_equal(preprocessor.transform(frame.astype("int8")[5:6]).x, x[5:6])


def test_columns_are_found_by_name(caplog):
    frame = pd.DataFrame({"a": NORMAL, "b": NORMAL**2, "c": RNG.integers(0, 9, N)})
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame).x
    assert np.array_equal(preprocessor.transform(frame[["c", "a", "b"]]).x, x)
    assert not caplog.messages
    assert np.array_equal(preprocessor.transform(frame.assign(d=1)).x, x)
    assert "columns d are unknown to the model" in caplog.text
    assert np.array_equal(preprocessor.transform(frame.astype(str)).x, x)
    assert np.array_equal(preprocessor.transform(frame.to_numpy()).x, x)
    with pytest.raises(UserError, match="got a table without b"):
        preprocessor.transform(frame[["a", "c"]])
    with pytest.raises(UserError, match=r"table without width. Did you mean widht\?"):
        Preprocessor.fit(pd.DataFrame({"width": NORMAL})).transform(pd.DataFrame({"widht": [1]}))
    with pytest.raises(UserError, match="expected an array of 3 columns"):
        preprocessor.transform(frame.to_numpy()[:, :2])


def test_categories_become_intervals_of_one_coordinate():
    """The most frequent one is the first; the intervals cover the line."""
    city = RNG.choice(["Rome", "Oslo", "Lima"], N, p=[0.2, 0.5, 0.3])
    frame = pd.DataFrame({"city": city, "a": NORMAL})
    preprocessor = Preprocessor.fit(frame)
    assert preprocessor.features == ("city", "a")
    x = preprocessor.transform(frame).x
    assert x.mean(0) == pytest.approx(0, abs=0.1)
    assert x.std(0) == pytest.approx(1, abs=0.1)
    assert (preprocessor.inverse_transform(x)["city"] == frame["city"]).all()
    line = np.stack([np.linspace(-20, 20, 9), np.zeros(9)], 1)
    cities = list(preprocessor.inverse_transform(line)["city"])
    assert list(dict.fromkeys(cities)) == ["Oslo", "Lima", "Rome"]
    numbers = pd.DataFrame({"zip": RNG.choice([101, 205], N), "a": NORMAL})
    found = Preprocessor.fit(numbers, columns={"zip": "category"})
    assert found.features == ("zip", "a")
    assert (found.inverse_transform(found.transform(numbers))["zip"] == numbers["zip"]).all()


def test_vectors_that_are_not_finite_are_rows_of_missing_values():
    frame = table_rows(50, 0)
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame).x
    x[3], x[7, 1] = np.nan, np.inf
    rows = preprocessor.inverse_transform(x)
    assert rows.index[rows.isna().all(axis=1)].tolist() == [3, 7]
    others = [number for number in range(50) if number not in (3, 7)]
    assert (rows["city"][others] == frame["city"][others]).all()
    assert (rows["age"][others] == frame["age"][others]).all()


def test_the_weight_of_a_category_is_the_inverse_density_of_its_noise():
    noise = np.concatenate([np.linspace(1e-9, 1 - 1e-9, 1001), [0.1999, 0.2001]])
    column = Categorical.fit(pd.Series(list("aaabbc")), name="city", dtype="str")
    encoder = RowEncoder([column])
    for category in range(3):
        numbers = np.full(len(noise), category)
        start, end = (to_line(numbers, noise + change, 3) for change in (-1e-10, 1e-10))
        weight = tail_log_weight(to_line(numbers, noise, 3), 3)
        np.testing.assert_allclose(np.log((end - start) / 2e-10), weight, atol=1e-2)
        x, weights = encoder.encode(numbers[:, None].astype(float), noise[:, None])
        np.testing.assert_allclose(weights, weight)
        assert (encoder.decode(x, np.zeros(x.shape, bool)) == category).all()


def test_columns_of_a_condition_are_indicators_and_standardized_values():
    city = RNG.choice(["Rome", "Oslo", None], N, p=[0.2, 0.7, 0.1])
    frame = pd.DataFrame({"city": city, "n": RNG.integers(0, 9, N).astype(float), "a": NORMAL})
    frame.loc[5:50, "n"] = np.nan
    inputs, given = Preprocessor.fit(frame).split(["city", "n"])
    assert (inputs.features, given.features) == (("a",), ("city", "n"))
    x = given.indicators(frame[["city", "n"]])
    assert x.shape == (N, given.indicator_count) == (N, 5)
    known = np.array([value is not None for value in city])
    assert x[known, 0].std() == pytest.approx(1, abs=1e-3)
    assert x[:, :3].mean(0) == pytest.approx(0, abs=1e-3)
    assert (np.sign(x[known, 0]) == np.where(city[known] == "Oslo", 1, -1)).all()
    assert (x[~known, :2] == 0).all()  # the mean
    assert (x[5:50, 2] == 0).all()
    assert (x[:, 3:] == frame[["city", "n"]].isna().to_numpy()).all()


def test_unknown_categories_are_found(caplog):
    frame = pd.DataFrame({"city": RNG.choice(["Rome", "Oslo"], N), "a": NORMAL})
    preprocessor = Preprocessor.fit(frame)
    assert not preprocessor.unknown(frame).any(axis=None)
    frame.loc[0, "city"] = None
    preprocessor = Preprocessor.fit(frame)
    rows = frame[:4].assign(city=["Rome", "Bonn", None, "Oslo"])
    assert preprocessor.unknown(rows).any(axis=1).tolist() == [False, True, False, False]
    assert np.isfinite(preprocessor.transform(rows).x).all()
    assert "column city: the training data have no category Bonn" in caplog.text
    given = preprocessor.split(["city"])[1]
    assert given.unknown(rows[["city"]])["city"].tolist() == [False, True, False, False]


def test_codes_are_the_same_categories_as_floats_beside_blanks():
    codes = RNG.integers(0, 4, N)
    blanks = np.where(np.arange(N) % 9 == 0, np.nan, codes)
    fitted = Preprocessor.fit(
        pd.DataFrame({"code": blanks, "a": NORMAL}), columns={"code": "category"}
    )
    whole = pd.DataFrame({"code": codes, "a": NORMAL})
    assert not fitted.unknown(whole).any(axis=None)
    kept = ~np.isnan(blanks)
    decoded = fitted.inverse_transform(fitted.transform(whole))["code"]
    assert decoded[kept].tolist() == blanks[kept].tolist()


def test_text_of_dates_with_an_unclear_month_is_refused_by_a_model_of_typed_dates():
    days = pd.Series(pd.date_range("2024-01-01", periods=N, freq="D"))
    fitted = Preprocessor.fit(pd.DataFrame({"day": days, "a": NORMAL}))
    iso = pd.DataFrame({"day": days.dt.strftime("%Y-%m-%d"), "a": NORMAL})
    back = fitted.inverse_transform(fitted.transform(iso))["day"]
    assert back.tolist() == days.tolist()
    unclear = pd.DataFrame({"day": ["01.02.2024", "01.03.2024"], "a": NORMAL[:2]})
    with pytest.raises(UserError, match=r"01\.02\.2024"):
        fitted.transform(unclear)


def test_text_among_numbers_that_the_training_rows_do_not_have_is_warned_of(caplog):
    values = pd.Series(RNG.integers(0, 9, N)).astype(object)
    values[:20], values[20:30] = "unknown", None
    frame = pd.DataFrame({"half": values, "a": NORMAL})
    preprocessor = Preprocessor.fit(frame)
    preprocessor.transform(frame)
    assert not caplog.records
    preprocessor.transform(frame[18:22].assign(half=["unknown", "0,5", None, 3]))
    (record,) = caplog.records
    assert record.getMessage() == (
        "column half: values such as '0,5' are no finite numbers, and count as missing "
        "(1 of 4 rows)"
    )


def test_numbers_with_a_mark_among_numbers_are_refused():
    values = pd.Series(RNG.integers(0, 9, N)).astype(object)
    values[::4] = "0,5"
    with pytest.raises(UserError, match="such as '0,5', in dose"):
        Preprocessor.fit(pd.DataFrame({"dose": values, "a": NORMAL}))


def test_values_between_steps_are_warned_of(caplog):
    frame = pd.DataFrame({"age": RNG.integers(20, 60, N), "price": RNG.integers(0, 90, N) / 10})
    preprocessor = Preprocessor.fit(frame)
    preprocessor.transform(frame)
    assert not caplog.records
    events = preprocessor.transform(frame[:3].assign(age=[31.5, 20, 70], price=[0.1, 8.9, 0.3]))
    assert preprocessor.inverse_transform(events)["age"].tolist() == [31, 20, 70]
    (record,) = caplog.records
    assert record.getMessage() == (
        "column age: values between the training data's steps of 1, such as 31.5, are rounded "
        "down (1 of 3 rows)"
    )


def table_with_gaps(count=2000):
    """Columns of every kind with a tenth of missing values, and the same without them."""
    rng = np.random.default_rng(1)
    whole = pd.DataFrame(
        {
            "normal": rng.normal(5, 20, count),
            "tenths": rng.integers(0, 900, count) / 10,
            "city": rng.choice(["Rome", "Oslo"], count),
            "one": 3.25,
            "day": rng.choice(["31.12.2024", "01.02.2025", "17.02.2025"], count),
            "full": rng.normal(size=count),
        }
    )
    gaps = (rng.random(whole.shape) < 0.1) & (whole.columns != "full")
    return whole.mask(gaps), whole, gaps


def test_missing_values_are_noise_and_a_mask_and_come_back():
    frame, _, gaps = table_with_gaps()
    preprocessor = Preprocessor.fit(frame)
    assert preprocessor.features == ("normal", "tenths", "city", "day", "full")
    events = preprocessor.transform(frame, np.arange(len(frame)))
    assert np.isfinite(events.x).all()
    assert (events.context == gaps[:, [0, 1, 2, 4]]).all()
    back = preprocessor.inverse_transform(events)
    pd.testing.assert_frame_equal(
        back.drop(columns="one"), frame.drop(columns="one"), atol=1e-4, check_dtype=False
    )
    assert (back["one"] == 3.25).all()  # a constant has no mask
    noise = events.x[gaps[:, 0], 0]
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.15)
    again = preprocessor.transform(frame[5:9], np.arange(5, 9))
    np.testing.assert_array_equal(again.x, events.x[5:9])


def test_masks_are_drawn_from_the_training_rows():
    _, whole, gaps = table_with_gaps()
    gaps[:, 1] = gaps[:, 0]  # missing together
    frame = whole.mask(gaps)
    training = np.arange(len(frame)) >= 1000
    preprocessor = Preprocessor.fit(frame, training=training)
    drawn = preprocessor.draw_missing(4000, 0).astype(bool)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert drawn.mean(0) == pytest.approx(gaps[training][:, [0, 1, 2, 4]].mean(0), abs=0.03)
    again = Preprocessor.from_dict(preprocessor.to_dict()).draw_missing(4000, 0)
    assert (again == drawn).all()
    inputs, given = preprocessor.split(["normal", "city"])
    assert inputs.draw_missing(9, 3).tolist() == preprocessor.draw_missing(9, 3)[:, [1, 3]].tolist()
    assert given.draw_missing(9, 3).tolist() == preprocessor.draw_missing(9, 3)[:, [0, 2]].tolist()
    assert Preprocessor.fit(frame[["full"]]).draw_missing(9, 3) is None


def test_numbers_among_text_come_back_as_numbers():
    frame = pd.DataFrame({"a": [*map(str, range(30)), "?"], "b": RNG.normal(size=31)})
    preprocessor = Preprocessor.fit(frame)
    found = preprocessor.inverse_transform(preprocessor.transform(frame))["a"]
    np.testing.assert_array_equal(found, [*range(30), np.nan])


def test_constant_columns_that_vary_later_are_one_warning(caplog):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.5], "b": 5.0, "c": 7, "day": "2024-02-29"})
    preprocessor = Preprocessor.fit(frame)
    preprocessor.transform(frame)
    assert not caplog.messages
    preprocessor.transform(frame.assign(b=[5, 5, 5, 6], c=8, day="2024-03-01"))
    assert [text.partition(": ")[2] for text in caplog.messages] == ["b, c, day"]


def test_missing_values_that_the_training_rows_do_not_have_are_refused():
    frame, whole, _ = table_with_gaps()
    with pytest.raises(UserError, match=r"missing values in normal \(\d+\), tenths .*, day"):
        Preprocessor.fit(whole).transform(frame)


COLUMNS = {
    "number": (NORMAL, "numbers, -", "ignore"),
    "integer": (RNG.integers(0, 90, N), "numbers, 0 to 89, in steps of 1", "ignore"),
    "large": (
        RNG.choice([50_000, 1_250_000, 50_100], N),
        "50000 to 1250000, in steps of 100",
        "category",
    ),
    "levels": (KINDS["three values"][0], "numbers, -1.3 to 9", "category"),
    "text": (RNG.choice(["Rome", "Oslo"], N, p=[0.2, 0.8]), "2 categories: Oslo, Rome", "ignore"),
    "coded": (pd.Categorical(RNG.choice([*"bc"], N, p=[0.1, 0.9])), "2 categories: c, b", "ignore"),
    "gaps": (np.where(np.arange(N) % 5, NORMAL, np.nan), "; 20.0% missing", "ignore"),
    "unknown": (np.where(np.arange(N) % 5, NORMAL, "?"), "; 20.0% missing, such as ?", "category"),
    "grade": (
        [*"1123AB2", None] * 60 + [None] * 20,
        "numbers, 1 to 3, in steps of 1; 40.0% missing, such as A, B",
        "category",
    ),
    "code": (RNG.integers(1, 6, N), "numbers, 1 to 5, in steps of 1", "category"),
    "key": (
        2**63 + (np.arange(N, dtype=np.uint64) + 1) % 3,
        "3 categories: 9223372036854775809, 92",
        "ignore",
    ),
    "infinite": (np.where(np.arange(N) % 5, NORMAL, np.inf), "; 20.0% missing", "ignore"),
    "text gaps": (
        np.where(np.arange(N) % 5, RNG.choice(["x", "y", "z"], N), None),
        "; 20.0% missing",
        "ignore",
    ),
    "dates": (["31.12.2024", "01.02.2025"] * (N // 2), "dates, 31.12.2024 to 01.02.2025", "ignore"),
    "american": (["12/31/2024", "02/01/2025"] * (N // 2), "dates, 12/31/2024 to 02/01", "ignore"),
    "times": (
        pd.date_range("2020", periods=N, freq="97min", tz="Asia/Tokyo"),
        "dates, 2020-01-01 00:00:00+09:00 to",
        "ignore",
    ),
    "durations": (pd.to_timedelta(RNG.integers(0, 99, N), "s"), "in steps of 1", "ignore"),
    "visit_id": (np.arange(N) // 2, "numbers, 0 to 249, in steps of 1", "ignore"),
    "some dates": (["31.12.2024", "unknown"] * (N // 2), "2 categories: 31.12.2024, un", "ignore"),
    "empty": ([None] * N, "no values", ""),
    "one": (["x"] * N, "one value: x", ""),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_a_raw_table_are_described(name):
    values, found, kind = COLUMNS[name]
    frame = pd.DataFrame({name: values, "other": RNG.normal(size=N)})
    preprocessor = Preprocessor.fit(frame)
    row = preprocessor.description.iloc[0]
    assert found in row["found"]
    assert row["change"] == (kind and shlex.quote(f"data.columns.{name}={kind}"))
    is_used = any(column.name == name for column in preprocessor.varying)
    assert is_used == (row["used"] != "not used")
    back = preprocessor.inverse_transform(preprocessor.transform(frame))
    if is_used and name not in ("unknown", "infinite", "grade"):
        pd.testing.assert_frame_equal(back[[name]], frame[[name]], check_freq=False, atol=1e-4)
    if is_used and kind:
        assert name not in Preprocessor.fit(frame, columns={name: "ignore"}).inputs


AMBIGUOUS = {
    "comment": (map("text {}".format, range(N)), "text of 500 different values in comment"),
    "hash": (2**63 + np.arange(N, dtype=np.uint64), r"integers beyond 2\^53, .* in hash"),
    "complex": (NORMAL + 1j, "complex numbers in complex"),
    "price": (["$12", "$1,300"] * (N // 2), "text of numbers with .*, such as '\\$12', in price"),
    "share": (["12 %", "7.5 %"] * (N // 2), "text of numbers with .*, such as '12 %', in share"),
    "comma": (["0,125", "1,5"] * (N // 2), "text of numbers with .*, such as '0,125', in comma"),
    "day": (["01/02/2025", "11/12/2025"] * (N // 2), "such as 01/02/2025 without a clear month"),
    "short": (["31/12/24", "01/02/25"] * (N // 2), "such as 31/12/24 without a clear year"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_columns_that_are_not_clear_are_refused_unless_their_kind_is_set(name):
    values, message = AMBIGUOUS[name]
    frame = pd.DataFrame({name: values, "other": RNG.normal(size=N)})
    with pytest.raises(UserError, match=message):
        Preprocessor.fit(frame)
    assert Preprocessor.fit(frame, columns={name: "ignore"}).inputs == ("other",)
    if name in ("price", "share", "comma", "day", "short"):
        categories = Preprocessor.fit(frame, columns={name: "category"})
        assert len(categories.columns[0].names) == 2


def test_numbers_of_rows_are_a_warning(caplog):
    order = RNG.permutation(N)
    frame = pd.DataFrame({"no": order, "twice": order // 2, "sparse": 2 * order, "a": NORMAL})
    assert Preprocessor.fit(frame).inputs == tuple(frame)
    assert [text.partition(":")[0] for text in caplog.messages] == ["columns no"]


def test_the_largest_integers_of_a_type_do_not_overflow():
    values = np.linspace(0, 2**64 - 2**12, N).astype(np.uint64)
    frame = pd.DataFrame({"a": values, "b": (values // 2).astype(np.int64)})
    kinds = {"a": "number", "b": "number"}
    preprocessor = Preprocessor.fit(frame, columns=kinds)
    beyond = preprocessor.inverse_transform(preprocessor.transform(frame).x * 1.01)
    assert beyond.dtypes.tolist() == frame.dtypes.tolist()
    assert (np.diff(beyond.to_numpy(float), axis=0) >= 0).all()


def test_json_keeps_everything():
    frame = pd.DataFrame(
        {
            "a": NORMAL,
            "b": KINDS["three values"][0],
            "c": KINDS["tenths"][0],
            "d": RNG.choice(["x", "y"], N),
            "e": 1,
        }
    )
    preprocessor = Preprocessor.fit(frame)
    again = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    assert again == preprocessor
    assert np.array_equal(again.transform(frame).x, preprocessor.transform(frame).x)


MISTAKES = {
    "huge": ({"a": [1e200, 1.5, 2]}, {}, r"values beyond 1e\+150, .* in a"),
    "tiny": ({"a": NORMAL * 1e-310}, {}, "a range below 1e-150, in a"),
    "unknown column": (
        {"age": [1, 2]},
        {"columns": {"agee": "number"}},
        r"got agee. Did you mean age\?",
    ),
    "no step": ({"a": NORMAL}, {"columns": {"a": "integer"}}, "got no step, .* in a"),
    "many categories": (
        {"a": [f"name {i}" for i in range(999)]},
        {"columns": {"a": "category"}},
        "more than 256 categories in a",
    ),
    "rounded integers": (
        {"a": np.arange(2**63, 2**63 + 80, dtype=np.uint64)},
        {"columns": {"a": "number"}},
        r"integers beyond 2\^53, which are not kept exactly, in a",
    ),
    "no numbers": ({"a": list("xyz")}, {"columns": {"a": "number"}}, "got no numbers in a"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    values, options, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        Preprocessor.fit(pd.DataFrame(values), **options)


RESTORED = {
    "years 1000 and 9999": (["1000-01-01", "9999-12-31", "2024-02-29"] * 12, {}),
    "days as objects": ([datetime.date(9999, 12, 31), datetime.date(2024, 2, 29)] * 9, {}),
    "seconds": (np.array(["9999-12-31", "2024-02-29"] * 9, "datetime64[s]"), {}),
    "nanoseconds with gaps": (pd.to_datetime(["2024-02-29", None, "2024-03-01"] * 9), {}),
    "milliseconds": (
        np.array(["2024-02-29T00:00:00.125", "2024-02-29T00:00:01"] * 9, "datetime64[ms]"),
        {},
    ),
    "continuous milliseconds": (np.datetime64("2024-02-29T00:00:00.125") + np.arange(100) ** 3, {}),
    "one day": (np.array(["2024-02-29T00:00:00.125"] * 18, "datetime64[ms]"), {}),
    "booleans with gaps": ([True, None, False] * 9, {"columns": {"a": "category"}}),
    "text that is missing": (["missing", None, "x", "x"] * 9, {}),
}


def plain(values):
    """Values of a column with None for missing ones, and one type for dates."""
    return [
        None
        if pd.isna(value)
        else pd.Timestamp(value)
        if isinstance(value, datetime.date)
        else value
        for value in values.astype(object)
    ]


@pytest.mark.parametrize("name", RESTORED)
def test_values_come_back(name, caplog):
    values, options = RESTORED[name]
    frame = pd.DataFrame({"a": values, "b": np.arange(len(values))})
    preprocessor = Preprocessor.fit(frame, **options)
    caplog.clear()
    restored = preprocessor.inverse_transform(preprocessor.transform(frame))
    assert plain(restored["a"]) == plain(frame["a"])
    assert not caplog.messages


def test_pandas_categories_come_back_with_their_levels_and_order():
    sizes = pd.CategoricalDtype(["S", "M", "L", "XL"], ordered=True)
    frame = pd.DataFrame(
        {
            "size": pd.Series(["M", "S", None, "L", "M", "M"] * 9, dtype=sizes),
            "code": pd.Categorical([3, 1, 2, 2, 1, 1] * 9),
            "share": pd.Categorical([0.5, 2.0, 2.0, 0.5, 0.5, 0.5] * 9),
            "flag": pd.Categorical([True, False, True] * 18),
            "b": np.arange(54),
        }
    )
    fitted = Preprocessor.from_dict(json.loads(json.dumps(Preprocessor.fit(frame).to_dict())))
    pd.testing.assert_frame_equal(fitted.inverse_transform(fitted.transform(frame)), frame)


def test_clipped_rows_of_grids_are_in_the_range_of_the_training_rows():
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "count": rng.integers(0, 6, 200),
            "tenths": rng.integers(-20, 30, 200) / 10,
            "size": np.exp(rng.normal(size=200)),
            "city": rng.choice(["A", "B", "C"], 200),
        }
    )
    preprocessor = Preprocessor.fit(frame)
    far = np.array([[-5.0] * 4, [5.0] * 4], np.float32)
    free = preprocessor.inverse_transform(far)
    clipped = preprocessor.inverse_transform(far, clip=True)
    assert free["count"].min() < 0
    assert free["tenths"].max() > 2.9
    assert clipped["count"].tolist() == [0, 5]
    assert clipped["tenths"].tolist() == [frame["tenths"].min(), frame["tenths"].max()]
    assert clipped[["size", "city"]].equals(free[["size", "city"]])


def test_text_that_is_missing_is_unknown_where_only_blanks_were():
    frame = pd.DataFrame({"a": ["x", None, "y"] * 9})
    rows = pd.DataFrame({"a": ["missing", None]})
    assert Preprocessor.fit(frame).unknown(rows)["a"].tolist() == [True, False]


def test_only_training_rows_determine_the_columns_but_all_are_checked():
    frame = pd.DataFrame({"a": [1.5, 2, 3, 4, np.nan]})
    training = np.array([True, True, False, False, False])
    assert Preprocessor.fit(frame[:4], training=training[:4]).columns[0].high == 2
    training = np.array([True, True, True, True, False])
    for rows, share in (
        ([1.5, 2, 3, 4, None], 1 / 4),  # at least one row
        ([1.5, 2, 3, 4, 5], 0),
        ([1.5, None, None, 4, None], 1 / 2),
    ):
        (column,) = Preprocessor.fit(pd.DataFrame({"a": rows}), training=training).columns
        assert column.missing == share
