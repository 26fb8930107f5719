"""Other ways to run the same network, for benchmarks beside ours: PEERS lists them, each file has one function `make`.

    make(task, variant) -> a function without arguments that evaluates the network once on `task.inputs` and returns
    its output [2B, O, H, W].

`python -m bench.peers` times them (`__main__.py`); packages that ditedge does not need are in requirements-*.txt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Output = Any  # a tensor, or an array
Evaluate = Callable[[], Output]


@dataclass(frozen=True)
class Task:
    """What a peer is to compute. inputs: x [2B, C, H, W] float32, timestep [2B] float32, label [2B] int64, tensors.

    model: the network in PyTorch, float32, in eval mode; the peer may change it.
    folder: for files that several peers share, such as the whole network in ONNX.
    threads: at least 1.
    """

    model: Any
    inputs: tuple[Any, Any, Any]
    folder: Path
    threads: int


@dataclass(frozen=True)
class Peer:
    """module: the file beside this one. rounding: drift of its output that its arithmetic may cause."""

    module: str
    variant: str
    rounding: float
    gpu: bool = False


FLOAT, BF16, INT8 = 1e-3, 0.1, 0.3  # rounding; random weights make such contrasts that int8 is coarse
PEERS = {
    "PyTorch eager float32": Peer("eager", "float32", FLOAT),
    "PyTorch eager bf16": Peer("eager", "bfloat16", BF16),
    "torch.compile float32": Peer("compiled", "float32", FLOAT),
    "torch.compile bf16": Peer("compiled", "bfloat16", BF16),
    "diffusers DiTTransformer2DModel": Peer("diffusers_dit", "float32", FLOAT),
    "ONNX Runtime, unsplit": Peer("onnxruntime_unsplit", "float32", FLOAT),
    "ONNX Runtime, unsplit, its dynamic int8": Peer("onnxruntime_unsplit", "int8", INT8),
    "OpenVINO, unsplit, f32": Peer("openvino_unsplit", "f32", FLOAT),
    "OpenVINO, unsplit, bf16": Peer("openvino_unsplit", "bf16", BF16),
    "OpenVINO, int8 by NNCF": Peer("openvino_unsplit", "int8", INT8),
    "TorchAO int8, compiled": Peer("torchao_int8", "compiled", INT8),
    "TorchAO int8, eager": Peer("torchao_int8", "eager", INT8),
    "ExecuTorch, XNNPACK": Peer("executorch_xnnpack", "float32", FLOAT),
    "CUDA: torch.compile bf16, CUDA graph": Peer("cuda_graph", "compiled", BF16, gpu=True),
    "CUDA: PyTorch bf16, CUDA graph": Peer("cuda_graph", "eager", BF16, gpu=True),
    "ONNX Runtime CUDA, unsplit, fp16": Peer("onnxruntime_unsplit", "cuda", BF16, gpu=True),
}
