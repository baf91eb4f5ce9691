"""Images and points as arrays on disk, and batches of them as continuous values."""

from submanifold.data.batches import Batches, dequantize, quantize
from submanifold.data.events import Events

__all__ = ["Batches", "Events", "dequantize", "quantize"]
