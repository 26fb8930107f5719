"""The machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ..loop.int8_kernels import integer_kernels
from ..plans.library import first_gpu
from ..processors import usable_processors
from .record import Machine

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


def this_machine() -> Machine:
    gpu = first_gpu()
    return Machine(
        processor=processor(),
        kernels=_kernels(),
        processors=usable_processors(),
        memory_gigabytes=round(int((_value(MEMINFO, "MemTotal") or "0").split()[0]) * 1024 / 1e9, 1),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        gpu=gpu.name if gpu is not None else "",
    )


def processor() -> str:
    """By name, where the system says it."""
    return _value(CPUINFO, "model name") or platform.processor() or platform.machine()


def _kernels() -> str:
    try:
        return integer_kernels().name
    except ImportError:
        return "unknown"


def _value(path: Path, key: str) -> str:
    """The first "key : value" of a file; empty where there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next(
        (value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key), ""
    )
