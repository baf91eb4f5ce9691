"""Points of a manifold with a known density as arrays on disk, one for each split."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.data.arrays import write_rows
from submanifold.data.settings import PARTS, SyntheticSettings
from submanifold.validation import read_settings


def draw(
    settings: Mapping[str, Any], folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw the points of each split from a stream of its own, or find them drawn.

    A split's points do not depend on how many the others have, and the first n of more are the
    same n.

    Args:
        settings: What :class:`SyntheticSettings` takes.
        folder: Gets train.npy, valid.npy, test.npy and manifest.json.

    Returns:
        train, valid, test: float32 (N, D), copy-on-write maps of the files.
        manifest: source, noise, counts, dim (D), seed, split.

    Raises:
        UserError: The settings cannot work.
    """
    options = read_settings(SyntheticSettings, settings, "data")
    manifold = options.manifold
    manifest = {
        "source": options.source,
        "noise": manifold.noise,
        "counts": options.counts.model_dump(),
        "dim": manifold.ambient_dim,
        "seed": options.seed,
        "split": "independent draws",
    }
    path = folder / "manifest.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or json.loads(path.read_text()) != manifest:
        for part in PARTS:
            (folder / f"{part}.npy").unlink(missing_ok=True)
    arrays = []
    for index, part in enumerate(PARTS):
        count = getattr(options.counts, part)
        points = manifold.sample(count, np.random.default_rng([options.seed, index]))
        shape = (count, manifold.ambient_dim)
        arrays.append(write_rows(folder / f"{part}.npy", [points], shape))
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(manifest, indent=2))
    os.replace(partial, path)
    return arrays[0], arrays[1], arrays[2], manifest
