"""Diffusers folders that say what they are, and those that do not fit together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditedge.export import read_source, vae_folder
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError
from tests.export.sources.diffusers_models import BLOCK1, WEIGHTS, diffusers_model


def test_pipeline_bundle_says_what_it_is(pipeline_folder: Path, pipeline_bundle: Path) -> None:
    bundle = open_bundle(pipeline_bundle)
    model = bundle.manifest.model
    assert (model.frequency_divisor, model.mlp_norm_eps, model.timestep_range) == (127, 1e-5, (999.0, 0.0))
    assert bundle.label("item 7") == bundle.label("thing 7, item 7") == 7
    assert vae_folder(pipeline_folder) == pipeline_folder / "vae" and vae_folder(pipeline_folder / "vae") is None


def test_shards_and_pickles_are_the_same_model(transformer_folder: Path, tmp_path: Path) -> None:
    whole = read_source(transformer_folder)
    diffusers_model().save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    pickled = changed_folder(tmp_path / "pickled", transformer_folder)
    torch.save(load_file(pickled / WEIGHTS), pickled / "diffusion_pytorch_model.bin")
    (pickled / WEIGHTS).unlink()
    for folder in (tmp_path / "shards", pickled):
        other = read_source(folder)
        assert other.config == whole.config and other.sha256 != whole.sha256
        assert all(torch.equal(other.weights[key], tensor) for key, tensor in whole.weights.items())


def changed_folder(target: Path, source: Path, config: dict | None = None, **tensors: torch.Tensor | None) -> Path:
    """A copy of a transformer folder with values and tensors replaced, or removed where they are None."""
    shutil.copytree(source, target)
    for file, changes in (("config.json", config or {}),):
        values = json.loads((target / file).read_text()) | changes
        (target / file).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    if tensors:
        state = load_file(target / WEIGHTS) | tensors
        save_file({key: value for key, value in state.items() if value is not None}, target / WEIGHTS)
    return target


COPY = f"{BLOCK1}norm1.emb.timestep_embedder.linear_1.bias"


@pytest.mark.parametrize(
    ("config", "tensors", "complaint"),
    [
        ({}, {COPY: None}, f"key '{COPY}' is missing"),
        ({}, {f"{BLOCK1}attn1.to_k.weight": None}, f"key '{BLOCK1}attn1.to_k.weight' is missing"),
        (
            {},
            {f"{BLOCK1}ff.net.2.bias": torch.ones(3)},
            rf"key '{BLOCK1}ff.net.2.bias' has shape \[3\], expected \[32\]",
        ),
        ({}, {"proj_out_2.bias": torch.full((32,), torch.inf)}, "key 'proj_out_2.bias' has numbers"),
        ({}, {f"{BLOCK1}attn2.to_q.weight": torch.ones(1)}, f"key '{BLOCK1}attn2.to_q.weight' is not part"),
        ({"num_layers": 3}, {}, "key 'transformer_blocks.2.attn1.to_q.weight' is missing"),
        ({"_class_name": "PixArtTransformer2DModel"}, {}, "'_class_name' is 'PixArtTransformer2DModel'"),
        ({"norm_type": "ada_norm_single"}, {}, "'norm_type' is 'ada_norm_single'"),
        ({"activation_fn": "geglu"}, {}, "'activation_fn' is 'geglu'"),
        ({"num_attention_heads": ...}, {}, "'num_attention_heads' is None"),
        ({"sample_size": 9}, {}, "'sample_size' 9"),
        ({"out_channels": 5}, {}, "'out_channels' is 5"),
        ({"norm_eps": 0}, {}, "'norm_eps' is 0"),
    ],
)
def test_misfits_of_a_folder_name_file_and_key(
    transformer_folder: Path, tmp_path: Path, config: dict, tensors: dict, complaint: str
) -> None:
    folder = changed_folder(tmp_path / "changed", transformer_folder, config, **tensors)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_source(folder)
    assert str(folder / (WEIGHTS if "key '" in complaint else "config.json")) in str(caught.value)


def test_options_that_do_not_fit_a_folder(transformer_folder: Path) -> None:
    for options, complaint in (({"heads": 4}, "--heads 4"), ({"image_size": 512}, "--image-size 512")):
        with pytest.raises(CheckpointError, match=complaint):
            read_source(transformer_folder, **options)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: (f / WEIGHTS).unlink(), "no weights, expected"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\0" * 20), "cut short"),
        (lambda f: (f / "config.json").write_text("{"), r"config.json: not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config.json: not a JSON object"),
        (lambda f: (f / "config.json").unlink(), "is not a checkpoint.*a diffusers DiT folder"),
        (lambda f: (f / "model_index.json").write_text("{}"), r"transformer/config.json does not exist"),
        (lambda f: shard_index(f, "../../secret.safetensors"), "is not the name of a .safetensors file"),
        (lambda f: shard_index(f, "gone.safetensors"), "gone.safetensors does not exist"),
        (lambda f: (f / f"{WEIGHTS}.index.json").write_text("{}"), "key 'weight_map' is missing"),
    ],
)
def test_damaged_folders(
    transformer_folder: Path, tmp_path: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    folder = changed_folder(tmp_path / "damaged", transformer_folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=complaint):
        read_source(folder)


def shard_index(folder: Path, name: str) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"pos_embed.proj.bias": name}}))


def test_labels_must_be_complete(pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "p"))
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"].pop("3")
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model_index.json: 'id2label'"):
        read_source(folder)
