"""What this machine has: engines, providers, optional packages, and what to install for the missing ones."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

from .loop.engine_ort import PROVIDERS, library_refusal
from .loop.int8_kernels import integer_kernels

# distribution -> (what it is for, how to get it)
PACKAGES = {
    "onnxruntime": ("runs bundles on the CPU", "pip install 'ditedge[cpu]'"),
    "onnxruntime-gpu": ("runs bundles on NVIDIA GPUs through ONNX Runtime", "pip install 'ditedge[gpu]'"),
    "tensorrt": ("TensorRT engines", "from NVIDIA or JetPack, or pip install 'ditedge[tensorrt]'"),
    "tensorrt-rtx-cu13": ("TensorRT-RTX engines", "pip install 'ditedge[tensorrt-rtx]'"),
    "cuda-python": ("runs TensorRT plans", "pip install 'ditedge[tensorrt-rtx]'"),
    "torch": ("reads checkpoints (export)", "pip install 'ditedge[export]'"),
    "onnx": ("writes graphs (export)", "pip install 'ditedge[export]'"),
    "onnxscript": ("writes graphs (export)", "pip install 'ditedge[export]'"),
    "diffusers": ("reads diffusers folders", "pip install 'ditedge[diffusers]'"),
    "cryptography": ("signs bundles, checks signatures", "pip install 'ditedge[sign]'"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. remedy is empty when nothing is missing."""

    name: str
    found: str  # version, or "" when missing
    purpose: str
    remedy: str


def examine() -> list[Finding]:
    """Checks every optional package and every provider of the ONNX Runtime that is installed."""
    findings = [
        Finding("python", platform.python_version(), f"{platform.system()} {platform.machine()}", ""),
    ]
    for name, (purpose, remedy) in PACKAGES.items():
        version = _version(name)
        findings.append(Finding(name, version, purpose, "" if version else remedy))
    return findings + _int8() + _providers()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _int8() -> list[Finding]:
    try:
        kernels = integer_kernels()
    except ImportError:
        return []
    return [Finding("int8 kernels", kernels.name, f"int8: {kernels.worth}", "")]


def _providers() -> list[Finding]:
    try:
        import onnxruntime
    except ImportError:
        return []
    available = onnxruntime.get_available_providers()
    findings = []
    for short, full in PROVIDERS.items():
        listed = full in available
        refusal = library_refusal(full) if listed else "needs an ONNX Runtime build that has it"
        findings.append(Finding(f"provider {short}", "" if refusal else "yes", f"ONNX Runtime's {full}", refusal))
    return findings


def line(finding: Finding) -> str:
    """For people."""
    return f"{finding.name:22} {finding.purpose:50} {finding.found or f'missing: {finding.remedy}'}"
