"""Safetensors files with a checksum, and the models that are stored in them."""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle

from submanifold.common.files import atomic_write
from submanifold.flows import Flow, build_flow, describe_flow

CHECKSUM = "checksum"


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, header: dict[str, Any], previous: Path | None = None
) -> None:
    """Write tensors and a JSON-serializable header atomically, with a checksum.

    Equal contents give equal bytes. An existing file is moved to ``previous``, or replaced.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {name: json.dumps(value) for name, value in header.items()}
    content = save(plain, {**texts, CHECKSUM: json.dumps(_checksum(plain, texts))})
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])  # in random order
    ordered = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with atomic_write(path) as partial:
        with open(partial, "wb") as file:
            file.writelines([content[:8], ordered.encode().ljust(start - 8)])
            file.write(memoryview(content)[start:])
        if previous is not None and path.exists():
            os.replace(path, previous)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`save_tensors`: its tensors, on the CPU, and its header.

    Raises:
        SafetensorError: The file is incomplete or not a safetensors file.
        ValueError: The checksum is missing or does not match.
    """
    with safe_open(path, framework="pt") as file:
        texts = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if texts.pop(CHECKSUM, None) != json.dumps(_checksum(tensors, texts)):
        raise ValueError("a checksum that is missing or does not match")
    return tensors, {name: json.loads(text) for name, text in texts.items()}


def describe(part: Any) -> Any:
    """Return the arguments of the constructor of a model, a stage or a flow, as JSON."""
    if isinstance(part, Flow):
        return describe_flow(part)
    if isinstance(part, nn.ModuleList):
        return [describe(member) for member in part]
    if isinstance(part, nn.Module):
        return {
            name: describe(getattr(part, name)) for name in inspect.signature(type(part)).parameters
        }
    return part


def build(kind: Any, arguments: dict[str, Any]) -> Any:
    """Build an untrained model, stage or flow from what :func:`describe` returned."""
    if kind is Flow:
        return build_flow(arguments)
    parts: dict[str, Any] = {}
    for name, part in getattr(kind, "parts", {}).items():
        value = arguments[name]
        is_list = isinstance(value, list)
        parts[name] = [build(part, v) for v in value] if is_list else value and build(part, value)
    return kind(**{**arguments, **parts})


def limited_parameters(most: int) -> RemovableHandle:
    """Return a context in which modules of this thread with too many parameters are refused."""
    thread, count = get_ident(), 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        if parameter is not None and get_ident() == thread:
            count += 1 + parameter.numel()
            if count > most:
                raise ValueError("a config with more parameters than the file")

    return register_module_parameter_registration_hook(add)


def _checksum(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
