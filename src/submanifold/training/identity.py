"""What a checkpoint must agree with: initial weights, data and settings."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from submanifold.common.errors import unexpected

WEIGHTS = "architecture or initial weights"  #: Key of :func:`hash_weights` in an identity.
RESTART = "Delete its folder to train from the beginning, or restore what differs"


def hash_weights(parts: Sequence[nn.Module | None], fresh: Sequence[nn.Module] = ()) -> str:
    """Hash the architecture of modules and their weights, except random ones of ``fresh`` modules.

    The seed determines these up to rounding.
    """
    random = {id(t) for module in fresh for t in module.state_dict(keep_vars=True).values()}
    digest = hashlib.sha256()
    for module in filter(None, parts):
        for name, tensor in module.state_dict(keep_vars=True).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            if id(tensor) not in random:
                plain = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_identity(stored: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """Raise a UserError if a checkpoint is one of another training; numbers may differ by 1%."""
    others = []
    for name, value in identity.items():
        known: Any = stored.get(name)
        is_list = isinstance(value, list) and isinstance(known, list) and len(value) == len(known)
        if known != value and not (is_list and np.allclose(known, value, 0.01, 0.001)):
            others.append(name)
    if others:
        expected, got = "a checkpoint of this training", f"one with other {', '.join(others)}"
        raise unexpected(path, expected, got, RESTART)
