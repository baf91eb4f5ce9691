"""Recognize events that a model was trained on: their p-values are too large."""

import zlib
from collections.abc import Collection

import numpy as np

from submanifold.data.events import Events
from submanifold.models import Model

MAX_EVENTS, MAX_HASHES = 10**6, 1024
"""Training events that are hashed, and hashes in a model's file, the smallest: a random sample."""


def hash_events(model: Model, events: Events) -> np.ndarray:
    """Hash images by their pixels, and rows by their values in the units of the table, (N,)."""
    if "table" not in model.data:
        return np.array([zlib.crc32(event.tobytes()) for event in events.x], np.uint64)
    from pandas.util import hash_pandas_object  # slow to import

    from submanifold.data.tables import Preprocessor

    preprocessor = Preprocessor.from_dict(model.data["table"])
    rows = preprocessor.inverse_transform(events)  # without the noise of the dequantization
    return hash_pandas_object(rows, index=False).to_numpy() >> np.uint64(32)


def training_hashes(model: Model, train: Events, valid: Events) -> list[int]:
    """Return hashes of training events; none if more than 1% of validation events equal them."""
    hashes = np.unique(hash_events(model, train[:MAX_EVENTS]))[:MAX_HASHES].tolist()
    return [] if training_share(hashes, hash_events(model, valid)) > 0.01 else hashes


def training_share(known: Collection[int], hashes: np.ndarray) -> float:
    """Estimate the share of training events among events, from hashes of both."""
    sample = hashes[hashes <= max(known, default=-1)]
    return float(np.isin(sample, [*known]).mean()) if len(sample) else 0.0
