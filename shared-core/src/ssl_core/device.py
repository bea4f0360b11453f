"""Where a run computes, in which precision, and with which random numbers."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ssl_core.config import ConfigError


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the best one here: CUDA, then MPS, then CPU.

    Raises ConfigError when the named device does not exist on this machine.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: there are cpu, cuda, cuda:1, mps") from error
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
    if (device.index or 0) >= there:
        raise ConfigError(f"device = {name!r}: torch sees {there} of that kind here; use --device cpu")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Resolve "auto" to "bf16", "fp16" or "fp32" by what the hardware computes fast.

    A GPU gets bf16, or fp16 where it has no bf16 (T4). A CPU gets bf16 only with AVX-512 BF16 or
    AMX: without them a bf16 matrix product is hundreds of times slower than fp32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and cpu_has_bf16():
        return "bf16"
    return "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    # older torches lack one or both of these
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context of the forward pass for a resolved precision."""
    if precision == "fp32":
        return nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off: losses are computed in the precision of their inputs."""
    available = torch.amp.autocast_mode.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or wider where it is: what losses and statistics are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def seed_step(*key: int) -> None:
    """Seed torch's generators as a function of (seed, step, rank, …): a resumed run needs no
    generator state."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
