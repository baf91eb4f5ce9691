"""Batches and dequantization."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated import table_rows
from submanifold.common.errors import UserError
from submanifold.data.batches import Batches, dequantize, quantize
from submanifold.data.events import Events
from submanifold.data.tables import Preprocessor

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).repeat(400, 1)


def numbered(n):
    return np.arange(n, dtype=np.float32)[:, None]


def images(n=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)


def test_batches_of_no_rows_are_refused():
    with pytest.raises(UserError, match="events: expected at least one row, got none"):
        Batches(numbered(0), 4)


def seeds():
    return st.integers(0, 2**32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 50), seeds(), st.integers(0, 5))
def test_an_epoch_uses_each_item_at_most_once_and_omits_less_than_a_batch(n, size, seed, epoch):
    batches = Batches(numbered(n), size, seed)
    per_epoch = batches.steps_per_epoch
    used = [
        item
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)
        for item in batches.at(step)[0][:, 0].tolist()
    ]
    assert len(set(used)) == len(used) > n - min(size, n)
    assert set(used) <= set(range(n))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seeds(), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_batch_depends_on_seed_and_step_only(seed, steps):
    used = Batches(images(), 6, seed)
    for step in steps:
        new = Batches(images(), 6, seed)
        assert torch.equal(used.at(step)[0], new.at(step)[0])
        next(iter(used))


def test_a_batch_seeds_the_generator_of_its_caller():
    batches, generator = Batches(images(), 6, seed=3), torch.Generator()
    x, _ = batches.at(2, generator)
    drawn = torch.rand(3, generator=generator)
    batches.at(3, generator)
    assert not torch.equal(torch.rand(3, generator=generator), drawn)
    assert torch.equal(batches.at(2, generator)[0], x)
    assert torch.equal(torch.rand(3, generator=generator), drawn)
    of_rows = [torch.rand(1, generator=generator) for _ in batches.in_order(generator)]
    assert len(torch.cat(of_rows).unique()) == 4


def test_rows_of_tables_are_dequantized_again_in_each_step():
    frame = table_rows(50, 0).mask(np.arange(50)[:, None] % [5, 3, 7, 11] == 1)
    preprocessor = Preprocessor.fit(frame)
    events = preprocessor.transform(frame)
    batches = Batches(events, 50, seed=3, redraw=preprocessor.redraw)
    first, again, second = (
        (x.numpy(), context.values.numpy()) for x, context in map(batches.at, (4, 4, 5))
    )
    np.testing.assert_array_equal(first[0], again[0])
    rows = [
        preprocessor.inverse_transform(*part).astype(str) for part in ((events,), first, second)
    ]
    rows = [part.sort_values([*part]).reset_index(drop=True) for part in rows]
    for part in rows[1:]:
        pd.testing.assert_frame_equal(part, rows[0])
    for j, column in enumerate(preprocessor.varying):
        if column.is_discrete or column.missing:
            assert not np.isin(second[0][:, j], first[0][:, j]).all(), column.name


def test_iteration_is_in_order_with_the_same_noise_each_time():
    batches = Batches(images(), 6, seed=3)
    first = [x for x, _ in batches]
    batches.at(5)
    second = [x for x, _ in batches]
    assert [len(batch) for batch in first] == [6, 6, 6, 2]
    assert all(map(torch.equal, first, second))
    x = torch.cat(first)
    assert np.array_equal(quantize(x).numpy(), images())
    assert not torch.equal(first[0], next(iter(Batches(images(), 6, seed=4)))[0])
    noise = (x + 0.5) * 256 - torch.from_numpy(images())
    assert not torch.allclose(noise[:6], noise[6:12], atol=1e-3)


# ---- dequantization


def test_quantize_inverts_dequantize_for_every_byte():
    x = dequantize(EVERY_BYTE, generator())
    assert x.dtype == torch.float32
    assert torch.equal(quantize(x), EVERY_BYTE)
    assert torch.equal(x, dequantize(EVERY_BYTE, generator()))
    assert not torch.equal(x, dequantize(EVERY_BYTE, generator(1)))


def test_dequantized_values_are_uniform_within_their_bin():
    x = dequantize(EVERY_BYTE, generator()).double()
    noise = (x + 0.5) * 256 - EVERY_BYTE
    assert noise.min() > -1e-4
    assert noise.max() < 1 + 1e-4
    error = (1 / 12 / noise.numel()) ** 0.5
    assert noise.mean().item() == pytest.approx(0.5, abs=4 * error)
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.02)
    both = torch.stack([noise.flatten(), EVERY_BYTE.flatten().double()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.02


def test_contexts_follow_their_events():
    rows = np.arange(10, dtype=np.float32)[:, None]
    batches = Batches(Events(rows, np.arange(10)), 4)
    for x, context in [*batches, *map(batches.at, range(4))]:
        assert x[:, 0].tolist() == context.values.tolist()
    assert Batches(rows, 4).at(0)[1] is None


def test_validation_noise_differs_between_batches_and_from_that_of_training():
    batches = Batches(np.zeros((12, 1, 4, 4), np.uint8), 4)
    in_order = [x for x, _ in batches]
    noises = [*in_order, *(batches.at(step)[0] for step in range(20))]
    for number, noise in enumerate(noises):
        assert not any(torch.equal(noise, other) for other in noises[:number])
