"""What every model of a manifold and a density can do, and its file."""

import hashlib
import json
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from typing_extensions import Self

from submanifold.common.device import choose_device
from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write
from submanifold.geometry.nearest import nearest_point
from submanifold.models.stage import standard_normal_log_prob

NEAREST_STEPS = 3
CHECKSUM = "checksum"
LARGEST_NUMBER = 2**24
"""A file's architecture may have numbers up to it, or up to as many as its tensors hold."""
MOST_PARAMETERS = 10
"""Most tensors that building a model may make for each tensor of its file: some are replaced."""


class Model(nn.Module, ABC):
    """A manifold of dimension d in R^D, and an exact density on R^D or on the manifold alone.

    A model defines :meth:`forward`, :meth:`decode`, :attr:`config` and :meth:`from_config`; all
    else follows. Images are floats (batch, channels, height, width) in [-0.5, 0.5), as
    :func:`submanifold.data.dequantize` makes them from bytes; vectors are (batch, D). Every method
    raises :class:`UserError` for tensors of another shape, or of another dtype than the weights.

    Attributes:
        kind: The name by which a file says what model it holds.
        event_shape: Shape of one event.
        event_dim: D, the count of its numbers.
        dim: d.
        notes: JSON-able facts that travel in the file, such as how it was trained.
        data: JSON-able facts on what it was trained on, which a new picture needs to be made alike:
            ``size``, ``channels``, ``crop``, ``value_range`` and ``bits``; empty if not known.
        calibration: JSON-able quantiles of scores on such data
            (:class:`submanifold.evaluation.scores.Calibration`); where there are none empty, or
            the reason as ``why``.
    """

    kinds: ClassVar[dict[str, type["Model"]]] = {}
    kind: ClassVar[str]

    event_shape: tuple[int, ...]
    dim: int

    def __init_subclass__(cls) -> None:
        """Make the kind known to :meth:`load`."""
        Model.kinds[cls.kind] = cls

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.calibration: dict[str, Any] = {}

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x and return its log-density, in one pass.

        Args:
            x: Events, (batch, *event_shape).

        Returns:
            u (batch, d) on the manifold, v (batch, D - d) off it, log p(x) (batch,) in nats; where
            :attr:`has_density` is False v has no columns for what is off an injection, and the
            density is that on the manifold, at the projection of x, or not a number.
        """

    @abstractmethod
    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Invert (u, v); without v the point on the manifold."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The architecture, JSON-able."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build an untrained model of an architecture."""

    @property
    def event_dim(self) -> int:
        """D, the count of an event's numbers."""
        return math.prod(self.event_shape)

    @property
    def dims(self) -> list[int]:
        """Dimensions from the whole space to the manifold: D, ..., d."""
        return [self.event_dim, self.dim]

    @property
    def code_dims(self) -> tuple[int, int]:
        """Columns of u and of v."""
        return self.dim, self.event_dim - self.dim

    def parts(self) -> dict[str, "Model"]:
        """Models inside this one whose errors are reported beside its own, by name."""
        return {}

    @property
    def has_density(self) -> bool:
        """Whether there is a density on all of space, or on the manifold alone."""
        return True

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density of x in nats, shape (batch,).

        Raises:
            UserError: There is none on all of space.
        """
        if not self.has_density:
            raise UserError(
                "This model has a density on its manifold alone, and none on all of space: a stage "
                "of it is no bijection. submanifold.manifold_log_prob computes it."
            )
        return self(x)[2]

    def coordinates(self, u: Tensor) -> Tensor:
        """Those numbers of an encoded u that are coordinates, (batch, d): all of them."""
        return u

    def overlap(self, u: Tensor) -> Tensor:
        """Log of the factor by which charts change the density at u, (batch,): 0 without charts."""
        return u.new_zeros(len(u))

    def code_log_prob(self, u: Tensor) -> Tensor:
        """Log-density in nats (batch,) of the u of a sample, whose coordinates are N(0, I).

        It is the log-density on the manifold plus the log volume of the decoder at u.
        """
        self._check_coordinates(u)
        return standard_normal_log_prob(self.coordinates(u)) + self.overlap(u)

    def bits_per_dim(self, x: Tensor, bits: int | None = None) -> Tensor:
        """Negative log-density in bits for each dimension, shape (batch,).

        Args:
            x: Events, (batch, *event_shape).
            bits: Bits that one dimension was quantised to, added so that the value bounds the bits
                that code it: 8 for images and 0 for vectors when None.
        """
        return self.to_bits_per_dim(self.log_prob(x), bits)

    def to_bits_per_dim(self, log_prob: Tensor, bits: int | None = None) -> Tensor:
        """Turn nats for an event into bits for a dimension; see :meth:`bits_per_dim`.

        A density on the manifold alone has its own unit: bits for each dimension of the manifold.
        """
        if not self.has_density:
            return -log_prob / (self.dim * math.log(2))
        if bits is None:
            bits = 8 if len(self.event_shape) == 3 else 0
        return bits - log_prob / (self.event_dim * math.log(2))

    def encode(self, x: Tensor, nearest: bool = False) -> tuple[Tensor, Tensor]:
        """Coordinates of x on the manifold, u (batch, d), and off it, v (batch, D - d).

        Args:
            x: Events, (batch, *event_shape).
            nearest: Whether u is that of the point near the nearest one of the manifold that
                ``project(x, steps=3)`` finds; v is that of x itself all the same, and (u, v) no
                longer decodes to x.
        """
        u, v, _ = self(x)
        return (self._nearest(x, u, NEAREST_STEPS) if nearest else u), v

    def project(self, x: Tensor, steps: int = 0) -> Tensor:
        """Project x onto the manifold: decode its u with every v set to 0.

        Args:
            x: Events, (batch, *event_shape).
            steps: Gauss-Newton steps from there towards the nearest point of the manifold
                (:func:`submanifold.geometry.nearest.nearest_point`); 0 is the encoder's projection.
                The squared error after them is an upper bound on the smallest one.
        """
        u = self.encode(x)[0]
        return self.decode(self._nearest(x, u, steps) if steps else u)

    @property
    def eigenvalues(self) -> Tensor | None:
        """An estimate of E[J^T J]'s diagonal, (d,): what each u contributes; None if not known."""
        return None

    def _nearest(self, x: Tensor, u: Tensor, steps: int) -> Tensor:
        return nearest_point(self.decode, x, u, steps, self.eigenvalues)

    def _check_events(self, x: Tensor) -> None:
        """Raise :class:`UserError` for events of another shape or dtype; read no values."""
        self._check("x", x, self.event_shape)

    def _check_coordinates(self, u: Tensor, v: Tensor | None = None) -> None:
        """Raise :class:`UserError` for coordinates of another shape or dtype; read no values."""
        on, off = self.code_dims
        self._check("u", u, (on,))
        if v is not None:
            self._check("v", v, (off,), len(u))

    def _check(
        self, name: str, given: Tensor, shape: tuple[int, ...], rows: int | None = None
    ) -> None:
        weight = next(self.parameters(), None)
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
        if isinstance(given, Tensor) and given.shape[1:] == shape and rows in (None, len(given)):
            fits = given.dtype == dtype if weight is not None else given.is_floating_point()
            if fits:
                return
        expected = ", ".join(map(str, ["batch" if rows is None else rows, *shape]))
        expected = f"{str(dtype).removeprefix('torch.')} of shape ({expected})"
        if not isinstance(given, Tensor):
            got, fix = type(given).__name__, f"Convert it with torch.as_tensor({name})."
        else:
            got = f"{str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
            fix = self._fix(name, given, shape, dtype)
        raise UserError(f"{name}: expected {expected}, got {got}. {fix}")

    def _fix(self, name: str, given: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> str:
        images = len(shape) == 3
        if given.dtype == torch.uint8 and images:
            return f"Convert bytes with submanifold.data.dequantize({name})."
        if given.dtype != dtype:
            return f"Convert it with {name}.to({dtype}), or the model with model.to(...)."
        if name != "x":
            return "Give coordinates as encode returns them."
        if given.shape == shape:
            return "Add the batch axis with x[None]."
        if images:
            return "submanifold.inference.Pictures crops and resizes images as in training."
        return "Give one event in each row."

    def rejection_map(self, x: Tensor) -> Tensor:
        """Difference x - project(x) at each pixel, which the manifold rejects (Figure 7)."""
        return x - self.project(x)

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n events on the manifold, u ~ N(0, temperature^2 I) and v = 0 (Alg. 1 and 2).

        Noise is drawn on the CPU, so that one seed gives one set of samples on every device.
        """
        weight = next(self.parameters())
        u = torch.randn(n, self.dim, generator=generator, dtype=weight.dtype)
        with torch.no_grad():
            return self.decode(temperature * u.to(weight.device))

    def describe(self) -> dict[str, Any]:
        """Kind, architecture, number of parameters, notes and data, JSON-able."""
        about = {"model": self.kind, **self.config}
        about["parameters"] = sum(p.numel() for p in self.parameters())
        return {**about, "notes": self.notes, "data": self.data}

    def save(self, path: str | Path) -> None:
        """Write weights, architecture, notes and data to one safetensors file, whole or not."""
        header = {"model": self.kind, "config": self.config, "notes": self.notes,
                  "data": self.data, "calibration": self.calibration}  # fmt: skip
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        save_tensors(tensors, Path(path), header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Rebuild a model from a file that :meth:`save` wrote, in evaluation mode.

        The file's size bounds the memory that this takes, whatever its header asks for.

        Args:
            path: The file.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.

        Raises:
            UserError: There is no such file, :meth:`save` did not write it or it has changed since,
                this version has no such architecture, or the machine has no such device.
        """
        on = choose_device(str(device))
        if not Path(path).is_file():
            raise UserError(f"There is no model at {path}. Give a file written by Model.save.")
        try:
            model = _rebuilt(*_read(Path(path)))
        except (UserError, ValidationError) as error:
            raise UserError(
                f"{path}: expected a model that this version can build, got {_first_line(error)}. "
                "Give a file written by Model.save, such as the hierarchy.safetensors of a run."
            ) from error
        if not isinstance(model, cls):
            raise UserError(f"{path} holds a {model.kind}, not a {cls.kind}. Use Model.load.")
        return model.to(on).eval()


class Header(BaseModel):
    """What the file of a model has besides its tensors.

    Attributes:
        model: The kind.
        config: The architecture.
        notes: See :class:`Model`.
        data: Likewise.
        calibration: Likewise.
    """

    model: str
    config: dict[str, Any]
    notes: dict[str, Any]
    data: dict[str, Any]
    calibration: dict[str, Any] = {}


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        tensors, header = load_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"a file that Model.save did not write ({_first_line(error)})") from error
    return Header.model_validate(header), tensors


def _rebuilt(header: Header, tensors: dict[str, Tensor]) -> Model:
    if header.model not in Model.kinds:
        raise UserError(f"model: expected one of {', '.join(Model.kinds)}, got {header.model}")
    kind, given = Model.kinds[header.model], {name: t.shape for name, t in tensors.items()}
    largest = max(sum(map(math.prod, given.values())), LARGEST_NUMBER)
    if any(number > largest for number in _integers(header.config)):
        raise UserError(f"a config with numbers above {largest}, more than its tensors hold")
    # the meta device has shapes and no memory, so that nothing but a size can fail there
    try:
        with torch.device("meta"), _at_most(MOST_PARAMETERS * (len(tensors) + 1), largest):
            expected = {n: t.shape for n, t in kind.from_config(header.config).state_dict().items()}
    except RuntimeError as error:
        raise UserError(f"a config of impossible sizes ({_first_line(error)})") from error
    if wrong := sorted(dict(expected.items() ^ given.items())):
        name = wrong[0]
        raise UserError(
            f"tensors that do not fit the config ({name}: expected "
            f"{_shape(expected.get(name))}, got {_shape(given.get(name))})"
        )
    model = kind.from_config(header.config)
    model.to(next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    model.load_state_dict(tensors)
    model.notes, model.data = header.notes, header.data
    model.calibration = header.calibration
    return model


def _integers(config: Any) -> Iterator[int]:
    """All integers anywhere in JSON."""
    if isinstance(config, int):
        yield config
    elif isinstance(config, dict | list):
        for each in config.values() if isinstance(config, dict) else config:
            yield from _integers(each)


@contextmanager
def _at_most(count: int, size: int) -> Iterator[None]:
    """Refuse to make more parameters, or a larger one, in this thread."""
    thread, made = threading.get_ident(), 0

    def check(_module: nn.Module, _name: str, weight: nn.Parameter) -> None:
        nonlocal made
        if threading.get_ident() == thread:
            made += 1
            if made > count or weight.numel() > size:
                raise UserError("a config of more or larger parameters than its tensors hold")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else f"shape {tuple(shape)}"


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
    return str(error).partition("\n")[0].removesuffix(".")


def save_tensors(
    tensors: dict[str, Tensor], path: Path, header: dict[str, Any], earlier: Path | None = None
) -> None:
    """Write a safetensors file that is whole or not there, with a checksum of all it holds.

    Args:
        tensors: On the CPU, contiguous.
        path: The file.
        header: JSON-able values by name.
        earlier: Where the file goes that was there, if it is kept.
    """
    texts = {name: json.dumps(value) for name, value in header.items()}
    with atomic_write(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # the umask's, where that of save_file is 0600
        save_file(tensors, partial, {**texts, CHECKSUM: json.dumps(_checksum(tensors, texts))})
        _sort_header(partial)
        partial.chmod(mode)
        if earlier is not None and path.exists():
            os.replace(path, earlier)


def _sort_header(path: Path) -> None:
    """Sort the header of a safetensors file in place, which has metadata in random order."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        file.seek(8)
        file.write(text.encode().ljust(size))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: the tensors, on the CPU, and the header.

    Raises:
        SafetensorError: The file is not whole.
        ValueError: Its header is of another program, or what it holds is not what was written.
    """
    with safe_open(path, framework="pt") as file:
        texts = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = texts.pop(CHECKSUM, None)
    if checksum is None:
        raise ValueError("it has no checksum")
    if checksum != json.dumps(_checksum(tensors, texts)):
        raise ValueError("its checksum does not fit: the file has changed since it was written")
    return tensors, {name: json.loads(text) for name, text in texts.items()}


def is_whole(path: Path) -> bool:
    """Whether a safetensors file holds what was written to it."""
    try:
        load_tensors(path)
        return True
    except (SafetensorError, OSError, ValueError):
        return False


def _checksum(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
