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


def in_tiles(dtype: torch.dtype) -> bool:
    """Whether :func:`couple_tiles` can multiply numbers of this type, and is the faster way.

    That is on AVX-512, and in bfloat16 where there are products of it, but no AMX tiles: those are
    for torch's own products.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return False
    return hasattr(library(), f"couple_tiles_{_suffix(dtype)}")


def couple_tiles(
    y: Tensor, net: Sequence[Tensor], dtype: torch.dtype, inverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute a coupling and its net, whose six parameters are given, a few images at a time.

    Returns what :func:`couple` does, and its hidden layers (2, P, width filled up to a multiple of
    16), if those are to be kept.
    """
    b, h, w, c = y.shape
    width = len(net[0])
    z, log_scale, log_det = torch.empty_like(y), y.new_empty((b, h, w, c // 2)), y.new_empty(b)
    hidden = None
    if keep:
        hidden = y.new_empty((2, b * h * w, -(-width // 16) * 16), dtype=dtype)
    sizes = b, h, w, c, width, torch.get_num_threads()
    tensors = y, z, log_scale, log_det, hidden
    _call("couple_tiles", dtype, *map(_channels_last, net), *tensors, *sizes, int(inverse))
    return z, log_scale, log_det, hidden


def couple_tiles_backward(
    dz: Tensor,
    dlog_det: Tensor,
    kept: Tensor,
    log_scale: Tensor,
    net: Sequence[Tensor],
    hidden: Tensor | None,
    dtype: torch.dtype,
    inverse: bool,
) -> tuple[Tensor, ...]:
    """Gradients of :func:`couple_tiles` by y and by the net's parameters.

    The tensor that is kept is y, or the image it became when inverse.
    """
    b, h, w, c = dz.shape
    width, parts = len(net[0]), torch.get_num_threads()
    filled = -(-width // 16) * 16
    net = [*map(_channels_last, net)]
    sums = dz.new_empty(parts, (9 * c + filled + 9 * (c // 2) + 2) * filled + c)
    gradients = torch.empty_like(dz), *map(torch.empty_like, net)
    tensors = dz, dlog_det, kept, log_scale, hidden, gradients[0], sums, *gradients[1:]
    sizes = b, h, w, c, width, parts
    _call("couple_tiles_backward", dtype, *net, *tensors, *sizes, int(inverse))
    return gradients


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


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | int | None) -> None:
    in_c = [
        ctypes.c_long(each)
        if isinstance(each, int)
        else ctypes.c_void_p(None if each is None else each.data_ptr())
        for each in arguments
    ]
    getattr(library(), f"{name}_{_suffix(dtype)}")(*in_c)


def _suffix(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _channels_last(weight: Tensor) -> Tensor:
    """A parameter, in the order of memory that the kernels read."""
    last = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    return weight.detach().contiguous(memory_format=last)


def _processor() -> list[str]:
    """What -march=native depends on."""
    if not (cpuinfo := Path("/proc/cpuinfo")).exists():
        return [platform.processor()]
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("flags", "Features", "model"))]
