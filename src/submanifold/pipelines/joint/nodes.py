"""Nodes of the joint pipeline."""

from pathlib import Path
from typing import Any

import numpy as np

from submanifold.manifold import Hierarchy
from submanifold.pipelines.hierarchical.nodes import train_stages


def train_jointly(
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    device: str,
    folder: Path,
    *stages: dict[str, Any],
) -> tuple[Hierarchy, dict[str, Any]]:
    """Train all stages at once, penalised on the image through all of them."""
    return train_stages(train, valid, seed, device, folder, stages)
