"""What this machine has: engines, providers, optional packages, and what to install for the missing ones."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

from .errors import EngineError
from .loop.cuda import load_cudart, version_of
from .loop.engines import ENGINES
from .loop.int8_kernels import integer_kernels
from .plans.library import first_gpu

# distribution -> (what it is for, how to get it), after those of the engines
PACKAGES = {
    "tensorrt": ("TensorRT engines", "from NVIDIA or JetPack, or pip install 'ditedge[tensorrt]'"),
    "tensorrt-rtx-cu13": ("TensorRT-RTX engines", "pip install 'ditedge[tensorrt-rtx]'"),
    "torch": ("reads checkpoints (export)", "pip install 'ditedge[export]'"),
    "onnx": ("writes graphs (export)", "pip install 'ditedge[export]'"),
    "onnxscript": ("writes graphs (export)", "pip install 'ditedge[export]'"),
    "polygraphy": ("compares layers (verify --layers)", "pip install 'ditedge[calibrate]'"),
    "diffusers": ("reads diffusers folders", "pip install 'ditedge[diffusers]'"),
    "transformers": ("reads text encoders (export)", "pip install 'ditedge[diffusers]'"),
    "tokenizers": ("reads prompts", "pip install 'ditedge[text]'"),
    "uvicorn": ("answers requests (serve)", "pip install 'ditedge[serve]'"),
    "starlette": ("answers requests (serve)", "pip install 'ditedge[serve]'"),
    "prometheus-client": ("counts (serve)", "pip install 'ditedge[serve]'"),
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
    """Checks every optional package, and every provider of every engine."""
    findings = [
        Finding("python", platform.python_version(), f"{platform.system()} {platform.machine()}", ""),
    ]
    engines = {name: about for kind in ENGINES.values() for name, about in kind.packages.items()}
    for name, (purpose, remedy) in (engines | PACKAGES).items():
        version = _version(name)
        findings.append(Finding(name, version, purpose, "" if version else remedy))
    return findings + _nvidia() + _int8() + _providers()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _nvidia() -> list[Finding]:
    """What TensorRT's plans need beside TensorRT."""
    gpu, purpose = first_gpu(), "runs TensorRT plans"
    name = f"{gpu.name} ({gpu.capability})" if gpu is not None else ""
    try:
        version, remedy = version_of(load_cudart()), ""
    except EngineError as error:
        version, remedy = "", str(error)
    return [
        Finding("nvidia gpu", name, purpose, "" if name else "no device, or no driver"),
        Finding("cuda runtime", version, purpose, remedy),
    ]


def _int8() -> list[Finding]:
    try:
        kernels = integer_kernels()
    except ImportError:
        return []
    return [Finding("int8 kernels", kernels.name, f"int8: {kernels.worth}", "")]


def _providers() -> list[Finding]:
    findings = []
    for kind in ENGINES.values():
        for name, purpose in kind.providers.items():
            refusal = kind.refusal(name)
            findings.append(Finding(f"provider {name}", "" if refusal else "yes", purpose, refusal))
    return findings


def line(finding: Finding) -> str:
    """For people."""
    return f"{finding.name:22} {finding.purpose:50} {finding.found or f'missing: {finding.remedy}'}"
