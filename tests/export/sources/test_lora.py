"""LoRAs merged at export: every layout adds what PEFT's layers add, and what does not fit is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditedge.cli import main
from ditedge.export import ExportOptions, bundle_from_checkpoint, read_source
from ditedge.export.sources.families import family_of
from ditedge.export.sources.lora import read_lora, read_with
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import CheckpointError, RequestError
from ditedge.runtime.loop.verify import relative_error
from tests.export.sources.diffusers_models import GRAY, diffusers_model
from tests.export.sources.lora_layouts import LAYOUTS, RANK, adapter, halves, kohya, plain_keys, with_lora, written

DIT = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.1.ff.net.0.proj")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@torch.no_grad()
def test_a_diffusers_dit(tmp_path: Path, transformer_folder: Path, layout: Callable[..., float]) -> None:
    model = diffusers_model()
    lora = halves(model, DIT)
    file, scale = written(tmp_path, layout, lora)
    asked = read_lora(f"{tmp_path if layout is not kohya else file}:0.7")
    found = read_with([asked], lambda: read_source(transformer_folder)).model()
    x, t, y = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([5, 800]),
        torch.tensor([1, 2]),
    )
    before = model(x, timestep=t, class_labels=y).sample
    expected = with_lora(model, lora, 0.7 * scale)(x, timestep=t, class_labels=y).sample
    assert relative_error(before.numpy(), expected.numpy()) > 0.01
    assert relative_error(found(x, t, y).numpy(), expected.numpy()) < 1e-5


PIXART = (
    "pos_embed.proj",
    "transformer_blocks.0.attn2.to_k",
    "transformer_blocks.1.attn1.to_v",
    "caption_projection.linear_1",
)


@torch.no_grad()
def test_a_pixart_and_its_convolution(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.export.pixart_pipelines import small_transformer

    model, (folder, adapters) = small_transformer(), (tmp_path / "transformer", tmp_path / "adapter")
    model.save_pretrained(folder)
    adapters.mkdir()
    lora = halves(model, PIXART)
    scale = adapter(adapters, lora, alpha_pattern={"attn2.to_k": 1.5, r"^base_model\.model\.pos_embed\.proj$": 0.75})
    read = family_of(folder)
    assert read is not None
    found = read_with([read_lora(str(adapters))], lambda: read(folder))
    plain_one = read(folder)
    for name, (down, up) in lora.items():
        part = {"transformer_blocks.0.attn2.to_k": 1.5 / RANK, "pos_embed.proj": 0.75 / RANK}.get(name, scale)
        delta = torch.einsum("or,ri...->oi...", up.flatten(1), down)
        expected = model.get_submodule(name).weight + part * delta
        torch.testing.assert_close(found.weights[f"{name}.weight"], expected, rtol=0, atol=1e-6)
    same = [key for key in found.weights if torch.equal(found.weights[key], plain_one.weights[key])]
    assert len(found.weights) - len(same) == len(PIXART) and found.sha256 != plain_one.sha256
    assert found.notes[-1] == f"lora: {adapters}, weight 1, 4 layers of rank {RANK}"


def network_of(family: str) -> Any:
    pytest.importorskip("diffusers")
    from tests.export import (
        flux2_pipelines,
        hunyuan_dit_pipelines,
        joint_pipelines,
        lumina2_pipelines,
        pixart_pipelines,
        sana_pipelines,
    )

    return {
        "PixArt": pixart_pipelines.small_transformer,
        "PixArt's lone file": pixart_pipelines.small_transformer,
        "Sana": sana_pipelines.small_sana,
        "SD3": lambda: joint_pipelines.sd3_transformer(True, pooled_projection_dim=2048, joint_attention_dim=4096),
        "FLUX": lambda: joint_pipelines.flux_transformer(told=True),
        "FLUX.2": flux2_pipelines.flux2_transformer,
        "HunyuanDiT": hunyuan_dit_pipelines.hunyuan_dit_transformer,
        "Z-Image": joint_pipelines.z_image_transformer,
        "Lumina 2": lumina2_pipelines.lumina2_transformer,
    }[family]()


@pytest.mark.parametrize(
    "family", ["PixArt", "PixArt's lone file", "Sana", "SD3", "FLUX", "FLUX.2", "HunyuanDiT", "Z-Image", "Lumina 2"]
)
@torch.no_grad()
def test_every_family_has_it_by_its_reader(tmp_path: Path, family: str) -> None:
    """Of every linear layer: as a folder whose weights have it already."""
    model, (plain, whole) = network_of(family), (tmp_path / "plain", tmp_path / "whole")
    model.save_pretrained(plain)
    names = tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    lora = halves(model, names)
    for name, (down, up) in lora.items():
        model.get_submodule(name).weight += 0.5 * up @ down
    model.save_pretrained(whole)
    save_file(plain_keys(lora, ("lora_A", "lora_B")), tmp_path / "lora.safetensors")
    file = "diffusion_pytorch_model.safetensors" if "file" in family else ""
    if file:
        (plain / "config.json").unlink(), (whole / "config.json").unlink()

    def read(folder: Path, *loras: str) -> Any:
        reader = family_of(folder / file, heads=3 if file else None, image_size=64 if file else None)
        assert reader is not None
        return read_with([read_lora(text) for text in loras], lambda: reader(folder / file))

    found, expected, before = read(plain, f"{tmp_path / 'lora.safetensors'}:0.5"), read(whole), read(plain)
    for key, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[key], weight, rtol=0, atol=1e-6)
    assert sum(not torch.equal(before.weights[key], found.weights[key]) for key in before.weights) > 10


def gray_lora(folder: Path, **changes: Any) -> Path:
    """A PEFT adapter of the golden one-channel model, under facebookresearch/DiT's names."""
    folder.mkdir(exist_ok=True)
    lora = halves(read_source(GRAY, heads=2).model(), ("blocks.0.attn.qkv", "blocks.1.mlp.fc2", "x_embedder.proj"))
    adapter(folder, lora, **changes)
    return folder


def test_facebookresearchs_names_and_several_at_once(tmp_path: Path) -> None:
    """Twice with other weights is their sum, and what is taken away again was never there."""
    folder = gray_lora(tmp_path / "a")

    def read(*weights: float) -> Any:
        return read_with([read_lora(f"{folder}:{weight}") for weight in weights], lambda: read_source(GRAY, heads=2))

    plain, twice, once, none = read(), read(0.5, 0.25), read(0.75), read(1.0, -1.0)
    changed = {key for key, weight in plain.weights.items() if not torch.equal(weight, once.weights[key])}
    assert changed == {f"{name}.weight" for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2", "x_embedder.proj")}
    for key, weight in once.weights.items():
        torch.testing.assert_close(twice.weights[key], weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(none.weights[key], plain.weights[key], rtol=0, atol=1e-6)
    assert len({plain.sha256, twice.sha256, once.sha256, none.sha256}) == 4


def changed_file(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


FIRST = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
WRONG_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a layer of nobody": (
        lambda t: t.update(
            {f"base_model.model.blocks.9.attn.qkv.lora_{half}.weight": torch.ones(3, 3) for half in "AB"}
        ),
        "nothing in the model fits 'base_model.model.blocks.9.attn.qkv.lora_A.weight'",
    ),
    "a key of nobody": (
        lambda t: t.update({"te.lora_C.weight": torch.ones(2)}),
        "key 'te.lora_C.weight' is no part of",
    ),
    "DoRA": (
        lambda t: t.update({FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(2)}),
        "is no part of",
    ),
    "half a layer": (lambda t: t.pop(FIRST), "is there without its other half"),
    "another width": (
        lambda t: t.update({FIRST: torch.ones(3, 5)}),
        "has shape [3, 5] and its other half [96, 3], which do",
    ),
    "another rank": (lambda t: t.update({FIRST: torch.ones(2, 32)}), "is a LoRA of another model: key"),
    "no rank": (lambda t: t.update({FIRST: torch.ones(0, 32)}), "has shape [0, 32], and its other half [96, 3]"),
    "infinite": (lambda t: t.update({FIRST: torch.full((3, 32), float("inf"))}), "has numbers that are not finite"),
    "too much": (lambda t: t.update({FIRST: torch.full((3, 32), 3e38)}), "that are not finite"),
    "an alpha of nobody": (
        lambda t: t.update({"blocks.7.alpha": torch.ones(())}),
        "an alpha without a layer: 'blocks.7'",
    ),
    "no LoRA": (lambda t: (t.clear(), t.update({"a.alpha": torch.ones(1)})), "not a LoRA: it has no lora_A"),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    change, words = WRONG_TENSORS[case]
    folder = gray_lora(tmp_path / "a")
    changed_file(folder, change)
    result = CliRunner().invoke(
        main, ["export", "--ckpt", str(GRAY), "--heads", "2", "--lora", str(folder), "--out", str(tmp_path / "b")]
    )
    assert result.exit_code == 2 and "Traceback" not in result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("Error: ") and words in message and str(folder) in message, message
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"use_dora": True}, "'use_dora' is true"),
        ({"lora_bias": True}, "'lora_bias' is true"),
        ({"bias": "all"}, "'bias' is not none"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out' is true"),
        ({"peft_type": "LOHA"}, "'peft_type' is 'LOHA', not LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "'init_lora_weights' is 'pissa_niter_4'"),
        ({"lora_alpha": "16"}, "'lora_alpha' is '16', not a number"),
        ({"lora_alpha": 0}, "'lora_alpha' is '0', not a number"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "'alpha_pattern' has something else than names"),
        ({"alpha_pattern": [1]}, "'alpha_pattern' has something else than names"),
    ],
)
def test_adapters_that_mean_something_else(tmp_path: Path, told: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match="adapter_config.json: ") as caught:
        read_lora(str(gray_lora(tmp_path / "a", **told)))
    assert words in str(caught.value)


def test_files_and_weights_that_cannot_be(tmp_path: Path) -> None:
    folder = gray_lora(tmp_path / "a")
    for asked, words in (
        ("nowhere.safetensors", "nowhere.safetensors does not exist"),
        (str(tmp_path), "no LoRA, expected one of adapter_model.safetensors"),
        (f"{folder}:nan", "the weight is not a number within"),
        (f"{folder}:1e9", "the weight is not a number within"),
        (f"{folder}:heavy", "heavy does not exist"),
    ):
        with pytest.raises((CheckpointError, RequestError), match=words):
            read_lora(asked)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config.json does not exist: it says how much"):
        read_lora(str(folder))


def test_a_lora_of_another_model(tmp_path: Path, transformer_folder: Path) -> None:
    asked = read_lora(str(gray_lora(tmp_path / "a")))
    with pytest.raises(
        CheckpointError, match="is a LoRA of another model: nothing here fits 'base_model.model.blocks.0"
    ):
        read_with([asked], lambda: read_source(transformer_folder))


def test_the_bundle_says_that_it_is_another_one(tmp_path: Path, golden_bundle) -> None:
    """Weight 0 leaves the network as it is, and so its graphs, which other tests have traced."""
    folder, notes = gray_lora(tmp_path / "a"), []
    options = ExportOptions(heads=2, lora=(f"{folder}:0",))
    manifest = bundle_from_checkpoint(GRAY, tmp_path / "b", options, note=notes.append)
    assert notes[-2:][0] == f"lora: {folder}, weight 0, 3 layers of rank {RANK}" or any(
        "lora: " in note for note in notes
    )
    assert manifest.source_sha256 != open_bundle(golden_bundle("gray1_cfg")).manifest.source_sha256


@pytest.mark.slow  # two exports
def test_a_bundle_is_that_of_the_merged_checkpoint(tmp_path: Path) -> None:
    folder = gray_lora(tmp_path / "a")
    merged = read_with([read_lora(f"{folder}:0.7")], lambda: read_source(GRAY, heads=2)).weights
    save_file(merged, tmp_path / "merged.safetensors")
    bundle_from_checkpoint(GRAY, tmp_path / "one", ExportOptions(heads=2, lora=(f"{folder}:0.7",)))
    bundle_from_checkpoint(tmp_path / "merged.safetensors", tmp_path / "other", ExportOptions(heads=2))
    one, other = (generate(open_bundle(tmp_path / name), [1], [2], output="latents") for name in ("one", "other"))
    assert relative_error(one, other) < 1e-6
