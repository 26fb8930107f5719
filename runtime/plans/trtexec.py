"""The command that builds the same plan with NVIDIA's own tool, to compare or to report a fault: `--print-trtexec`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ..bundle.open import Bundle
from ..errors import RequestError
from .build import engine_folder
from .checks import latents_to_build
from .options import BuildOptions
from .profile import graph_profile, sizes_of
from .record import PLAN_NAMES, ShapeRange

TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}


def trtexec_commands(bundle: Bundle, options: BuildOptions) -> list[str]:
    """One shell command per graph. `--stronglyTyped` is needed by 10.x and is no option of 11.x and RTX's tool.

    Raises RequestError for a second profile, and for sizes that cannot be.
    """
    if options.one_image:
        raise RequestError("--print-trtexec prints builds of one profile: leave out --one-image")
    latents = latents_to_build(bundle, options)
    if len(latents) > 1:
        raise RequestError("--print-trtexec prints builds of one profile: give one --size")
    sizes = sizes_of(bundle, options.max_batch, options.max_rows, latents)
    out = engine_folder(bundle, options.target)
    return [
        trtexec_command(
            bundle.graph_file(name), out / PLAN_NAMES[name], graph_profile(bundle.manifest, name, sizes), options
        )
        for name in PLAN_NAMES
        if name in bundle.manifest.graphs
    ]


def trtexec_command(graph: Path, plan: Path, profile: Mapping[str, ShapeRange], options: BuildOptions) -> str:
    """The shell command for one graph."""
    words = [TOOLS[options.target], f"--onnx={graph}", f"--saveEngine={plan}", "--skipInference"]
    for flag, which in (("--minShapes", "min"), ("--optShapes", "opt"), ("--maxShapes", "max")):
        shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(size, which)))}" for name, size in profile.items())
        words += [f"{flag}={shapes}"] if profile else []
    return shlex.join([*words, *options.trtexec()])
