"""ONNX Runtime with its defaults on the unsplit graph; its own dynamic int8 of it; its CUDA provider in fp16."""

from __future__ import annotations

from pathlib import Path

from . import Evaluate, Output, Task
from .unsplit import feed, unsplit_onnx


def make(task: Task, variant: str) -> Evaluate:
    """variant: "float32", "int8" or "cuda"."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = task.threads
    provider = "CUDAExecutionProvider" if variant == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {provider}")
    path = {"float32": unsplit_onnx, "int8": dynamic_int8, "cuda": half}[variant](task)
    session = onnxruntime.InferenceSession(str(path), settings, providers=[provider])
    given = feed(task)

    def evaluate() -> Output:
        return session.run(None, given)[0]

    return evaluate


def dynamic_int8(task: Task) -> Path:
    """Every MatMul and Gemm: int8 weights per channel, uint8 activations per tensor."""
    from onnxruntime.quantization import quantize_dynamic

    path, whole = task.folder / "unsplit-int8.onnx", unsplit_onnx(task)
    if not path.exists():
        large = sum(file.stat().st_size for file in task.folder.glob("unsplit-made*")) > 1 << 30
        quantize_dynamic(
            whole, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, use_external_data_format=large
        )
    return path


def half(task: Task) -> Path:
    """float16 between float32 inputs and outputs, by onnxruntime's own converter."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = task.folder / "unsplit-fp16.onnx"
    if not path.exists():
        model = convert_float_to_float16(onnx.load(str(unsplit_onnx(task))), keep_io_types=True)
        onnx.save(model, str(path), save_as_external_data=True, location="unsplit-fp16.data")
    return path
