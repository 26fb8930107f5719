"""Features of images through an ONNX file: image [N, C, H, W] float32 in [-1, 1] -> logits [N, K], features [N, F]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...runtime.errors import RequestError, first_line
from ...runtime.loop.engine import EngineOptions
from ...runtime.loop.engine_ort import session_settings


class FeatureExtractor:
    """A loaded feature extractor. Raises RequestError naming the file when it is none, or does not take the images."""

    def __init__(self, model: Path, options: EngineOptions | None = None) -> None:
        """options: threads alone are taken from them; it runs on the CPU."""
        import onnxruntime

        if not model.is_file():
            raise RequestError(f"{model} does not exist: give a feature extractor as an .onnx file")
        settings = session_settings(options or EngineOptions())
        try:
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(model, settings, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's own exception types are not public
            raise RequestError(f"{model}: not a readable feature extractor ({first_line(error)})") from None
        names = {tensor.name for tensor in self._session.get_outputs()}
        if not {"logits", "features"} <= names:
            raise RequestError(f"{model}: has outputs {sorted(names)}, needs 'logits' and 'features'")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            have = ", ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in inputs)
            raise RequestError(f"{model}: has inputs {have}; needs one, images [N, C, H, W] float32")
        self.model, self._input = model, inputs[0]

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Raises RequestError when images [h, w, c] do not fit the input."""
        wanted, have = self._input.shape[1:], (shape[2], shape[0], shape[1])
        if any(isinstance(w, int) and w != h for w, h in zip(wanted, have, strict=True)):
            raise RequestError(f"{self.model}: takes images [C, H, W] {list(wanted)}, these are {list(have)}")

    def check_classes(self, shape: tuple[int, int, int], classes: int) -> None:
        """Raises RequestError now, from one black image [h, w, c], and not after minutes of sampling.

        classes: those that are told apart; 0: of prompts, whose logits nobody reads.
        """
        logits, _ = self(np.zeros((1, *shape), np.uint8))
        if logits.ndim != 2 or logits.shape[1] < classes:
            raise RequestError(f"{self.model}: has logits {list(logits.shape)}, the bundle has {classes} classes")

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """images uint8 [N, H, W, C] -> (logits [N, K], features [N, F]) float32."""
        self.check_images(images.shape[1:])
        scaled = images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        try:
            logits, features = self._session.run(["logits", "features"], {self._input.name: scaled})
        except Exception as error:
            raise RequestError(f"{self.model}: failed on the images ({first_line(error)})") from None
        return logits, features.reshape(len(images), -1)


def image_features(model: Path, images: np.ndarray, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """images uint8 [N, H, W, C] -> (logits [N, K], features [N, F]) float32. Raises RequestError naming the file."""
    extract = FeatureExtractor(model)
    parts = [extract(images[start : start + batch]) for start in range(0, len(images), batch)]
    logits, features = (np.concatenate(column) for column in zip(*parts, strict=True))
    return logits, features
