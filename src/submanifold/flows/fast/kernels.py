"""Compilation and calls of kernels.cpp.

Images are contiguous float32 tensors (B, H, W, C); P = B H W is the number of pixels.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILE = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-std=c++17", "-fPIC"]
# not linked with an OpenMP library: the kernels share the threads of the one that torch has loaded
LINK = ["-shared", "-Wl,--no-as-needed", f"-L{Path(torch.__file__).parent / 'lib'}"]
CACHE = "~/.cache/torch_extensions"  # where torch.utils.cpp_extension builds
LANES = 16  # as in kernels.cpp


@cache
def library() -> ctypes.CDLL | None:
    """Compile the kernels, once for each type of processor, and load them; None if this fails.

    :mod:`torch.utils.cpp_extension` is not used: its import takes a tenth of a second, and a
    process that is killed while it compiles leaves a lock that blocks all later ones.
    """
    compiler = os.environ.get("CXX", "c++")
    root = Path(os.path.expanduser(os.environ.get("TORCH_EXTENSIONS_DIR") or CACHE))
    try:
        key = hashlib.sha256(repr([SOURCE.read_bytes(), COMPILE, LINK, _processor()]).encode())
        path = root / "submanifold" / f"kernels-{key.hexdigest()[:16]}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                objects, built = f"{folder}/kernels.o", f"{folder}/kernels.so"
                compiling = compiler, *COMPILE, "-c", str(SOURCE), "-o", objects
                linking = compiler, objects, *LINK, "-ltorch_cpu", "-o", built
                for command in (compiling, linking):
                    subprocess.run(command, check=True, capture_output=True, text=True)
                os.replace(built, path)
        # glibc hands freed memory back above a threshold, which grows when it frees a block, up to
        # 32 MiB: below, hidden layers are mapped again in every training step
        torch.empty(2**25 - 2**16, dtype=torch.uint8)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        log.warning(
            "The C++ kernels of Glow could not be compiled (%s): training takes 1.4 to 1.9 times "
            "as long. Install a compiler with sudo apt-get install g++, or set CXX to one.",
            reason,
        )
        return None


def has_steps(dtype: torch.dtype) -> bool:
    """Whether :func:`step` exists: with AVX2 or AVX-512, for bfloat16 with AVX512_BF16."""
    return hasattr(library(), f"step_{_suffix(dtype)}")


class Saved(NamedTuple):
    """Tensors that the gradient of a step needs."""

    x: Tensor
    between: Tensor  # the input of the coupling, or the output of the inverse coupling
    log_scale: Tensor
    hidden: Tensor | None  # (2, P, width rounded up to a multiple of 16); None: freed, recompute


def step(
    x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype, inverse: bool, save: bool
) -> tuple[Tensor, Tensor, Saved | None]:
    """Apply a linear map to the channels and then a coupling, or the inverse coupling first.

    ``weights`` are the six parameters of the coupling's net and, if there is a linear map, its
    matrix (C, C) and shift (C,). Returns images, the log-determinant (B,) of the coupling, and with
    ``save`` what the gradient needs.
    """
    b, h, w, c = x.shape
    z, log_det, saved = torch.empty_like(x), x.new_empty(b), None
    if save:
        between = torch.empty_like(x) if len(weights) > 6 else z if inverse else x
        width = -(-len(weights[0]) // LANES) * LANES
        hidden = x.new_empty((2, b * h * w, width), dtype=dtype)
        saved = Saved(x, between, x.new_empty((b, h, w, c // 2)), hidden)
    _, to_between, to_log_scale, to_hidden = saved or (None,) * 4
    outputs = to_between, z, to_log_scale, log_det, to_hidden
    _call_step("step", dtype, x, _in_order(weights), x, *outputs, None, None, None, inverse)
    return z, log_det, saved


def dual_step(
    x: Tensor, dx: Tensor, weights: Sequence[Tensor], dtype: torch.dtype, inverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute :func:`step` and its tangents along dx: z, dz, log_det, dlog_det."""
    z, dz = torch.empty_like(x), torch.empty_like(x)
    log_det, dlog_det = x.new_empty(len(x)), x.new_empty(len(x))
    outputs = None, z, None, log_det, None, dx, dz, dlog_det
    _call_step("step", dtype, x, _in_order(weights), x, *outputs, inverse)
    return z, dz, log_det, dlog_det


def step_backward(
    dz: Tensor,
    dlog_det: Tensor,
    saved: Saved,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
    inverse: bool,
    only_x: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Compute the gradients of :func:`step`: of x, and of the weights unless ``only_x``."""
    weights = _in_order(weights)
    gradients = [] if only_x else [torch.empty_like(weight) for weight in weights]
    dx = torch.empty_like(dz)
    tensors = dz, dlog_det, *saved, dx, None if only_x else _pointers(gradients)
    _call_step("step_backward", dtype, dz, weights, *tensors, inverse)
    return dx, gradients


def _in_order(weights: Sequence[Tensor]) -> list[Tensor]:
    """Detach the weights, convolutions in channels-last order."""
    formats = {4: torch.channels_last}
    return [
        weight.detach().contiguous(memory_format=formats.get(weight.ndim, torch.contiguous_format))
        for weight in weights
    ]


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    """Create the struct ``Net`` of kernels.cpp; a missing linear map is null."""
    return (ctypes.c_void_p * 8)(*(tensor.data_ptr() for tensor in tensors))


Argument = Tensor | ctypes.Array | int | None


def _call_step(
    name: str, dtype: torch.dtype, x: Tensor, weights: Sequence[Tensor], *arguments: Argument
) -> None:
    sizes = (ctypes.c_long * 5)(*x.shape, len(weights[0]))
    function = getattr(library(), f"{name}_{_suffix(dtype)}")
    if not function(sizes, _pointers(weights), *map(_as_c, arguments)):
        raise MemoryError(f"Not enough memory for a coupling of images of shape {(*x.shape,)}.")


def _as_c(argument: Argument) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _suffix(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _processor() -> list[str]:
    """Describe what -march=native depends on."""
    if not (cpuinfo := Path("/proc/cpuinfo")).exists():
        return [platform.processor()]
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("flags", "Features", "model"))]
