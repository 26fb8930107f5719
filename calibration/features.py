"""Features of images through an ONNX file: image [N, C, H, W] float32 in [-1, 1] -> logits [N, K], features [N, F]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..runtime.errors import RequestError


def image_features(model: Path, images: np.ndarray, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """images uint8 [N, H, W, C] -> (logits [N, K], features [N, F]) float32. Raises RequestError naming the file."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception types are not public
        raise RequestError(f"{model}: not a readable feature extractor ({str(error).splitlines()[0][:200]})") from None
    names = {tensor.name for tensor in session.get_outputs()}
    if not {"logits", "features"} <= names:
        raise RequestError(f"{model}: has outputs {sorted(names)}, needs 'logits' and 'features'")
    parts = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        parts.append(session.run(["logits", "features"], {session.get_inputs()[0].name: part}))
    logits, features = (np.concatenate(column) for column in zip(*parts, strict=True))
    return logits, features
