"""Where a model computes, and in which precision."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from submanifold.common.errors import UserError


def choose_device(wanted: str) -> torch.device:
    """Turn ``auto`` into the fastest device there is.

    Raises:
        UserError: The device is unknown or not on this machine.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        if device.type == "meta":
            raise RuntimeError("It holds no numbers.")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={wanted} cannot be used here: {str(error).splitlines()[0]} Allowed: auto, "
            "cpu, cuda, cuda:<n>. Set device=auto."
        ) from error
    return device


def choose_precision(wanted: str, weight: Tensor) -> torch.dtype:
    """Turn ``auto`` into bfloat16 where the hardware multiplies it faster, else the weights' own.

    On a CPU that is one with AMX tiles, or with AVX-512's bfloat16 products.
    """
    if wanted == "auto":
        fast = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": lambda: (
                torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
            ),
        }.get(weight.device.type, lambda: False)
        wanted = "bfloat16" if fast() and weight.dtype == torch.float32 else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else weight.dtype


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Multiply in a precision: bfloat16 by torch's autocast, the weights' own as it is."""
    return torch.autocast(device.type, precision, precision == torch.bfloat16)


def supports_fused_optimizer(weight: Tensor) -> bool:
    """Whether torch has a fused optimizer for weights like this one."""
    return weight.dtype == torch.float32 and weight.device.type in ("cpu", "cuda")
