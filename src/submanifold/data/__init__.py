"""Images from many sources as arrays, and batches of them as continuous values."""

from submanifold.data.batches import Batches
from submanifold.data.dequantize import dequantize, quantize

__all__ = ["Batches", "dequantize", "quantize"]
