import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from submanifold.data import batches as loader
from submanifold.data.batches import Batches, dequantize, quantize


def numbered(n):
    return np.arange(n, dtype=np.float32)[:, None]


def images(n=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)


def seeds():
    return st.integers(0, 2**32)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 50), seeds(), st.integers(0, 5))
def test_an_epoch_meets_each_row_at_most_once_and_leaves_out_less_than_a_batch(
    rows, size, seed, epoch
):
    batches = Batches(numbered(rows), size, seed)
    per_epoch = batches.steps_per_epoch
    met = [
        row
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)
        for row in batches.at(step)[:, 0].tolist()
    ]
    assert len(set(met)) == len(met) > rows - min(size, rows)
    assert set(met) <= set(range(rows))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seeds(), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_the_batch_of_a_step_depends_on_seed_and_step_alone(seed, steps):
    wandering = Batches(images(), 6, seed)
    for step in steps:
        fresh = Batches(images(), 6, seed)
        assert torch.equal(wandering.at(step), fresh.at(step))
        next(iter(wandering))


def test_steps_epochs_and_seeds_differ_in_order_and_noise():
    rows = Batches(numbered(30), 30, seed=0)
    assert not torch.equal(rows.at(0), rows.at(1))
    assert not torch.equal(rows.at(0), Batches(numbered(30), 30, seed=1).at(0))
    noisy = Batches(np.zeros((4, 1, 2, 2), np.uint8), 4, seed=0)
    assert not torch.equal(noisy.at(0), noisy.at(1))
    assert not torch.equal(noisy.at(0), next(iter(noisy)))


def test_iterating_meets_every_row_in_order_with_the_same_noise_each_time():
    batches = Batches(images(), 6, seed=3)
    first = list(batches)
    batches.at(5)
    second = list(batches)
    assert [len(batch) for batch in first] == [6, 6, 6, 2]
    assert all(map(torch.equal, first, second))
    assert np.array_equal(quantize(torch.cat(first)).numpy(), images())
    assert not torch.equal(first[0], next(iter(Batches(images(), 6, seed=4))))
    whole = torch.cat(first)
    noise = (whole + 0.5) * 256 - torch.from_numpy(images())
    assert not torch.allclose(noise[:6], noise[6:12], atol=1e-3)


def test_a_batch_larger_than_the_data_is_all_of_it():
    batches = Batches(numbered(5), 64)
    assert (batches.batch_size, batches.steps_per_epoch, len(batches)) == (5, 1, 5)
    assert sorted(batches.at(7)[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in batches] == [5]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_come_unchanged_in_their_precision(dtype):
    x = np.random.default_rng(0).standard_normal((10, 3)).astype(dtype)
    assert np.array_equal(torch.cat(list(Batches(x, 4))).numpy(), x)


def test_bytes_are_dequantised():
    batch = Batches(images(), 20, seed=0).at(0)
    assert batch.dtype == torch.float32
    assert batch.min() >= -0.5
    assert batch.max() < 0.5


def test_a_memory_mapped_array_is_read_and_not_written(tmp_path):
    np.save(tmp_path / "a.npy", images())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    expected, got = Batches(images(), 6, seed=1), Batches(mapped, 6, seed=1)
    assert torch.equal(got.at(4), expected.at(4))
    assert all(map(torch.equal, got, expected))
    assert np.array_equal(np.load(tmp_path / "a.npy"), images())


def test_batches_and_dequantize_agree():
    generator = torch.Generator().manual_seed(0)
    x = dequantize(torch.from_numpy(images()), generator)
    assert np.array_equal(quantize(x).numpy(), images())


def mapped_bytes(path):
    """What this process has of a file's map in memory."""
    blocks = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    sizes = (re.search(r"\nRss: +(\d+) kB", block) for block in blocks if str(path) in block)
    return sum(1024 * int(size[1]) for size in sizes)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what is mapped")
def test_a_large_file_is_read_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "MAPPED_BYTES", 2**20)
    array = np.random.default_rng(0).integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    loaded = Batches(np.load(tmp_path / "a.npy", mmap_mode="c"), 32)
    known = Batches(array, 32)
    for step in range(62):
        assert torch.equal(loaded.at(step), known.at(step))
        assert mapped_bytes(tmp_path) < 2**20
    for one, other in zip(loaded, known, strict=True):
        assert torch.equal(one, other)
    assert mapped_bytes(tmp_path) < 2**20
