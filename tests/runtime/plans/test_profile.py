"""Optimisation profiles: every batch that the runtime makes, and what it will need of memory."""

from __future__ import annotations

import json
from pathlib import Path

from ditedge.runtime import open_bundle
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.plans.profile import Sizes, forecast, graph_profile, one_image_shapes, sizes_of


def test_profiles_cover_every_batch_the_runtime_makes(golden_bundle) -> None:
    """B in 1 .. max; E is B unguided and 2B guided; K has room for third-order UniPC and a preview slot."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    model = bundle.manifest.model
    sizes = sizes_of(bundle, 3, None)
    assert sizes.rows == 6  # a label and a label to guide away from, for each of three samples
    assert sizes.slots >= bundle.program(sampler="unipc", order=3, steps=8).slots
    assert sizes.slots >= bundle.program(sampler="unipc", order=2, steps=8).slots + 1
    profile = graph_profile(bundle.manifest, "step", sizes)
    side = model.input_size
    assert profile["state"].min == [1, 1, model.in_channels, side, side]
    assert profile["state"].max == [3, sizes.slots, model.in_channels, side, side]
    assert profile["mix"].max == [3, sizes.slots, sizes.slots + 2]
    assert profile["combine"].max == [3, 6, model.out_channels]
    assert (profile["sample"].min, profile["sample"].max) == ([1], [6])
    assert profile["modulation"].max[0] == 6
    for name, shape in profile.items():
        bounds = zip(shape.min, shape.opt, shape.max, strict=True)
        assert all(least <= typical <= most for least, typical, most in bounds), name
    assert graph_profile(bundle.manifest, "decoder", sizes)["latent"].max[0] == 3
    assert graph_profile(bundle.manifest, "conditioner", sizes)["label"].max == [64]


def test_the_shapes_of_one_image(golden_bundle) -> None:
    """Guided: two evaluations, the class and the null class; without a null class one. Within the first profile."""
    for case, evaluations in (("gray1_cfg", 2), ("pixel3_no_null_class", 1)):
        bundle = open_bundle(golden_bundle(case))
        model, sizes = bundle.manifest.model, sizes_of(bundle, 3, None)
        shapes, whole = one_image_shapes(bundle, sizes), graph_profile(bundle.manifest, "step", sizes)
        slots = bundle.program().slots
        assert shapes["state"] == [1, slots, *model.latent_shape] and shapes["mix"] == [1, slots, slots + 2]
        assert shapes["sample"] == shapes["condition"] == [evaluations]
        assert shapes["combine"] == [1, evaluations, model.out_channels] and shapes["modulation"][0] == evaluations
        assert shapes.keys() == whole.keys()
        for name, shape in shapes.items():
            assert all(a <= b <= c for a, b, c in zip(whole[name].min, shape, whole[name].max, strict=True)), name


def test_a_large_decoder_takes_few_images_at_a_time() -> None:
    """As the sampler does: 512 x 512 pixels at a time, whatever the batch."""
    assert Sizes(batch=16, slots=4, rows=32).range("decoder", "B", 512 * 512) == (1, 1, 1)
    assert Sizes(batch=16, slots=4, rows=32).range("decoder", "B", 256 * 256) == (1, 4, 4)
    assert Sizes(batch=16, slots=4, rows=32).range("step", "B", 512 * 512) == (1, 16, 16)


def test_more_slots_when_a_program_has_more(gray_bundle: Path) -> None:
    from ditedge.runtime.samplers.program import write_program

    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    name = next(iter(manifest["programs"].values()))
    write_program(open_bundle(gray_bundle).program(sampler="lms", order=4, steps=8), gray_bundle / name)
    size = (gray_bundle / name).stat().st_size
    manifest["files"][name] = {"sha256": sha256_of_file(gray_bundle / name), "bytes": size}
    (gray_bundle / "manifest.json").write_text(json.dumps(manifest))
    assert sizes_of(open_bundle(gray_bundle), 1, None).slots == 5


def test_the_forecast_grows_with_the_batch(golden_bundle) -> None:
    manifest = open_bundle(golden_bundle("gray1_cfg")).manifest
    small, large = forecast(manifest, Sizes(1, 4, 2)), forecast(manifest, Sizes(8, 4, 16))
    assert small.weights == large.weights == sum(i.bytes for n, i in manifest.files.items() if n.endswith(".onnx"))
    assert large.activations == 8 * small.activations
    assert small.host > small.weights
