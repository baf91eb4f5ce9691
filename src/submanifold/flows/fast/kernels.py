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
PARTS = 16  # of the pixels, whose sums are computed in parallel


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
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        log.info("Couplings run as torch modules: the kernels could not be compiled (%s)", reason)
        return None


def has_steps(dtype: torch.dtype) -> bool:
    """Whether :func:`step` exists for a dtype and is the fastest implementation.

    It needs AVX2 or AVX-512, and AVX512_BF16 for bfloat16, where torch is faster with AMX tiles.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return False
    return hasattr(library(), f"step_{_suffix(dtype)}")


class Saved(NamedTuple):
    """Tensors that the gradient of a step needs."""

    x: Tensor
    between: Tensor  # the input of the coupling, or the output of the inverse coupling
    log_scale: Tensor
    hidden: Tensor | None  # (2, P, width rounded up to a multiple of 16); None: recompute them


def step(
    x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype, inverse: bool, save: bool,
    checkpointing: bool,
) -> tuple[Tensor, Tensor, Saved | None]:  # fmt: skip
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
        hidden = None if checkpointing else x.new_empty((2, b * h * w, width), dtype=dtype)
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
    dz: Tensor, dlog_det: Tensor, saved: Saved, weights: Sequence[Tensor], dtype: torch.dtype,
    inverse: bool, only_x: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Compute the gradients of :func:`step`: of x, and of the weights unless ``only_x``."""
    weights = _in_order(weights)
    gradients = [] if only_x else [torch.empty_like(weight) for weight in weights]
    dx = torch.empty_like(dz)
    tensors = dz, dlog_det, *saved, dx, None if only_x else _pointers(gradients)
    _call_step("step_backward", dtype, dz, weights, *tensors, inverse)
    return dx, gradients


def unfold(x: Tensor, channels: int, dtype: torch.dtype, mirror: bool = False) -> Tensor:
    """Gather the 3x3 neighbours of each pixel, row by row or in reverse: (P, 9 channels)."""
    b, h, w, stride = x.shape
    out = x.new_empty((b * h * w, 9 * channels), dtype=dtype)
    _call("unfold", dtype, x, out, b, h, w, channels, stride, mirror)
    return out


def couple(v: Tensor, bias: Tensor, y: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift the second half of the channels of y, or invert this.

    v is the last product of the net, (P, 9 C), which is summed over neighbours. Returns images,
    log-scales (B, H, W, C / 2), and the log-determinant (B,).
    """
    b, h, w, c = y.shape
    z, log_scale, log_det = torch.empty_like(y), y.new_empty((b, h, w, c // 2)), y.new_empty(b)
    _call("couple", v.dtype, v, bias, y, z, log_scale, log_det, b, h, w, c, inverse)
    return z, log_scale, log_det


def couple_backward(
    dz: Tensor, dlog_det: Tensor, saved: Tensor, log_scale: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`couple` by y, or the output if inverse: of y, and of the net's output."""
    b, h, w, c = dz.shape
    dy, dnet = torch.empty_like(dz), torch.empty_like(dz)
    tensors = dz, dlog_det, saved, log_scale, dy, dnet
    _call("couple_backward", torch.float32, *tensors, b, h, w, c, inverse)
    return dy, dnet


def fold_onto(du: Tensor, dy: Tensor) -> None:
    """Add the gradient of :func:`unfold`, du (P, 9 C / 2), to the first half of dy's channels."""
    b, h, w, c = dy.shape
    _call("fold_onto", du.dtype, du, dy, b, h, w, c // 2)


def relu_backward(dh: Tensor, h: Tensor) -> Tensor:
    """Set dh to zero where h is, in place; return its sum over the first axis in float32."""
    pixels, width = dh.shape
    # not the number of threads, which would change the sum
    sums = dh.new_empty((PARTS, width), dtype=torch.float32)
    _call("relu_backward", dh.dtype, dh, h, sums, pixels, width, len(sums))
    return sums.sum(0)


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
    if not _call(name, dtype, sizes, _pointers(weights), *arguments):
        raise MemoryError(f"Not enough memory for a coupling of images of shape {(*x.shape,)}.")


def _call(name: str, dtype: torch.dtype, *arguments: Argument) -> int:
    return getattr(library(), f"{name}_{_suffix(dtype)}")(*map(_as_c, arguments))


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
