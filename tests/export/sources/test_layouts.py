"""The layouts that training scripts save: which weights are taken, what is said of it, and that they compute the same."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from ditedge.cli import main
from ditedge.export import DiT, DiTConfig, bundle_name, read_checkpoint, read_source
from ditedge.export.sources.checkpoint import load_tensors
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from tests.export.networks.literal_dit import literal_dit

State = dict[str, Tensor]
# Nothing standard: MLP ratio 2.5, a sinusoid of 64, 5 classes.
CONFIG = DiTConfig(8, 2, 4, 48, 2, 3, num_classes=5, mlp_ratio=2.5, timestep_channels=64, frequency_divisor=32)


def random_state(seed: int, config: DiTConfig = CONFIG) -> State:
    torch.manual_seed(seed)
    return {key: torch.randn_like(value) * 0.3 for key, value in DiT(config).state_dict().items()}


RAW, EMA = random_state(0), random_state(1)
RANDOM_STATE = np.random.RandomState(0).get_state()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def litema(owner: str, prefix: str, state: State) -> State:
    """latent-diffusion's LitEma: buffers of what is trained, named without dots."""
    return {owner + (prefix + key).replace(".", ""): value for key, value in state.items() if key != "pos_embed"}


TRAINED = [value for key, value in EMA.items() if key != "pos_embed"]
# What is saved -> what the sentence says of the weights.
LAYOUTS: dict[str, tuple[Any, str]] = {
    "train.py": ({"model": RAW, "ema": EMA, "opt": {}, "args": argparse.Namespace()}, "'ema', averaged"),
    "DDP inside compile": ({"ema": prefixed("_orig_mod.module.", EMA)}, "'ema._orig_mod.module', averaged"),
    "compile inside DDP": ({"model": RAW, "ema": prefixed("module._orig_mod.", EMA)}, "'ema.module._orig_mod'"),
    "model_ema": ({"model": RAW, "model_ema": EMA}, "'model_ema', averaged over training (EMA), not 'model'"),
    "ema_model": ({"model": prefixed("module.", RAW), "ema_model": EMA}, "'ema_model', averaged"),
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA}, "'state_dict_ema', averaged"),
    "ema with a module": ({"model": RAW, "ema": {"module": EMA, "updates": 7}}, "'ema.module', averaged"),
    "ema-pytorch": (
        {"model": RAW, "ema": {**prefixed("ema_model.", EMA), **prefixed("online_model.", RAW), "step": torch.tensor(1)}},
        "'ema.ema_model', averaged over training (EMA), not 'model', 'ema.online_model'",
    ),
    "torch's AveragedModel": (
        {"model": RAW, "averager": {"n_averaged": torch.tensor(5), **prefixed("module.", EMA)}},
        "'averager.module', averaged",
    ),
    "Lightning, one network of two": (
        {"state_dict": {**prefixed("model.", RAW), **prefixed("ema_model.", EMA), "vae.conv": torch.ones(3, 3)}, "epoch": 1},
        "'state_dict.ema_model', averaged",
    ),
    "Lightning's WeightAveraging": (
        {"state_dict": prefixed("net.", EMA), "current_model_state": prefixed("net.", RAW), "averaging_state": {}},
        "'state_dict.net', averaged",
    ),
    "LitEma": (
        {"state_dict": {**prefixed("model.diffusion_model.", RAW), **litema("model_ema.", "diffusion_model.", EMA)}},
        "'state_dict.model_ema', averaged",
    ),
    "shadow_params": ({"model": RAW, "ema": {"shadow_params": list(EMA.values()), "decay": 0.9}}, "'ema.shadow_params'"),
    "shadow_params alone": ({"ema": {"shadow_params": list(EMA.values())}}, "'ema.shadow_params', averaged"),
    "shadow_params of what is trained": ({"model": RAW, "ema": {"shadow_params": TRAINED}}, "'ema.shadow_params'"),
    "flat": (EMA, "the file's own keys, the only ones in the file"),
    "flat DDP": (prefixed("module.", EMA), "'module', the only ones in the file"),
    "numpy beside": ({"ema": EMA, "loss": np.float64(0.1), "n": np.int64(3), "rng": RANDOM_STATE}, "'ema', averaged"),
}  # fmt: skip


def output(state: State, heads: int = 3) -> tuple[Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(7)
    inputs = (torch.randn(3, 4, 8, 8), torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 4, 5]))
    return literal_dit(state, heads, *inputs), inputs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_average_is_taken_and_said(tmp_path: Path, layout: str) -> None:
    data, sentence = LAYOUTS[layout]
    torch.save(data, tmp_path / "c.pt")
    checkpoint = read_source(tmp_path / "c.pt", heads=3)
    assert checkpoint.config == CONFIG
    assert checkpoint.notes[0].startswith(f"weights: {sentence}")
    positions = checkpoint.weights["pos_embed"]  # of the raw model, where the average has what is trained alone
    assert torch.equal(positions, EMA["pos_embed"]) or torch.equal(positions, RAW["pos_embed"])
    expected, inputs = output({**EMA, "pos_embed": positions})
    assert relative_error(checkpoint.model()(*inputs).numpy(), expected.numpy()) < 1e-5
    assert relative_error(expected.numpy(), output(RAW)[0].numpy()) > 0.1, "the raw weights would show"


def test_weights_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"model": RAW, "ema_a": EMA, "ema_b": RAW}, path)
    with pytest.raises(CheckpointError, match=r"2 state dicts of a DiT, 'ema_a', 'ema_b': say which with --weights"):
        read_checkpoint(path, heads=3)
    taken = read_checkpoint(path, heads=3, weights="model")
    assert torch.equal(taken.weights["pos_embed"], RAW["pos_embed"])
    assert taken.notes[0] == "weights: 'model', as --weights says, not 'ema_a', 'ema_b'"
    with pytest.raises(CheckpointError, match="--weights 'x' is not one of 'model', 'ema_a', 'ema_b'"):
        read_checkpoint(path, heads=3, weights="x")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"net": {"w": torch.ones(3, 3)}, "epoch": 3}, "no state dict of a DiT; keys found: 'net', 'epoch'"),
        ({"\x1b[31m": 1}, r"keys found: '\\x1b\[31m'"),
        ([RAW["pos_embed"]], "it holds an object of type list"),
        ({"model": RAW, "opt_states": [{"ema": [torch.ones(2, 2)]}]}, r"layout that is not known, 'opt_states.0.ema.0'"),
        ({"model": RAW, "ema": {"shadow_params": TRAINED[:-1]}}, "not known, 'ema.shadow_params.0'.*keys found: 'model', 'ema'"),
        ({"a": RAW, "b": RAW}, "say which with --weights"),
        ({"m": {f"{i}.x_embedder.proj.weight": torch.ones(1) for i in range(40)}}, "40 state dicts"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_with_its_keys(tmp_path: Path, data: Any, complaint: str) -> None:
    torch.save(data, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(tmp_path / "c.pt", heads=3)


def test_any_network_gets_its_average(tmp_path: Path) -> None:
    mine, other = {"module.conv": torch.ones(2)}, {"module.conv": torch.zeros(2)}
    torch.save(
        {"model": other, "ema": mine, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "c.pt"
    )
    assert load_tensors(tmp_path / "c.pt")["conv"].tolist() == [1, 1]


# --- settings ---------------------------------------------------------------------------------------------------------


def omegaconf_pickle(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> Any:
    """An object that is pickled as omegaconf 2.4 pickles `OmegaConf.create(values)`: names, states, back references."""
    for name in ("omegaconf", "omegaconf.base", "omegaconf.nodes", "omegaconf.dictconfig"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def cls(module: str, name: str) -> type:
        made = type(name, (), {"__module__": f"omegaconf.{module}"})
        setattr(sys.modules[f"omegaconf.{module}"], name, made)
        return made

    metadata, container_metadata = cls("base", "Metadata"), cls("base", "ContainerMetadata")
    node, config = cls("nodes", "AnyNode"), cls("dictconfig", "DictConfig")

    def made(kind: type, **state: Any) -> Any:
        instance = kind()
        instance.__dict__.update(state)
        return instance

    def create(values: Any, parent: Any) -> Any:
        if not isinstance(values, dict):
            return made(node, _metadata=made(metadata, ref_type=Any, key="k"), _parent=parent, _val=values)
        about = made(container_metadata, ref_type=Any, object_type=dict, key_type=Any)
        whole = made(config, _metadata=about, _parent=parent)
        whole.__dict__["_content"] = {key: create(value, whole) for key, value in values.items()}
        return whole

    return create(values, None)


SETTINGS = {"num_classes": 6, "model": {"num_heads": 3, "mlp_ratio": 2.5, "name": "dit"}, "optimizer": {"depth": 99}}


@pytest.mark.parametrize(
    "kind", ["namespace", "dict", "omegaconf", "args.json", "config.yaml", "hydra", "hparams.yaml"]
)
def test_settings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """6 rows and 6 classes: no null class. 3 heads: said nowhere else."""
    inside: dict[str, Callable[[], Any]] = {
        "namespace": lambda: argparse.Namespace(**SETTINGS, save_dir=Path("x")),
        "dict": lambda: {**SETTINGS, "num_classes": np.int64(6)},
        "omegaconf": lambda: omegaconf_pickle(monkeypatch, SETTINGS),
    }
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    data = {"ema": EMA, "hyper_parameters": {"lr": 1e-4}}
    torch.save(data | ({"args": inside[kind]()} if kind in inside else {}), folder / "0400000.pt")
    if kind == "args.json":
        (tmp_path / "run" / kind).write_text(json.dumps(SETTINGS))
    elif kind == "hydra":
        (tmp_path / "run" / ".hydra").mkdir()
        (tmp_path / "run" / ".hydra" / "config.yaml").write_text("num_classes: 6\nmodel:\n  num_heads: 3\n")
    elif kind not in inside:
        (tmp_path / "run" / kind).write_text(
            "args: !!python/object:argparse.Namespace\n  num_classes: 6\n  num_heads: 3\n"
        )
    for name in [name for name in sys.modules if name.startswith("omegaconf")]:
        monkeypatch.delitem(sys.modules, name)
    checkpoint = read_checkpoint(folder / "0400000.pt")
    assert (checkpoint.config.num_heads, checkpoint.config.num_classes, checkpoint.config.null_class) == (3, 6, False)
    origin = {"hydra": ".hydra/config.yaml"}.get(kind, "'args' of the file" if kind in inside else kind)
    assert checkpoint.notes[1] == (
        f"settings: 3 heads ({origin}: num_heads 3), 6 classes without a null class ({origin}: num_classes 6)"
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide the width 48"),
        ({"depth": 3}, "depth 3 contradicts the weights, whose shapes say 2"),
        ({"hidden_size": 64}, "hidden_size 64 contradicts .* say 48"),
        ({"model": {"patch_size": (4, 4)}}, "patch_size 4 contradicts .* say 2"),
        ({"mlp_ratio": 4}, r"mlp_ratio 4.0 contradicts .* say 2.5"),
        ({"num_classes": 1000}, "num_classes 1000 contradicts .* say 6, or 5 and a null class"),
        ({"image_size": 256}, "image_size 256 contradicts .* say 64"),
        ({"learn_sigma": False}, "learn_sigma False contradicts .* say True"),
        ({"num_heads": "many"}, "num_heads is 'many', expected a whole number"),
        ({"num_heads": 10**600}, "num_heads is out of any range"),
        ({"mlp_ratio": math.nan}, "mlp_ratio is out of any range"),
    ],
)
def test_settings_that_contradict_the_shapes_are_refused(tmp_path: Path, settings: dict, complaint: str) -> None:
    torch.save({"ema": EMA, "args": settings}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=f"'args' of the file: {complaint}"):
        read_checkpoint(tmp_path / "c.pt", heads=None if "num_heads" in settings else 3)


@pytest.mark.parametrize(
    ("settings", "null_class"), [({}, True), ({"class_dropout_prob": 0.0}, False), ({"cfg_prob": 0.1}, True)]
)
def test_the_null_class_follows_the_settings(tmp_path: Path, settings: dict, null_class: bool) -> None:
    torch.save({"ema": EMA, "args": settings}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt", heads=3).config.null_class == null_class
    assert read_checkpoint(tmp_path / "c.pt", heads=3, null_class=not null_class).config.null_class != null_class


def test_the_size_of_missing_positions_is_recorded(tmp_path: Path) -> None:
    state = {key: value for key, value in EMA.items() if key != "pos_embed"}
    torch.save({"ema": state, "args": {"image_size": 64}}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt", heads=3).config.input_size == 8


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: " + "[" * 5000,
        "x" * 300_000,
        "num_heads: " + "9" * 5000,
        "\x00",
    ],
)
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    torch.save(EMA, tmp_path / "c.pt")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="config.yaml: .*move it away"):
        read_checkpoint(tmp_path / "c.pt", heads=3)


def test_settings_that_are_tensors_are_none(tmp_path: Path) -> None:
    torch.save(
        EMA | {"args": {"num_heads": 3, "depth": [torch.ones(2)] * 2, "image_size": torch.ones(3)}}, tmp_path / "c.pt"
    )
    assert read_checkpoint(tmp_path / "c.pt").config.num_heads == 3


def test_yaml_runs_nothing_and_does_not_grow(tmp_path: Path) -> None:
    torch.save(EMA, tmp_path / "c.pt")
    bomb = "a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(20)) + "}\n"
    bomb += "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 20)}]}}\n" for i in range(1, 12))
    marker = tmp_path / "it-ran"
    code = f"x: !!python/object/apply:os.mkdir ['{marker}']\nnum_heads: 3\n"
    (tmp_path / "config.yaml").write_text(bomb + code)
    assert read_checkpoint(tmp_path / "c.pt").config.num_heads == 3
    assert not marker.exists()


# --- SiT --------------------------------------------------------------------------------------------------------------

SIT = {"model": "SiT-S/2", "image_size": 64, "num_classes": 5, "path_type": "Linear", "prediction": "velocity",
       "loss_weight": None, "sample_eps": 1e-3, "train_eps": 1e-5}  # fmt: skip


def test_sit_is_exported_as_the_flow_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.py's file of SiT from the command line: weights, settings and prediction are said, and right in the graph."""
    folder = tmp_path / "results" / "000-SiT-S-2-Linear-velocity-None" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"model": RAW, "ema": EMA, "opt": {}, "args": argparse.Namespace(**SIT)}, folder / "0050000.pt")
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["export", "--ckpt", str(folder / "0050000.pt"), "--heads", "3"])
    assert made.exit_code == 0, made.output
    for line in (
        "note: weights: 'ema', averaged over training (EMA), not 'model'",
        "note: settings: 3 heads (--heads), 5 classes and no class ('args' of the file: num_classes 5)",
        "note: predicts: flow-to-data ('args' of the file: path_type 'Linear')",
    ):
        assert line in made.output
    bundle = open_bundle(tmp_path / "000-SiT-S-2-Linear-velocity-None-0050000")
    model = bundle.manifest.model
    assert (model.prediction, model.mlp_ratio, model.frequency_divisor, model.out_channels) == (
        "flow-to-data",
        2.5,
        32,
        4,
    )
    z = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    x = torch.from_numpy(z)
    for i in range(4):  # Euler's method with SiT's own forward: t from 0 (noise) to 1, the first C channels
        t = torch.full((1,), i / 4)
        x = x + literal_dit(EMA, 3, x, t, torch.tensor([2]))[:, :4] / 4
    from ditedge.runtime import generate
    from ditedge.runtime.loop.noise import GivenNoise

    noise = GivenNoise(z, np.zeros((4, *z.shape), np.float32))
    program = bundle.program(sampler="flow-euler", steps=4)
    ours = generate(bundle, [2], [0], program=program, guidance=1.0, noise=noise, output="latents")
    assert relative_error(ours, x.numpy()) < 1e-5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"path_type": "GVP"}, "path_type 'GVP', .*: prediction 'velocity': not supported"),
        ({"path_type": "VP"}, "path_type 'VP'"),
        ({"prediction": "noise"}, "prediction 'noise': not supported"),
        ({"prediction": "score"}, "prediction 'score': not supported"),
        ({"path_type": "linear", "prediction": "v"}, "path_type 'linear'"),  # REPA's: its time runs the other way
    ],
)
@pytest.mark.parametrize("asked", [None, "flow-to-data", "epsilon"])
def test_other_transports_are_refused_by_name(tmp_path: Path, changes: dict, complaint: str, asked: str | None) -> None:
    torch.save({"ema": EMA, "args": SIT | changes}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=complaint):
        read_source(tmp_path / "c.pt", heads=3, prediction=asked)


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        (SIT, None, "flow-to-data"),
        (SIT, "epsilon", "--prediction epsilon contradicts 'args' of the file: path_type 'Linear'"),
        ({"prediction": "v_prediction"}, None, "v"),
        ({"prediction_type": "x0"}, "epsilon", "epsilon"),
        ({"prediction": "velocity"}, None, "prediction 'velocity' is not known: give --prediction"),
        ({"prediction": "velocity"}, "v", "v"),
        ({}, None, "epsilon"),
    ],
)
def test_the_recorded_prediction_is_used(tmp_path: Path, settings: dict, asked: str | None, expected: str) -> None:
    torch.save({"ema": EMA, "args": settings}, tmp_path / "c.pt")
    if " " in expected:
        with pytest.raises(CheckpointError, match=expected):
            read_source(tmp_path / "c.pt", heads=3, prediction=asked)
    else:
        assert read_source(tmp_path / "c.pt", heads=3, prediction=asked).prediction == expected


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("results/000-DiT-S-2/checkpoints/0400000.pt", "000-DiT-S-2-0400000"),
        ("lightning_logs/version_3/checkpoints/epoch=3-step=100.ckpt", "version_3-epoch=3-step=100"),
        ("run/last.ckpt", "run-last"),
        ("run/DiT-XL-2-256x256.pt", "DiT-XL-2-256x256"),
        ("run/model.v2.safetensors", "model.v2"),
        ("/0400000.pt", "0400000"),
    ],
)
def test_bundles_are_named_after_their_run(tmp_path: Path, path: str, name: str) -> None:
    assert bundle_name(tmp_path / path) == name


# --- hostile files ----------------------------------------------------------------------------------------------------


def changed(**tensors: Tensor) -> State:
    return {**EMA, **{key.replace("__", "."): value for key, value in tensors.items()}}


HUGE = torch.zeros(1).expand(1, 100_000_000, 48)
HOSTILE: dict[str, tuple[Any, str]] = {
    "one key": (changed(blocks__3000000__attn__qkv__weight=torch.ones(3)), r"no key starts with 'blocks.2.', .*'blocks.3000000.'"),
    "a long number": ({**EMA, f"blocks.{'9' * 400}.x": torch.ones(3)}, "no key starts with 'blocks.2.'"),
    "stride 0": (changed(pos_embed=HUGE), "'pos_embed' has shape .*do not hold it"),
    "a table": (changed(y_embedder__embedding_table__weight=torch.zeros(1).expand(200_000_000, 48)), "do not hold it"),
    "blocks that share": ({**EMA, **{f"blocks.{i}.{key}": EMA["blocks.0.attn.qkv.weight"] for i in range(2, 200)
                                     for key in ("attn.qkv.weight", "mlp.fc1.weight")}}, "do not hold it"),
    "no patch": (changed(x_embedder__proj__weight=torch.ones(48, 4, 0, 0)), r"shape \[48, 4, 0, 0\]"),
    "sparse": (changed(blocks__0__attn__qkv__weight=torch.eye(48).to_sparse()), "is a sparse_coo tensor"),
    "float8": (changed(blocks__0__attn__qkv__weight=torch.ones(144, 48).to(torch.float8_e4m3fn)), "is a float8_e4m3fn tensor"),
    "complex": (changed(blocks__0__attn__qkv__bias=torch.ones(144, dtype=torch.complex64)), "is a complex64 tensor"),
    "meta": (changed(blocks__0__attn__qkv__bias=torch.ones(144, device="meta")), "is a 'meta' tensor"),
    "an odd sinusoid": (changed(t_embedder__mlp__0__weight=torch.ones(48, 63)), "a sinusoid of 63 channels are not those"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_sizes_in_a_file_take_no_memory(tmp_path: Path, case: str) -> None:
    data, complaint = HOSTILE[case]
    torch.save(data, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(tmp_path / "c.pt", heads=3)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    bias = torch.quantize_per_tensor(torch.ones(144), 0.1, 0, torch.qint8)
    torch.save(changed(blocks__0__attn__qkv__bias=bias), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="is a quantised tensor"):
        read_checkpoint(tmp_path / "c.pt", heads=3)


def test_float8_safetensors(tmp_path: Path) -> None:
    save_file({key: value.to(torch.float8_e5m2) for key, value in EMA.items()}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="is a float8_e5m2 tensor: save dense ones"):
        read_checkpoint(tmp_path / "c.safetensors", heads=3)


@pytest.mark.parametrize(("option", "largest"), [(600_000, 4096), (0, 4096), (-64, 4096), (100, 4096)])
def test_image_sizes_are_bounded(tmp_path: Path, option: int, largest: int) -> None:
    torch.save({key: value for key, value in EMA.items() if key != "pos_embed"}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=f"--image-size {option} is not a multiple of 16 of at most {largest}"):
        read_checkpoint(tmp_path / "c.pt", heads=3, image_size=option)


def deep(levels: int) -> Any:
    value: Any = EMA
    for _ in range(levels):
        value = {"a": value}
    return value


def test_endless_containers_are_refused(tmp_path: Path) -> None:
    wide: dict[str, Any] = {}
    wide.update({f"k{i}": wide for i in range(50)})
    for name, data in {"deep": deep(40), "cyclic": {"ema": EMA, "x": wide}}.items():
        torch.save(data, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match="save the state dict alone"):
            read_checkpoint(tmp_path / f"{name}.pt", heads=3)


def test_allowed_classes_stay_inert(tmp_path: Path) -> None:
    """The stand-ins take any arguments and state, call nothing, and numpy's own unpickling is never reached."""
    torch.save({"ema": EMA}, tmp_path / "c.pt")

    class Call:
        def __init__(self, function: Any, *arguments: Any) -> None:
            self.reduced = (function, arguments)

        def __reduce__(self) -> Any:
            return self.reduced

    from numpy._core import multiarray

    odd = [
        Call(multiarray.scalar, np.dtype("O"), b"x" * 8),
        Call(multiarray.scalar, np.dtype("f8"), b"short"),
        Call(multiarray._reconstruct, np.ndarray, (1 << 60,), b"f"),
    ]
    payload = pickle.dumps({"odd": odd, "n": np.float32(1.5), "w": {}}, 2)
    with zipfile.ZipFile(tmp_path / "c.pt") as source, zipfile.ZipFile(tmp_path / "d.pt", "w") as target:
        for item in source.infolist():
            target.writestr(item.filename, payload if item.filename.endswith("data.pkl") else source.read(item))
    from ditedge.export.sources.pickles import Inert, load_pickle

    data = load_pickle(tmp_path / "d.pt")
    assert data["n"] == 1.5 and all(type(value) is Inert for value in data["odd"])
