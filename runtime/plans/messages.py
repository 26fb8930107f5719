"""What TensorRT says when it refuses a graph, in one sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .library import Library

# (what the library's message holds, sentence; groups of the pattern fill {0}, {1})
SENTENCES = (
    (
        r"Cannot compile for target\(s\) ([\w, ]+), because the model contains HW-specific datatypes: ([\w, ]+)",
        "the graph holds {1} numbers, which {0} cannot compute: build for a newer GPU, or use fp16 or int8",
    ),
    (
        r"FP32 GEMM is not supported",
        "it computes no float32 matrix products on sm75: convert the bundle to fp16, or build for sm80 or later",
    ),
    (
        r"cudaError 35|cudaErrorInsufficientDriver|CUDA initialization failure with error: (?:35|100)",
        "there is no NVIDIA driver here, or it is older than the library's CUDA: build where the GPU is",
    ),
    (r"Unable to load library: (\S+?):", "the library's part {0} is missing: leave out --version-compatible"),
    (
        r"Non-zero zero point is not supported",
        "the graph quantises asymmetrically: quantise again with zero points of 0",
    ),
    (
        r"(?i)out ?of ?memory|cudaErrorMemoryAllocation|bad_alloc",
        "not enough memory: give a smaller --max-batch or --workspace, or close other programs",
    ),
    (
        r"Could not find any implementation for node (\S+)",
        "no kernel for {0} fits: give a larger --workspace, or another precision",
    ),
)


def refusal(file: str, library: Library, messages: Sequence[str], archs: Sequence[str] = ()) -> str:
    """One sentence for the errors that the builder logged. archs: what was built for, when it was ahead of time."""
    text = "\n".join(messages)
    where = f"{library.name} refuses {file}" + (f" for {', '.join(archs)}" if archs else "")
    for pattern, sentence in SENTENCES:
        found = re.search(pattern, text)
        if found:
            return f"{where}: {sentence.format(*found.groups())}"
    return f"{where}: {clean(messages[0]) if messages else 'it gave no reason'}"


def parse_refusal(file: str, library: Library, operator: str, node: str, description: str) -> str:
    """One sentence for a node that the ONNX parser refuses."""
    for pattern, sentence in SENTENCES:
        if re.search(pattern, description):
            return f"{library.name} refuses {file}: {sentence}"
    place = f"operator {operator} (node {node})" if operator else "the file"
    return f"{library.name} refuses {place} of {file}: {clean(description)}"


def clean(message: str) -> str:
    """TensorRT's message without its source places: "... In f at /_src/x.cpp:12)"."""
    message = re.sub(r"\(?\s*In \w+ at \S+?:\d+\)?|\[\S+?::\w+::\d+\]|^\S+: Error Code \d+: ", "", message.strip())
    return " ".join(message.split())[:300]
