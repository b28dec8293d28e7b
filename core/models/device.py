"""What this machine has, and what follows from it, each choice with its reason."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Choice:
    """An automatic setting and the reason that is shown beside it."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Device:
    """The device that models run on. ``memory_bytes`` is the GPU's, or the machine's on a CPU."""

    kind: Literal["cpu", "cuda"]
    name: str
    count: int
    memory_bytes: int
    threads: int
    compute_dtype: Choice

    def line(self) -> str:
        """One line for the top of a page."""
        memory = f"{self.memory_bytes / 2**30:.0f} GB"
        if self.kind == "cpu":
            return f"{self.threads} CPU threads, {memory}, no GPU"
        many = f"{self.count} x " if self.count > 1 else ""
        return f"{many}{self.name}, {memory}"


@lru_cache(maxsize=1)
def describe() -> Device:
    """Look once. Imports torch, so call it from a job or behind a cache, not at start-up."""
    import psutil
    import torch

    threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if torch.cuda.is_available():
        props = torch.cuda.get_device_properties(0)
        if torch.cuda.is_bf16_supported():
            dtype = Choice("dtype", "bfloat16", "the GPU has bf16 units")
        else:
            dtype = Choice("dtype", "float16", "the GPU has no bf16 units")
        return Device(
            "cuda", props.name, torch.cuda.device_count(), props.total_memory, threads, dtype
        )
    dtype = Choice(
        "dtype",
        "float32",
        "bf16 is 40 times slower on a CPU without AVX512-BF16 or AMX"
        if not cpu_has_bf16()
        else "the CPU kernels of bitsandbytes are tuned for float32",
    )
    memory = min(psutil.virtual_memory().total, _group_limit())
    return Device("cpu", _cpu_name(), 1, memory, threads, dtype)


def cards() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [c.strip() for c in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if c.strip()]
    return named[:count] or [str(i) for i in range(count)]


def free_bytes(kind: str) -> int:
    """Bytes that a model may take now, on the first GPU or in the machine's memory."""
    import psutil
    import torch

    if kind != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    return min(psutil.virtual_memory().available, _group_limit())


def _group_limit() -> int:
    """Memory that this process's control group allows (Linux); without one a very large figure."""
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else 1 << 60


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (Linux; elsewhere assumed not)."""
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        return False
    text = flags.read_text(errors="replace")
    return "avx512_bf16" in text or "amx_bf16" in text


@lru_cache(maxsize=1)
def bf16_gain() -> float:
    """How much faster than float32 this CPU multiplies bf16, at a training step's shape."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        rows = torch.ones(512, 576, dtype=dtype)
        weight = torch.ones(1536, 576, dtype=dtype)
        took = []
        for _ in range(8):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            took.append(time.perf_counter() - started)
        return min(took)

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "CPU"
