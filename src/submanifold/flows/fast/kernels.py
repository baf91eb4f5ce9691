"""What stands between the matrix products of a coupling net: kernels.cpp, compiled and called.

Images are float32 (B, H, W, C), contiguous; P = B H W pixels. A machine without a compiler has no
kernels (:func:`library` is None) and uses plain modules.
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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import cpp_extension

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILE = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-std=c++17", "-fPIC"]
# not linked with OpenMP: its threads are to be those that torch has, not as many again
LINK = ["-shared", "-Wl,--no-as-needed", *(f"-L{path}" for path in cpp_extension.library_paths())]


@cache
def library() -> ctypes.CDLL | None:
    """Compile the kernels, once for each kind of processor, and load them; None where that fails.

    Torch's own loader is not used, because a run that is killed while it compiles leaves a lock on
    which every later run waits.
    """
    compiler = os.environ.get("CXX", "c++")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    try:
        key = hashlib.sha256(repr([SOURCE.read_bytes(), COMPILE, LINK, _processor()]).encode())
        path = Path(root, "submanifold", f"kernels-{key.hexdigest()[:16]}.so")
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
        log.info("Couplings run as plain modules: their kernels could not be compiled (%s)", reason)
        return None


def has_steps(dtype: torch.dtype) -> bool:
    """Whether :func:`step` can multiply numbers of this type, and is the faster way.

    That is on AVX2 and AVX-512, and in bfloat16 where there are products of it, but no AMX tiles:
    those are for torch's own products.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return False
    return hasattr(library(), f"step_{_suffix(dtype)}")


class Kept(NamedTuple):
    """What the gradient of a step needs: its input, what stands between its parts, log-scales.

    The hidden layers are (2, P, width filled up to a multiple of 16), or None to be recomputed.
    """

    x: Tensor
    between: Tensor
    log_scale: Tensor
    hidden: Tensor | None


def step(
    x: Tensor,
    net: Sequence[Tensor],
    mixing: Sequence[Tensor],
    dtype: torch.dtype,
    inverse: bool,
    keep: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Kept | None]:
    """Mix the channels of x, and couple them; or undo a coupling, and mix.

    The net is the six parameters of the coupling's, the mixing a matrix (C, C) and a shift (C,), or
    nothing. Returns the image that x becomes, the log-determinant (B,) of the coupling, and what is
    kept for the gradient if it is to be.
    """
    b, h, w, c = x.shape
    z, log_det, kept = torch.empty_like(x), x.new_empty(b), None
    if keep:
        between = torch.empty_like(x) if mixing else z if inverse else x
        filled = -(-len(net[0]) // 16) * 16
        hidden = None if recompute else x.new_empty((2, b * h * w, filled), dtype=dtype)
        kept = Kept(x, between, x.new_empty((b, h, w, c // 2)), hidden)
    _, to_between, to_log_scale, to_hidden = kept or (None,) * 4
    weights = _Addresses([_in_order(each) for each in (*net, *mixing)])
    tensors = x, to_between, z, to_log_scale, log_det, to_hidden
    _call_step("step", dtype, x, net, weights, *tensors, None, None, None, int(inverse))
    return z, log_det, kept


def dual_step(
    x: Tensor,
    dx: Tensor,
    net: Sequence[Tensor],
    mixing: Sequence[Tensor],
    dtype: torch.dtype,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`step`, and the tangents of its results along dx: z, dz, log_det, dlog_det."""
    z, dz = torch.empty_like(x), torch.empty_like(x)
    log_det, dlog_det = x.new_empty(len(x)), x.new_empty(len(x))
    weights = _Addresses([_in_order(each) for each in (*net, *mixing)])
    tensors = x, None, z, None, log_det, None, dx, dz, dlog_det
    _call_step("step", dtype, x, net, weights, *tensors, int(inverse))
    return z, dz, log_det, dlog_det


def step_backward(
    dz: Tensor,
    dlog_det: Tensor,
    kept: Kept,
    net: Sequence[Tensor],
    mixing: Sequence[Tensor],
    dtype: torch.dtype,
    inverse: bool,
    by_x_alone: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of :func:`step` by x, and by the net and what mixes unless by x alone."""
    weights = [_in_order(each) for each in (*net, *mixing)]
    gradients = [] if by_x_alone else [torch.empty_like(each) for each in weights]
    dx = torch.empty_like(dz)
    tensors = dz, dlog_det, *kept, dx, _Addresses(gradients) if gradients else None
    _call_step("step_backward", dtype, dz, net, _Addresses(weights), *tensors, int(inverse))
    return dx, gradients


def unfold(x: Tensor, channels: int, dtype: torch.dtype, mirror: bool = False) -> Tensor:
    """Gather the 3x3 neighbours of each pixel, row by row or mirrored: (P, 9 channels)."""
    b, h, w, stride = x.shape
    out = x.new_empty((b * h * w, 9 * channels), dtype=dtype)
    _call("unfold", dtype, x, out, b, h, w, channels, stride, int(mirror))
    return out


def couple(v: Tensor, bias: Tensor, y: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift the second half of y's channels, or undo it.

    The net's last product v (P, 9 C) is summed over neighbours, and its bias (C,) added. Returns
    the image that y becomes, the log-scales (B, H, W, C / 2), and the log-determinant (B,).
    """
    b, h, w, c = y.shape
    z, log_scale, log_det = torch.empty_like(y), y.new_empty((b, h, w, c // 2)), y.new_empty(b)
    _call("couple", v.dtype, v, bias, y, z, log_scale, log_det, b, h, w, c, int(inverse))
    return z, log_scale, log_det


def couple_backward(
    dz: Tensor, dlog_det: Tensor, kept: Tensor, log_scale: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`couple`: by y, as if the net did not see it, and by the net's output.

    The tensor that is kept is y, or the image it became when inverse.
    """
    b, h, w, c = dz.shape
    dy, dnet = torch.empty_like(dz), torch.empty_like(dz)
    tensors = dz, dlog_det, kept, log_scale, dy, dnet
    _call("couple_backward", torch.float32, *tensors, b, h, w, c, int(inverse))
    return dy, dnet


def fold_onto(du: Tensor, dy: Tensor) -> None:
    """Add to dy, in its first half of channels, the gradient of :func:`unfold`, du (P, 9 C / 2)."""
    b, h, w, c = dy.shape
    _call("fold_onto", du.dtype, du, dy, b, h, w, c // 2)


def relu_backward(dh: Tensor, h: Tensor) -> Tensor:
    """Set dh to zero where h is, in place; return its sum over the first axis in float32."""
    pixels, width = dh.shape
    sums = dh.new_empty((torch.get_num_threads(), width), dtype=torch.float32)
    _call("relu_backward", dh.dtype, dh, h, sums, pixels, width, len(sums))
    return sums.sum(0)


class _Addresses:
    """Tensors in the order of the kernels' struct, null where it goes on."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tensors  # lives as long as the struct
        self.struct = (ctypes.c_void_p * 8)(*(each.data_ptr() for each in tensors))


def _in_order(weight: Tensor) -> Tensor:
    """A parameter, in the order of memory that the kernels read."""
    last = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    return weight.detach().contiguous(memory_format=last)


def _call_step(
    name: str, dtype: torch.dtype, x: Tensor, net: Sequence[Tensor], *arguments: Any
) -> None:
    sizes = (ctypes.c_long * 6)(*x.shape, len(net[0]), torch.get_num_threads())
    if not _call(name, dtype, sizes, *arguments):
        raise MemoryError(f"Not enough memory for a coupling of images of shape {(*x.shape,)}.")


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> int:
    return getattr(library(), f"{name}_{_suffix(dtype)}")(*map(_in_c, arguments))


def _in_c(argument: Tensor | _Addresses | ctypes.Array | int | None) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, _Addresses):
        return argument.struct
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _suffix(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _processor() -> list[str]:
    """What -march=native depends on."""
    if not (cpuinfo := Path("/proc/cpuinfo")).exists():
        return [platform.processor()]
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("flags", "Features", "model"))]
