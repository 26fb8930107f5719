"""What only a GPU can show. `make test-gpu`; skipped, with the reason, where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from ditedge.runtime import EngineOptions, Sampler, open_bundle
from ditedge.runtime.noise import standard_normal
from ditedge.runtime.verify import replay

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 1])
def test_noise_equals_pytorchs_cuda_generator(seed: int) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    torch.manual_seed(seed)
    for draw in range(3):
        theirs = torch.randn(4, 32, 32, device="cuda").cpu().numpy().ravel()
        # float32 logarithm and sine on the GPU against float64 here: a few units in the last place of values up to 5
        np.testing.assert_allclose(standard_normal(seed, draw, theirs.size), theirs, atol=5e-6)


@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
def test_golden_trajectories_on_the_cuda_provider(golden_bundle, case: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider: pip install 'ditedge[gpu]'")
    with Sampler(open_bundle(golden_bundle(case)), EngineOptions(provider="cuda")) as sampler:
        for golden in sampler.bundle.manifest.golden:
            assert replay(sampler, golden).error.max() < 1e-2  # TF32 matrix products keep ten bits of the mantissa
