"""How much memory this machine has left for a run."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may take: version 2 in `memory.max`, version 1 a folder
deeper."""


def free_memory(device: torch.device, *, cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that a run on `device` can still take, or None if the system does not say.

    On a GPU these are its free bytes. On a CPU they are the bytes that the machine has available or
    the bytes that its container may still take, whichever is less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    known = [bytes_left for bytes_left in (_available(meminfo), _left_in(cgroup)) if bytes_left is not None]
    return min(known, default=None)


def _available(meminfo: Path) -> int | None:
    """MemAvailable of Linux: what is free, and what the system keeps only as a cache."""
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text("utf-8").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def _left_in(cgroup: Path) -> int | None:
    """Bytes left below the container's limit. Cached files do not count as used."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        files = [cgroup / name for name in (limit, used, stat)]
        if all(file.exists() for file in files):
            most, taken, facts = (file.read_text("utf-8") for file in files)
            if most.strip() == "max":
                return None
            counts = dict(line.split() for line in facts.splitlines())
            cached = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
            return int(most) - int(taken) + cached
    return None
