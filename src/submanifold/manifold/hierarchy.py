"""A hierarchy: stages one inside the other, and the exact density that they make together."""

import json
import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from submanifold.errors import UserError
from submanifold.flows import FLOWS
from submanifold.manifold.stage import Stage, standard_normal_log_prob


class Hierarchy(nn.Module):
    r"""Stages :math:`f_1, \dots, f_M`, each acting on the manifold part of the one before.

    Each stage, extended by the identity on the v's before it, is a bijection of R^D, so

    .. math:: \log p(x) = \log N(u_M; 0, I) + \sum_m \log N(v_m; 0, \sigma_v^2 I)
              + \sum_m \log|\det J_{f_m}|

    is an exact, normalised density on all of R^D (method.md 2), with :math:`u_0 = x` and
    :math:`(u_m, v_m) = f_m(u_{m-1})`.

    Images are floats (batch, channels, height, width) in [-0.5, 0.5), as
    :func:`submanifold.data.dequantize` makes them from bytes; vectors are (batch, D).

    Args:
        stages: The stages, outermost first.

    Attributes:
        event_shape: Shape of one event.
        event_dim: D, the count of its numbers.
        dim: d_M, the dimension of the innermost manifold.
        notes: JSON-able facts that travel in the file, such as how it was trained.

    Raises:
        UserError: There is no stage, or a stage's flow does not act on as many numbers as the stage
            before it leaves.

    Example:
        >>> h = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=2)])
        >>> u, v = h.encode(torch.randn(3, 8))
        >>> u.shape, v.shape, h.decode(u).shape
        (torch.Size([3, 2]), torch.Size([3, 6]), torch.Size([3, 8]))
    """

    def __init__(self, stages: Sequence[Stage]):
        super().__init__()
        if not stages:
            raise UserError("A hierarchy has at least one stage. Set stage_1.")
        for number, (outer, inner) in enumerate(pairwise(stages), start=2):
            if inner.flow.event_shape != (outer.dim,):
                raise UserError(
                    f"Stage {number} acts on events of shape {inner.flow.event_shape}, but stage "
                    f"{number - 1} leaves {outer.dim} numbers. Change stage_{number - 1}.dim."
                )
        self.stages: Sequence[Stage] = nn.ModuleList(stages)  # type: ignore[assignment]
        self.event_shape = stages[0].flow.event_shape
        self.event_dim = math.prod(self.event_shape)
        self.dim = stages[-1].dim
        self.notes: dict[str, Any] = {}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x and return its log-density, in one pass.

        Args:
            x: Events, (batch, *event_shape).

        Returns:
            u (batch, d_M), v (batch, D - d_M), and log p(x) (batch,) in nats. v holds the last
            stage's off-manifold part first, so that (u, v) is ordered from coarse to fine.
        """
        u, off, log_prob = x, [], x.new_zeros(len(x))
        for stage in self.stages:
            u, v, log_det = stage(u)
            log_prob = log_prob + log_det + stage.off_manifold_log_prob(v)
            off.append(v)
        return u, torch.cat(off[::-1], 1), log_prob + standard_normal_log_prob(u)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density of x in nats, shape (batch,)."""
        return self(x)[2]

    def bits_per_dim(self, x: Tensor, bits: int | None = None) -> Tensor:
        """Negative log-density in bits for each dimension, shape (batch,).

        Args:
            x: Events, (batch, *event_shape).
            bits: Bits that one dimension was quantised to, added so that the value bounds the bits
                that code it: 8 for images and 0 for vectors when None.
        """
        return self.to_bits_per_dim(self.log_prob(x), bits)

    def to_bits_per_dim(self, log_prob: Tensor, bits: int | None = None) -> Tensor:
        """Turn nats for an event into bits for a dimension; see :meth:`bits_per_dim`."""
        if bits is None:
            bits = 8 if len(self.event_shape) == 3 else 0
        return bits - log_prob / (self.event_dim * math.log(2))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of x on the manifold, u (batch, d_M), and off it, v (batch, D - d_M)."""
        u, v, _ = self(x)
        return u, v

    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Invert (u, v); without v the point on the manifold (Alg. 2, generation, m = M..1)."""
        sizes = [stage.event_dim - stage.dim for stage in reversed(self.stages)]
        parts = [None] * len(sizes) if v is None else v.split(sizes, 1)
        for stage, part in zip(reversed(self.stages), parts, strict=True):
            u = stage.decode(u, part)
        return u

    def project(self, x: Tensor) -> Tensor:
        """Project x onto the manifold: decode its u with every v set to 0."""
        return self.decode(self.encode(x)[0])

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
        """Architecture, number of parameters and notes, JSON-able."""
        return {
            "stages": [_describe(stage) for stage in self.stages],
            "parameters": sum(p.numel() for p in self.parameters()),
            "notes": self.notes,
        }

    def save(self, path: str | Path) -> None:
        """Write weights, architecture and notes to one safetensors file, atomically."""
        header = {
            "stages": json.dumps([_describe(stage) for stage in self.stages]),
            "notes": json.dumps(self.notes),
        }
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        save_atomically(tensors, Path(path), header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Hierarchy":
        """Rebuild a hierarchy from a file that :meth:`save` wrote, in evaluation mode.

        Raises:
            UserError: There is no such file, or it holds something else.
        """
        if not Path(path).is_file():
            raise UserError(f"There is no flow at {path}. Give a file written by Hierarchy.save.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                stages, notes = json.loads(header["stages"]), json.loads(header["notes"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            hierarchy = cls([_build(**stage) for stage in stages])
            hierarchy.to(next(iter(tensors.values())).dtype)
            hierarchy.load_state_dict(tensors)
            hierarchy.notes = notes
        except (
            SafetensorError, LookupError, TypeError, ValueError, RuntimeError, StopIteration
        ) as error:  # fmt: skip
            raise UserError(
                f"{path} is not a flow of this program, or one of another architecture "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Give a file "
                "written by Hierarchy.save."
            ) from error
        return hierarchy.to(device).eval()


def save_atomically(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    """Write a safetensors file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file(tensors, partial, metadata=header)
    os.replace(partial, path)


def _describe(stage: Stage) -> dict[str, Any]:
    names = {flow: name for name, flow in FLOWS.items()}
    return {
        "flow": names[type(stage.flow)],
        "config": stage.flow.config,
        "dim": stage.dim,
        "off_manifold_scale": stage.off_manifold_scale,
    }


def _build(flow: str, config: dict[str, Any], dim: int, off_manifold_scale: float) -> Stage:
    return Stage(FLOWS[flow](**config), dim, off_manifold_scale)
