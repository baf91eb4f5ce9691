"""Points of a manifold with a known density as arrays on disk, one for each split."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.files import locked, read_json, remove_files, write_json
from submanifold.data.arrays import write_rows
from submanifold.data.hashes import hash_arrays, is_as_made
from submanifold.data.settings import PARTS, SyntheticSettings

log = logging.getLogger(__name__)


def draw(
    settings: SyntheticSettings, folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw the points of each split from a stream of its own, or find them drawn.

    A split's points do not depend on how many the others have. The folder gets train.npy,
    valid.npy, test.npy and, when they are whole, manifest.json.

    Returns:
        train, valid, test: float32 (N, D), copy-on-write maps of the files.
        manifest: source, noise, counts, dim (D), seed, split, and the arrays' hash; drawn anew,
            with a warning, are those of another hash.
    """
    manifold = settings.manifold
    manifest = {
        "source": settings.source,
        "noise": manifold.noise,
        "counts": settings.counts.model_dump(),
        "dim": manifold.ambient_dim,
        "seed": settings.seed,
        "split": "independent draws",
    }
    path = folder / "manifest.json"
    with locked(folder, f"the points of {settings.source}"):
        found = read_json(path) or {}
        if not is_as_made(folder):
            log.warning("the points in %s are not as they were made: drawn anew", folder)
            found = {}
        if {name: value for name, value in found.items() if name != "hash"} != manifest:
            remove_files([path, *folder.glob("*.npy")])
        arrays = []
        for index, part in enumerate(PARTS):
            count = getattr(settings.counts, part)
            points = manifold.sample(count, np.random.default_rng([settings.seed, index]))
            shape = (count, manifold.ambient_dim)
            arrays.append(write_rows(folder / f"{part}.npy", [points], shape))
        manifest["hash"] = hash_arrays(folder)
        if manifest != found:
            write_json(path, manifest)
    return arrays[0], arrays[1], arrays[2], manifest
