"""Between bytes and the continuous values that a density is on (method.md 3.4)."""

import torch
from torch import Tensor


def dequantize(pixels: Tensor, generator: torch.Generator | None = None, bits: int = 8) -> Tensor:
    """Add uniform noise: x = (pixel + U[0, 1)) / 2^bits - 0.5, of each byte's upper bits.

    From uint8 of any shape, on the generator's device, to float32 of that shape in [-0.5, 0.5).
    """
    levels = 2**bits
    kept = (pixels // (256 // levels)).float()
    noise = torch.rand(pixels.shape, generator=generator, device=pixels.device)
    # the largest byte plus the largest noise rounds up to 0.5 in float32
    return ((kept + noise) / levels - 0.5).clamp_max(0.5 - 2**-25)


def quantize(x: Tensor) -> Tensor:
    """Turn values in [-0.5, 0.5) back into uint8 pixels; values outside are clipped."""
    return ((x + 0.5) * 256).floor().clamp(0, 255).to(torch.uint8)
