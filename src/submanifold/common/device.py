"""Choice of device and precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock

import torch
from torch import Tensor

from submanifold.common.errors import unexpected

_GENERATORS = RLock()


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if available, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("The meta device stores no values.")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        got = f"{name} ({str(error).splitlines()[0]})"
        raise unexpected("device", "auto, cpu, cuda or cuda:<n>", got, "Set device=auto") from error
    return device


def choose_precision(name: str, weight: Tensor) -> torch.dtype:
    """Return the dtype of matrix products, ``auto`` bfloat16 where hardware multiplies it faster.

    These are GPUs, and CPUs with AVX-512 BF16, for float32 weights.
    """
    fast = name == "bfloat16"
    if name == "auto" and weight.dtype == torch.float32:
        if weight.device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        elif weight.device.type == "cpu":
            fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else weight.dtype


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[None]:
    """Return torch's autocast for bfloat16, and a no-op for any other precision."""
    return torch.autocast(device.type, precision, precision == torch.bfloat16)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators in a block, for one thread at a time, and restore them."""
    with _GENERATORS, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
