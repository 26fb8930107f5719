"""The classifier file alone: its interface, what it says of itself, and its accuracy on real images."""

from __future__ import annotations

import re

import fashion_mnist
import numpy as np
import onnx
import onnxruntime
import pytest

from ditedge.calibration import accuracy, image_features
from tests.conftest import ROOT

CLASSIFIER = ROOT / "models" / "fashion_classifier.onnx"
LEAST_ACCURACY = 0.88


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(CLASSIFIER, providers=["CPUExecutionProvider"])


def test_inputs_and_outputs(session: onnxruntime.InferenceSession) -> None:
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [1, 32, 32])
    assert isinstance(image.shape[0], str)  # dynamic
    assert [(o.name, o.type, o.shape[1]) for o in session.get_outputs()] == [
        ("logits", "tensor(float)", 10),
        ("features", "tensor(float)", 128),
    ]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_image_scores_the_same_in_any_batch(session: onnxruntime.InferenceSession, count: int) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (7, 1, 32, 32)).astype(np.float32)
    all_logits, all_features = session.run(None, {"image": image})
    logits, features = session.run(None, {"image": image[:count]})
    np.testing.assert_allclose(logits, all_logits[:count], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features, all_features[:count], rtol=1e-4, atol=1e-4)


def test_metadata(session: onnxruntime.InferenceSession) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    assert float(metadata["test_accuracy"]) >= LEAST_ACCURACY
    assert tuple(metadata["classes"].splitlines()) == fashion_mnist.CLASSES
    assert "MIT" in metadata["data"]


def test_one_file_with_no_trace_of_the_machine_that_made_it() -> None:
    model = onnx.load(CLASSIFIER, load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    for item in [*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        assert not item.metadata_props and not item.doc_string
    assert not re.findall(rb"pkg\.torch|\.py\b|/(?:home|root|work|usr|tmp|Users)/", CLASSIFIER.read_bytes())


def test_accuracy_on_real_images() -> None:
    if not fashion_mnist.PACKAGE_FOLDER.is_dir():
        pytest.skip(f"real images are not here: apt-get install {fashion_mnist.PACKAGE}")
    images, labels = fashion_mnist.load("test")
    logits, _ = image_features(CLASSIFIER, images[:1000].permute(0, 2, 3, 1).numpy())
    assert accuracy(logits, labels[:1000].numpy()) >= LEAST_ACCURACY
