"""diffusers folders as they are found: trained from scratch, variants, shards, pickles, EMA; what each says it took."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.export import DiT, DiTConfig, read_source
from ditedge.export.graphs import write
from ditedge.export.sources.scheduler_config import DEFAULTS, read_scheduler
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.schedule import ScheduleInfo
from tests.export.networks.vaes import assert_same_decoder, make_vae
from tests.export.sources.diffusers_models import diffusers_model

diffusers = pytest.importorskip("diffusers")

STEM = "diffusion_pytorch_model"
SMALL = {"num_embeds_ada_norm": 10, "in_channels": 1, "out_channels": None}


def own_embedders(**options):
    """As training from scratch in diffusers leaves a model: every block has other embedders."""
    torch.manual_seed(1)
    model = diffusers_model(**SMALL | {"num_layers": 3} | options)
    for block in model.transformer_blocks:
        for parameter in block.norm1.emb.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def questions(channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, torch.tensor([0, 1, 500, 999]), torch.tensor([0, 3, 9, 10])


def error_against(theirs, path: Path) -> float:
    """Of the network read from `path`, relative to diffusers' own."""
    x, t, y = questions()
    expected = theirs.float()(x, timestep=t, class_labels=y).sample
    return relative_error(read_source(path).model()(x, t, y).numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, f"{STEM}.safetensors"),
        ({"safe_serialization": False}, f"{STEM}.bin"),
        ({"variant": "fp16"}, f"{STEM}.fp16.safetensors (variant fp16)"),
        ({"max_shard_size": "60KB"}, " shards"),
        ({"max_shard_size": "60KB", "safe_serialization": False}, f"{STEM}.bin.index.json, "),
        ({"max_shard_size": "30KB", "variant": "fp16"}, " shards (variant fp16)"),
    ],
    ids=["whole", "bin", "fp16", "shards", "shards of bin", "shards of fp16"],
)
def test_every_layout_is_the_same_network(tmp_path: Path, options: dict, sentence: str) -> None:
    model = own_embedders()
    (model.half() if "variant" in options else model).save_pretrained(tmp_path / "dit", **options)
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(
        tmp_path / "dit", variant=options.get("variant"), use_safetensors=options.get("safe_serialization", True)
    )
    assert error_against(theirs.requires_grad_(False), tmp_path / "dit") < 1e-5  # measured 0
    notes = read_source(tmp_path / "dit").notes
    assert sentence in notes[0] and "own timestep and label embedder" in notes[1]


def test_own_embedders_belong_to_the_conditioner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through conditioner.onnx; the trunk has none of them, and equal copies are stored once."""
    theirs = own_embedders()
    theirs.save_pretrained(tmp_path / "own")
    checkpoint = read_source(tmp_path / "own")
    assert checkpoint.config.block_embedders and len(checkpoint.model().block_embedders) == 2
    from ditedge.export.exporter import ExportOptions, _model_info

    info = _model_info(checkpoint, ExportOptions())
    all_graphs = write._graph_specs
    monkeypatch.setattr(write, "_graph_specs", lambda *of: [s for s in all_graphs(*of) if s.name == "conditioner"])
    write.write_graphs(checkpoint.model(), info, True, tmp_path, 20, lambda *_: None)
    x, t, y = questions()
    modulation = np.empty((4, checkpoint.config.modulation_size), np.float32)
    engine = open_engine(tmp_path / "conditioner.onnx", EngineOptions())
    engine.run({"timestep": t.float().numpy(), "label": y.numpy()}, {"modulation": modulation})
    engine.close()
    ours = checkpoint.model().trunk(x, torch.from_numpy(modulation)).numpy()
    assert relative_error(ours, theirs(x, timestep=t, class_labels=y).sample.numpy()) < 1e-5
    for block in theirs.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    theirs.save_pretrained(tmp_path / "tied")
    tied = read_source(tmp_path / "tied")
    assert not tied.config.block_embedders and len(tied.weights) < len(checkpoint.weights)
    assert tied.weights.keys() == DiT(DiTConfig(8, 2, 1, 32, 3, 2, 10, learn_sigma=False)).state_dict().keys()


@pytest.mark.parametrize("names", [("transformer_ema", "transformer"), ("unet_ema", "unet")])
def test_the_average_of_a_training_run_is_taken(tmp_path: Path, names: tuple[str, str]) -> None:
    """What `save_model_hook` of diffusers' training scripts leaves in checkpoint-500: EMA weights beside the raw ones."""
    from diffusers.training_utils import EMAModel

    raw, average = own_embedders(), own_embedders()
    for parameter in average.parameters():
        parameter.mul_(0.9)
    raw.save_pretrained(tmp_path / names[1])
    ema = EMAModel(average.parameters(), model_cls=type(average), model_config=average.config)
    ema.save_pretrained(str(tmp_path / names[0]))
    assert error_against(average, tmp_path) < 1e-5 and error_against(raw, tmp_path) > 1e-3
    assert f"EMA), not {names[1]}/" in read_source(tmp_path).notes[0]
    assert error_against(raw, tmp_path / names[1]) < 1e-5  # whoever wants those says so


def test_a_file_of_a_folder_means_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = own_embedders()
    theirs.save_pretrained(tmp_path / "pipe" / "transformer")
    theirs.half().save_pretrained(tmp_path / "pipe" / "transformer", variant="fp16")
    make_vae(tmp_path / "pipe" / "vae")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    whole = read_source(tmp_path / "pipe")
    for name in ("model_index.json", "transformer/config.json", f"transformer/{STEM}.safetensors"):
        found = read_source(tmp_path / "pipe" / name)
        assert found.config == whole.config
        assert all(torch.equal(found.weights[key], whole.weights[key]) for key in whole.weights), name
    half = read_source(tmp_path / "pipe" / f"transformer/{STEM}.fp16.safetensors")
    assert "(variant fp16)" in half.notes[0]
    assert not torch.equal(half.weights["x_embedder.proj.weight"], whole.weights["x_embedder.proj.weight"])
    assert read_vae(tmp_path / "pipe" / "model_index.json").sha256 == read_vae(tmp_path / "pipe" / "vae").sha256
    for name in ("", "model_index.json"):
        result = CliRunner().invoke(main, ["inspect", str(tmp_path / "pipe" / name), "--json"])
        assert json.loads(result.stdout)["model"]["block_embedders"] is True


def test_vae_variants_and_shards(tmp_path: Path) -> None:
    vae = make_vae(tmp_path / "whole")
    vae.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    vae.half().save_pretrained(tmp_path / "bf", variant="bf16")
    assert_same_decoder(tmp_path / "bf", vae.float())
    hashes = {read_vae(tmp_path / name).sha256 for name in ("whole", "shards", "bf")}
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1 and len(hashes) == 3


# --- hostile and damaged folders ---------------------------------------------------------------------------------------


def index_with(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / f"{STEM}.safetensors.index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def config_with(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def moved_key(folder: Path) -> None:
    path = folder / f"{STEM}.safetensors.index.json"
    index = json.loads(path.read_text())
    files = index["weight_map"]
    files["pos_embed.proj.bias"] = next(name for name in files.values() if name != files["pos_embed.proj.bias"])
    path.write_text(json.dumps(index))


def two_variants(folder: Path) -> None:
    for name in ("one", "two"):
        shutil.copyfile(next(folder.glob("*.safetensors")), folder / f"{STEM}.{name}.safetensors")
    (folder / f"{STEM}.safetensors.index.json").unlink()


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a shard outside": (index_with(weight_map={"a": "../x.safetensors"}), "'../x.safetensors' is not the name of"),
    "an absolute shard": (index_with(weight_map={"a": "/etc/x.safetensors"}), "is not the name of"),
    "a shard of another kind": (index_with(weight_map={"a": "x.bin"}), r"is not the name of a .safetensors file"),
    "a shard that is no name": (index_with(weight_map={"a": 3}), "does not name a file for every tensor"),
    "no map": (index_with(weight_map=[]), "'weight_map' is missing"),
    "a shard that is missing": (lambda f: next(f.glob("*-00001-*")).unlink(), "00001-of-.* does not exist"),
    "a key elsewhere": (moved_key, "key 'pos_embed.proj.bias' is"),
    "thousands of shards": (
        index_with(weight_map={str(i): f"{i}.safetensors" for i in range(2000)}),
        "2000 shards, at most 1000",
    ),
    "variants without a reason": (two_variants, "several variants, .*one.*two"),
    "a million blocks": (config_with(num_layers=1 << 20), "tensors are too few for the 1048576 blocks"),
    "more blocks than a number": (config_with(num_layers=10**30), r"'num_layers' is 1e\+30"),
    "a width of terabytes": (config_with(num_attention_heads=1 << 20, attention_head_dim=1 << 20), "at most 65536"),
    "a picture of terabytes": (config_with(sample_size=1 << 20), "'sample_size' 1048576"),
    "no number": (config_with(num_layers=[3]), r"'num_layers' is \[3\]"),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "dit"
    own_embedders().save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.mark.parametrize("damage", BAD)
def test_folders_that_are_refused_with_one_sentence(shards: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "dit"))
    change, complaint = BAD[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_source(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 1500


# --- scheduler configs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_scheduler_leaves_out_is_its_classs_default(name: str) -> None:
    try:
        parameters = inspect.signature(getattr(diffusers, name)).parameters
    except ImportError:
        pytest.skip(f"{name} needs torchsde")
    if "num_train_timesteps" not in parameters:
        pytest.skip(f"{name} needs torchsde")
    kind, start, end = DEFAULTS[name]
    facts = read_scheduler(Path("x"), {"_class_name": name})
    assert facts.schedule.steps == parameters["num_train_timesteps"].default
    assert kind == parameters["beta_schedule"].default
    if kind != "squaredcos_cap_v2":
        expected = {"beta_start": parameters["beta_start"].default, "beta_end": parameters["beta_end"].default}
        assert facts.schedule == ScheduleInfo(kind=kind, steps=1000, **expected)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}, "--prediction flow-to-data"),
        ({"_class_name": "EDMEulerScheduler", "num_train_timesteps": 1000}, "not a scheduler with betas"),
        ({"_class_name": ["DDIMScheduler"]}, "not a scheduler with betas"),
        ({"prediction_type": {"a": 1}}, "'prediction_type' is \"{'a': 1}"),
        ({"beta_schedule": ["linear"]}, "'beta_schedule' is"),
        ({"num_train_timesteps": 10**12}, "'num_train_timesteps'"),
        ({"num_train_timesteps": "many"}, "'num_train_timesteps'"),
        ({"num_train_timesteps": float("nan")}, "'num_train_timesteps'"),
        ({"beta_start": 10**400}, "'beta_start'"),
        ({"beta_end": float("inf")}, "'beta_end'"),
        ({"trained_betas": [0.1] * 3}, "betas"),
        ({"trained_betas": "x" * 10**6}, "'trained_betas'"),
    ],
)
def test_scheduler_configs_that_are_refused(values: dict, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_scheduler(Path("x.json"), {"_class_name": "DDIMScheduler"} | values)
    assert str(caught.value).startswith("x.json: ") and len(str(caught.value)) < 400


def test_a_flow_pipeline_needs_no_betas(tmp_path: Path) -> None:
    own_embedders().save_pretrained(tmp_path / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    checkpoint = read_source(tmp_path, prediction="flow-to-data")
    assert checkpoint.prediction == "flow-to-data" and checkpoint.schedule is None
    with pytest.raises(CheckpointError, match="as SiT"):
        read_source(tmp_path)
