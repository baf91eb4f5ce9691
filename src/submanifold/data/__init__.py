"""Images and points as arrays on disk, and batches of them as continuous values."""

from submanifold.data.arrays import with_context
from submanifold.data.batches import Batches, dequantize, quantize

__all__ = ["Batches", "dequantize", "quantize", "with_context"]
