"""Safetensors files with a checksum, and the models that are stored in them."""

import hashlib
import inspect
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write
from submanifold.flows import Flow, build_flow, describe_flow
from submanifold.models.stage import Stage

if TYPE_CHECKING:
    from submanifold.models.model import Model

FORMAT = 2
"""Version of model files; raise it with every change of what :func:`describe` returns."""
CHECKSUM = "checksum"
GAUSSIAN = "gaussian."
"""Prefix of the names of tensors of :attr:`Model.gaussian`."""
MIN_SIZE_LIMIT, LAYERS_LIMIT = 2**24, 64


def save_tensors(
    tensors: dict[str, Tensor], path: Path, header: dict[str, Any], previous: Path | None = None
) -> None:
    """Write a safetensors file atomically, with a checksum. Equal contents give equal bytes.

    Args:
        tensors: Contiguous tensors on the CPU.
        path: The file.
        header: JSON-serializable values by name.
        previous: Where an existing file is moved; by default it is replaced.
    """
    texts = {name: json.dumps(value) for name, value in header.items()}
    with atomic_write(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # respects the umask; save_file always sets 0600
        save_file(tensors, partial, {**texts, CHECKSUM: json.dumps(_checksum(tensors, texts))})
        _sort_header(partial)
        partial.chmod(mode)
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


def is_intact(path: Path) -> bool:
    """Whether a file of :func:`save_tensors` is complete and unchanged."""
    try:
        load_tensors(path)
        return True
    except (SafetensorError, OSError, ValueError):
        return False


def describe(part: Any) -> Any:
    """Return the arguments of the constructor of a model, a stage or a flow, as JSON."""
    if isinstance(part, Flow):
        return describe_flow(part)
    if isinstance(part, nn.ModuleList):
        return [describe(member) for member in part]
    if isinstance(part, nn.Module):
        return {name: describe(getattr(part, name))
                for name in inspect.signature(type(part)).parameters}  # fmt: skip
    return part


def build(kind: type[nn.Module], arguments: Any, kinds: Mapping[str, type["Model"]]) -> Any:
    """Build an untrained model or stage from what :func:`describe` returned."""
    names = [*inspect.signature(kind).parameters]
    if not isinstance(arguments, dict) or arguments.keys() != {*names}:
        raise UserError(f"a {kind.__name__.lower()} without the arguments {', '.join(names)}")
    builders: dict[str, Any] = {
        "flows": build_flow,
        "stages": lambda stage: build(Stage, stage, kinds),
        "charts": lambda chart: build(kinds["hierarchy"], chart, kinds),
    }
    hints, values = get_type_hints(kind.__init__, include_extras=True), {}
    for name, value in arguments.items():
        if name in builders:
            values[name] = [*map(builders[name], TypeAdapter(list[dict]).validate_python(value))]
        else:
            values[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
    return kind(**values)


def load_model(path: Path, kinds: Mapping[str, type["Model"]]) -> "Model":
    """Rebuild a model, on the CPU, from its file and the classes of models by name.

    Raises:
        UserError: The file does not exist, is not a model file or does not match this version.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file. Pass a file of Model.save; `submanifold runs NAME` prints the "
            "path of a run's model."
        )
    try:
        return _build(*load_tensors(path), kinds)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a model that this version can build, got {_first_line(error)}. "
            "Pass a file written by Model.save, such as the hierarchy.safetensors of a run."
        ) from error


def _build(
    tensors: dict[str, Tensor], header: dict[str, Any], kinds: Mapping[str, type["Model"]]
) -> "Model":
    if header.get("format") != FORMAT:
        raise UserError(
            f"format {header.get('format', 1)} instead of {FORMAT}: train the model again, or use "
            "the version that wrote it"
        )
    if header.get("model") not in kinds:
        raise UserError(f"model: expected one of {', '.join(kinds)}, got {header.get('model')}")
    for name in ("config", "notes", "data", "calibration"):
        if not isinstance(header.get(name), dict):
            raise UserError(f"no mapping as its {name}")
    kind, config, data = kinds[header["model"]], header["config"], header["data"]
    gaussian = {name.removeprefix(GAUSSIAN): tensor for name, tensor in tensors.items()
                if name.startswith(GAUSSIAN)}  # fmt: skip
    tensors = {name: t for name, t in tensors.items() if not name.startswith(GAUSSIAN)}
    largest = max(MIN_SIZE_LIMIT, sum(t.numel() for t in tensors.values()))
    integers = re.findall(r"(?<![\w.+-])\d+(?![\w.])", json.dumps(config))
    if any(int(digits) > largest for digits in integers):
        raise UserError(f"a config with sizes above {largest}, more than its tensors have")
    # on the meta device first, so that a config cannot allocate more than its tensors
    try:
        with torch.device("meta"), _limited_layers(LAYERS_LIMIT + 4 * len(tensors)):
            planned = build(kind, config, kinds)
    except RuntimeError as error:
        raise UserError(f"a config of impossible sizes ({_first_line(error)})") from error
    expected = {name: t.shape for name, t in planned.state_dict().items()}
    shapes = {name: t.shape for name, t in tensors.items()}
    if expected != shapes or planned.event_dim > largest:
        raise UserError("tensors whose names or shapes do not match the config")
    if "size" in data:
        size, margin, shape = data["size"], data.get("margin", 0), planned.event_shape
        if shape != (data.get("channels"), size, size) or margin not in range((size + 1) // 2):
            raise UserError(f"images of size {size}, margin {margin}, for events of shape {shape}")
    model = build(kind, config, kinds)
    model.to(next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    model.load_state_dict(tensors)
    model.notes, model.data = header["notes"], data
    model.calibration, model.gaussian = header["calibration"], gaussian
    return model


@contextmanager
def _limited_layers(most: int) -> Iterator[None]:
    """Raise UserError if this thread gives modules more than this number of parameters."""
    count, thread = 0, threading.get_ident()

    def register(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise UserError("a config of more layers than its tensors have")

    of_parameters = hooks.register_module_parameter_registration_hook(register)
    with of_parameters, hooks.register_module_buffer_registration_hook(register):
        yield


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        lines = ([*map(str, problem["loc"][-1:]), problem["msg"]] for problem in error.errors())
        return "; ".join(map(": ".join, lines))
    return str(error).partition("\n")[0].removesuffix(".")


def _sort_header(path: Path) -> None:
    """Sort the header of a safetensors file in place; safetensors writes it in random order."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        file.seek(8)
        file.write(text.encode().ljust(size))


def _checksum(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
