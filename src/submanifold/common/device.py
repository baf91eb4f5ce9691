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


class SeededRandom:
    """Torch's global generators in blocks, from a seed and apart from the rest of the process.

    A block continues the random numbers of the one before it. Threads wait for the blocks of each
    other.
    """

    def __init__(self, seed: int, device: torch.device):
        self._seed, self._devices = seed, [device] if device.type == "cuda" else []
        self._states: list[Tensor] = []  # on the CPU and the device, after the last block

    @contextmanager
    def block(self) -> Iterator[None]:
        """Draw the global random numbers in this context."""
        with _GENERATORS, torch.random.fork_rng(self._devices):
            if self._states:
                torch.set_rng_state(self._states[0])
                for device, state in zip(self._devices, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            else:
                torch.manual_seed(self._seed)
            yield
            on_devices = map(torch.cuda.get_rng_state, self._devices)
            self._states = [torch.get_rng_state(), *on_devices]
