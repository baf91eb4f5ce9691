"""Checkpoints of trainings and rotations, and the identity that they must agree with."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from submanifold.common import distributed
from submanifold.common.errors import unexpected
from submanifold.models.io import load_tensors, save_tensors

log = logging.getLogger(__name__)

WEIGHTS = "architecture or initial weights"  #: Key of :func:`hash_weights` in an identity.

ROUNDING = 1e-3  #: Of the norm of a list of numbers in an identity.

Identity = Mapping[str, Any]  #: What a result depends on, JSON-able.


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


def write(
    path: Path,
    identity: Identity,
    tensors: Mapping[str, Tensor],
    previous: Path | None = None,
    **header: Any,
) -> None:
    """Write a checkpoint on the first rank, and keep the one before it as ``previous``."""
    if distributed.rank() == 0:
        save_tensors(tensors, path, {"identity": identity, **header}, previous)


def read(identity: Identity, *paths: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the tensors and the header of the first intact checkpoint, if there is one.

    A checkpoint of another identity raises a :class:`.UserError`. Lists of numbers may differ by
    rounding, 0.1% of their norm.
    """
    for path in filter(Path.exists, paths):
        try:
            tensors, header = load_tensors(path)
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s is damaged (%s)", path, error)
            continue
        stored = header.pop("identity", {})
        others = [name for name in identity if not _is_close(stored.get(name), identity[name])]
        if others:
            expected, got = "a checkpoint of this training", f"one with other {', '.join(others)}"
            fix = "Delete its folder to train from the beginning, or restore what differs"
            raise unexpected(path, expected, got, fix)
        return tensors, header
    return None


def _is_close(stored: Any, value: Any) -> bool:
    are_lists = isinstance(value, list) and isinstance(stored, list) and len(value) == len(stored)
    if stored == value or not are_lists:
        return stored == value
    difference = np.linalg.norm(np.subtract(stored, value))
    return bool(difference <= ROUNDING * np.linalg.norm(value))
