import pytest
import torch

from submanifold.data.batches import dequantize, quantize

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).repeat(400, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_quantizing_undoes_dequantizing_for_every_byte():
    x = dequantize(EVERY_BYTE, generator())
    assert x.dtype == torch.float32
    assert torch.equal(quantize(x), EVERY_BYTE)


@pytest.mark.parametrize("bits", [8, 5, 1])
def test_values_are_uniform_within_the_bin_of_their_byte(bits):
    x = dequantize(EVERY_BYTE, generator(), bits).double()
    bins = EVERY_BYTE // 2 ** (8 - bits)
    noise = (x + 0.5) * 2**bits - bins
    assert noise.min() > -1e-4
    assert noise.max() < 1 + 1e-4
    error = (1 / 12 / noise.numel()) ** 0.5
    assert noise.mean().item() == pytest.approx(0.5, abs=4 * error)
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.02)
    both = torch.stack([noise.flatten(), bins.flatten().double()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.02


def test_no_noise_however_large_reaches_one_half(monkeypatch):
    largest = torch.tensor(1 - 2**-24)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: largest.expand(shape))
    x = dequantize(torch.arange(256, dtype=torch.uint8))
    assert x.max() < 0.5
    assert x.min() >= -0.5
    assert quantize(x).max() == 255


def test_the_noise_is_that_of_the_generator():
    pixels = EVERY_BYTE[:2]
    assert torch.equal(dequantize(pixels, generator(1)), dequantize(pixels, generator(1)))
    assert not torch.equal(dequantize(pixels, generator(1)), dequantize(pixels, generator(2)))


def test_values_outside_the_range_are_clipped():
    x = torch.tensor([-9.0, -0.5, 0.0, 0.49999, 0.5, 9.0])
    assert quantize(x).tolist() == [0, 0, 128, 255, 255, 255]
