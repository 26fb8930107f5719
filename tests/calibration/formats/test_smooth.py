"""SmoothQuant folded into a DiT: the float network stays what it was, and its activations become easier."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditedge.calibration.formats.smooth import smooth, smoothing_scales
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.calibration.pool import pool_of
from ditedge.calibration.statistics.collect import LayerStatistics, Statistics, collect_statistics
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.noise import SeededNoise
from ditedge.runtime.loop.verify import relative_error
from tests.calibration.conftest import SMALL_SET


def smoothed(folder: Path, statistics: Statistics, out: Path, online: bool) -> tuple[Bundle, Statistics]:
    bundle = open_bundle(folder)
    shutil.copytree(folder, out)
    step, conditioner = (load_graph(bundle.graph_file(name)) for name in ("step", "conditioner"))
    after = smooth(step, conditioner, statistics, 0.5, online)
    save_graph(step, out / "step.onnx")
    save_graph(conditioner, out / "conditioner.onnx")
    return Bundle(out, bundle.manifest, "smoothed"), after


def with_outliers(statistics: Statistics) -> Statistics:
    """The same statistics, but for a few channels ten times larger: scales far from 1, in every layer."""

    def louder(layer: LayerStatistics) -> LayerStatistics:
        factor = np.where(np.arange(layer.channel_max.shape[1]) % 5 == 0, 10.0, 1.0)
        return replace(layer, channel_max=layer.channel_max * factor, channel_min=layer.channel_min * factor)

    return Statistics(statistics.fingerprint, {name: louder(layer) for name, layer in statistics.layers.items()})


@pytest.mark.parametrize("case,online", [("gray1_cfg", False), ("latent4_learned_sigma", True)])
def test_the_float_network_stays_the_same(collected, case: str, online: bool, tmp_path: Path) -> None:
    folder, _, statistics = collected(case)
    exact = open_bundle(folder)
    bundle, _ = smoothed(folder, with_outliers(statistics), tmp_path / "smoothed", online)
    before, after = (load_graph(b.graph_file("step")) for b in (exact, bundle))
    changed = [
        a.name
        for a, b in zip(find_linears(before), find_linears(after), strict=True)
        if relative_error(b.matrix, a.matrix) > 0.1
    ]
    each = 4 if online else 3  # qkv, proj, fc1 of every block, fc2 by nodes of its own; and the final linear
    assert len(changed) == each * exact.manifest.model.depth + 1
    info = exact.manifest.model
    noise = SeededNoise([1, 2, 3], info.latent_shape)
    results = []
    for source in (exact, bundle):
        with Session(source) as session:
            guidance = source.manifest.defaults.guidance
            results.append(session.latents(source.program(sampler="ddim", steps=2), [0, 1, 0], guidance, noise))
    # exact algebra, rounded to float32 in the weights and in 1 + scale: about 1e-6 a step; two steps, because the
    # trajectories of random networks multiply every error by ten and more
    assert relative_error(results[1], results[0]) < 1e-5


@pytest.mark.parametrize("online", [False, True])
def test_statistics_after_smoothing_are_those_of_the_smoothed_network(collected, online: bool, tmp_path: Path) -> None:
    folder, _, statistics = collected()
    bundle, predicted = smoothed(folder, statistics, tmp_path / "smoothed", online)
    measured = collect_statistics(bundle, pool_of(bundle), bundle.program("ddim-10"), SMALL_SET, tmp_path / "cache")
    for name, layer in measured.layers.items():
        np.testing.assert_allclose(predicted.layers[name].channel_amax, layer.channel_amax, rtol=1e-3, err_msg=name)
        if online or not name.endswith("fc2"):  # both ends of every channel are at the same distance from 0
            largest, smallest = layer.channel_max.max(axis=0), layer.channel_min.min(axis=0)
            np.testing.assert_allclose(largest, -smallest, rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(predicted.layers[name].mean, layer.mean, rtol=1e-2, atol=1e-3)
        np.testing.assert_allclose(predicted.layers[name].second_moment, layer.second_moment, rtol=1e-2, atol=1e-6)


def test_scales_are_the_papers(collected) -> None:
    """Equation 4, up to one factor for all channels; channels that are never used are left alone."""
    _, _, statistics = collected()
    layer = statistics.layers["blocks.0.attn.qkv"]
    matrix = np.random.default_rng(0).standard_normal((len(layer.channel_amax), 7))
    scales = smoothing_scales(layer, matrix, 0.7)
    expected = layer.channel_amax**0.7 / np.abs(matrix).max(axis=1) ** 0.3
    np.testing.assert_allclose(scales / scales[0], expected / expected[0], rtol=1e-9)
    assert np.exp(np.log(scales).mean()) == pytest.approx(1)
    silent = replace(layer, channel_max=layer.channel_max * 0, channel_min=layer.channel_min * 0)
    np.testing.assert_array_equal(smoothing_scales(silent, matrix, 0.5), 1)
