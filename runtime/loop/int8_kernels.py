"""Which integer kernels this processor gives ONNX Runtime, and what int8 is worth with them (`doctor`, `inspect`)."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from .engine_ort import integer_sums_saturate

CPUINFO = Path("/proc/cpuinfo")
VNNI = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI"}  # flags of Linux, the best first
SIZE = "a quarter of the size"
ARM = {"i8mm": "i8mm", "asimddp": "dotprod"}


@dataclass(frozen=True)
class IntegerKernels:
    """name: of the instructions that int8 products run on here. worth: of int8 beside float32, as measured."""

    name: str
    worth: str


def integer_kernels() -> IntegerKernels:
    """Asks ONNX Runtime about its sums first: an emulator or a container may show another processor's flags.

    Raises ModuleNotFoundError without ONNX Runtime. docs/quantization.md has the measurements.
    """
    machine, flags = platform.machine().lower(), _flags()
    if integer_sums_saturate():
        name = "AVX-512 without VNNI" if "avx512bw" in flags and not flags & set(VNNI) else "AVX2 without VNNI"
        speed = "exact sums cost speed: 1.05x float32's (DiT-S/2) to 1.5x (DiT-XL/2)"
        return IntegerKernels(name, f"{SIZE}; {speed}")
    known = ARM if machine in ("aarch64", "arm64") else VNNI
    name = next((text for flag, text in known.items() if flag in flags), "")
    if name and known is VNNI:
        return IntegerKernels(name, f"{SIZE}, up to 2.6x float32's speed (DiT-XL/2)")
    return IntegerKernels(name or f"{machine}, instructions unknown", f"{SIZE}; for the speed see `ditedge compare`")


def _flags() -> set[str]:
    """Of the first processor that Linux lists; empty elsewhere."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    listed = (line.partition(":") for line in lines)
    return next((set(value.split()) for key, _, value in listed if key.strip() in ("flags", "Features")), set())
