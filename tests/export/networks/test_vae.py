"""VAE decoders against diffusers: through `decoder.onnx`, from every file layout; files that do not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ditedge.cli import main
from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.export.graphs.decoder import check_decoder
from ditedge.export.graphs.modules import LatentDecoder
from ditedge.export.graphs.to_onnx import onnx_from_module
from ditedge.export.networks.vae import KlConfig, TinyConfig, VaeDecoder, half_precision
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.export.with_decoder import add_decoder
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle import manifest
from ditedge.runtime.errors import BundleError, CheckpointError, RequestError
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.host_loop import decode_images
from tests.conftest import GOLDEN

diffusers = pytest.importorskip("diffusers")

LATENT = GOLDEN / "latent4_learned_sigma" / "model.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def make_vae(folder: Path, **changes: Any) -> Any:
    """A small AutoencoderKL with contrast in its pictures, saved to `folder`."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(**SMALL | changes).eval()
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 3
    vae.save_pretrained(folder)
    return vae


def make_tiny(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(**changes).eval()
    with torch.no_grad():
        for name, parameter in vae.decoder.named_parameters():
            if name.endswith("weight"):
                parameter *= 1.7
        vae.decoder.layers[-1].bias += 0.5
    vae.save_pretrained(folder)
    return vae


@pytest.fixture(scope="session")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a diffusers AutoencoderKL in "kl" and an AutoencoderTiny in "tiny"."""
    folder = tmp_path_factory.mktemp("vaes")
    make_vae(folder / "kl")
    make_tiny(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def latent_bundle(tmp_path_factory: pytest.TempPathFactory, vaes: Path) -> Callable[..., Path]:
    """latent_bundle(kind) -> folder of the golden latent model's bundle with that decoder."""
    folder = tmp_path_factory.mktemp("latent-bundles")

    def export(kind: str) -> Path:
        if not (folder / kind).exists():
            bundle_from_checkpoint(LATENT, folder / kind, ExportOptions(heads=4, vae=vaes / kind))
        return folder / kind

    return export


def from_diffusers(folder: Path) -> Any:
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(folder, low_cpu_mem_usage=False)


def latents(count: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(5))


def unscaled(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """The VAE's latents of the network's, as diffusers' pipelines compute them (SDXL's with means and deviations)."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None:
        return z / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return z * std / vae.config.scaling_factor + mean


@torch.no_grad()
def reference_images(vae: Any, z: torch.Tensor) -> np.ndarray:
    """sample_ddp.py's `decode` and rounding, by diffusers."""
    picture = vae.decode(unscaled(vae, z)).sample
    return torch.clamp(127.5 * picture + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def assert_same_picture(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within 1 of 255 in 99.9 % of the numbers; the picture must have contrast for that to mean something."""
    assert actual.shape == expected.shape and actual.dtype == np.uint8 and expected.std() > 15
    assert np.mean(np.abs(actual.astype(int) - expected) <= 1) >= 0.999


def assert_same_decoder(path: Path, vae: Any) -> None:
    z = latents(2, vae.config.latent_channels)
    ours = read_vae(path).decoder
    with torch.no_grad():
        expected = vae.decode(unscaled(vae, z)).sample
        torch.testing.assert_close(ours(z), expected, rtol=1e-4, atol=2e-5)


# --- through decoder.onnx ----------------------------------------------------------------------------------------------


def export_decoder(path: Path, vae: VaeDecoder) -> None:
    onnx_from_module(LatentDecoder(vae), {"latent": torch.randn(2, 4, 8, 8)}, "image", {"latent": {0: "B"}}, path)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_decoder_graph_makes_diffusers_pictures(vaes: Path, tmp_path: Path, kind: str, precision: str) -> None:
    ours, vae, z = read_vae(vaes / kind).decoder, from_diffusers(vaes / kind), latents(5)
    export_decoder(tmp_path / "decoder.onnx", half_precision(ours) if precision == "float16" else ours)
    check_decoder(tmp_path / "decoder.onnx", ours, 8, precision)
    size = 8 * ours.config.factor
    with closing(open_engine(tmp_path / "decoder.onnx", EngineOptions())) as engine:
        assert_same_picture(decode_images(engine, z.numpy(), (size, size, 3)), reference_images(vae, z))
    graph = onnx.load(tmp_path / "decoder.onnx").graph
    convolutions = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    types = {tensor.data_type for tensor in graph.initializer if tensor.name in convolutions}
    assert types == {onnx.TensorProto.FLOAT16 if precision == "float16" else onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_bundle_with_decoder(latent_bundle, vaes: Path, kind: str) -> None:
    bundle, z = open_bundle(latent_bundle(kind)), latents(3)
    with Session(bundle) as session:
        assert_same_picture(session.images(z.numpy()), reference_images(from_diffusers(vaes / kind), z))
    info, scaling = bundle.manifest.vae, 0.18215 if kind == "kl" else 1.0
    assert info is not None and (info.kind, info.precision) == (kind, "float32")
    assert (info.scaling_factor, info.shift_factor) == (scaling, 0.0)
    assert bundle.manifest.graphs["decoder"].outputs[0].shape == ["B", *[{"kl": 32, "tiny": 64}[kind]] * 2, 3]


def test_pictures_are_decoded_a_few_at_a_time(latent_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    z = latents(5).numpy()
    with Session(open_bundle(latent_bundle("kl"))) as session:
        whole = session.images(z)
        batches, engine = [], session.engine("decoder")
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda i, o: (batches.append(len(i["latent"])), run(i, o)))
        monkeypatch.setattr(manifest, "DECODE_PIXELS", 2 * 32 * 32)
        assert np.array_equal(session.images(z), whole) and batches == [2, 2, 1]
        monkeypatch.setattr(manifest, "DECODE_PIXELS", 1)
        assert np.array_equal(session.images(z), whole) and batches[3:] == [1] * 5


def test_a_wrong_decoder_is_not_handed_over(vaes: Path, tmp_path: Path) -> None:
    vae = read_vae(vaes / "kl").decoder
    export_decoder(tmp_path / "decoder.onnx", vae)
    check_decoder(tmp_path / "decoder.onnx", vae, 8, "float32")
    vae.decoder.conv_out.bias += 0.0005  # less than one level of 255, and seen all the same
    with pytest.raises(BundleError, match=r"decoder\.onnx does not compute"):
        check_decoder(tmp_path / "decoder.onnx", vae, 8, "float32")


def test_float16_out_of_range_says_so(vaes: Path, tmp_path: Path) -> None:
    vae = read_vae(vaes / "kl").decoder
    vae.decoder.up_blocks[1].resnets[0].conv2.weight *= 1e6
    with pytest.raises(BundleError, match="too near float16's limit.*--vae-precision fp32"):
        check_decoder(tmp_path / "decoder.onnx", vae, 8, "float16")


def test_float16_keeps_statistics_and_ends_in_float32(vaes: Path) -> None:
    half = half_precision(read_vae(vaes / "kl").decoder)
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert all((dtype == torch.float32) == ("norm" in name) for name, dtype in kinds.items())
    assert half(latents(1)).dtype == torch.float32


# --- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scaling_factor": 0.3611, "shift_factor": 0.1159, "latent_channels": 16},  # as in SD 3 and Flux
        {"latents_mean": [0.3, -1.0, 2.0], "latents_std": [2.0, 0.7, 5.0], "scaling_factor": 0.5, "latent_channels": 3},
        {"use_post_quant_conv": False, "use_quant_conv": False},
        {"mid_block_add_attention": False},
        {"norm_num_groups": 8, "block_out_channels": (8, 24, 48)},
        {"layers_per_block": 1, "out_channels": 1, "in_channels": 1},
    ],
)
def test_kl_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_same_decoder(tmp_path, make_vae(tmp_path, **changes))


def test_kl_single_file_and_pipeline_folder(vaes: Path, tmp_path: Path) -> None:
    vae = make_vae(tmp_path / "pipeline" / "vae")
    assert_same_decoder(tmp_path / "pipeline", vae)
    save_file(vae.state_dict(), tmp_path / "alone.safetensors")
    torch.save(vae.state_dict(), tmp_path / "alone.pt")
    for name in ("alone.safetensors", "alone.pt"):
        assert_same_decoder(tmp_path / name, vae)
    config = read_vae(tmp_path / "alone.pt").decoder.config
    assert config == KlConfig(4, 3, (32, 64, 64), 2)
    assert config == read_vae(vaes / "kl").decoder.config


def test_what_was_taken_and_what_was_assumed_is_told(vaes: Path, golden_bundle, tmp_path: Path) -> None:
    """A lone file of 4 channels may be SDXL's, whose scaling is another: before the work, export and add-decoder say it."""
    vae = from_diffusers(vaes / "kl").state_dict()
    torch.save({"state_dict": vae, "state_dict_ema": vae}, tmp_path / "kl.ckpt")
    told: list[str] = []
    bundle = add_decoder(golden_bundle("latent4_learned_sigma"), tmp_path / "kl.ckpt", tmp_path / "b", note=told.append)
    assert bundle.vae is not None and bundle.vae.scaling_factor == 0.18215
    weights, scaling = told
    assert weights == "VAE's weights: 'state_dict_ema', averaged over training (EMA), not 'state_dict'"
    assert scaling.startswith("VAE's scaling: 0.18215 (assumed: ") and "kl.ckpt does not say it" in scaling
    folder, tiny = read_vae(vaes / "kl").notes, read_vae(vaes / "tiny" / WEIGHTS).notes
    assert folder == (f"VAE's weights: kl/{WEIGHTS}",) and len(tiny) == 1
    command = ["export", "--ckpt", str(LATENT), "--heads", "4", "--vae", str(tmp_path / "kl.ckpt"), "--opset", "18"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "e")])
    assert [line.removeprefix("note: ") for line in result.stderr.splitlines() if "note: VAE's" in line] == told


def test_a_file_inside_a_diffusers_folder_takes_its_config(tmp_path: Path) -> None:
    vae = make_vae(tmp_path, scaling_factor=0.13025)
    assert_same_decoder(tmp_path / WEIGHTS, vae)
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    assert read_vae(tmp_path / WEIGHTS).decoder.config.scaling_factor == 0.18215


def test_half_precision_weights_in_a_bin_file(tmp_path: Path) -> None:
    vae = make_vae(tmp_path).half()
    (tmp_path / WEIGHTS).unlink()
    torch.save(vae.state_dict(), tmp_path / "diffusion_pytorch_model.fp16.bin")
    assert_same_decoder(tmp_path, vae.float())


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_attention_names_of_old_diffusers(tmp_path: Path) -> None:
    vae = make_vae(tmp_path)
    state = {}
    for key, value in vae.state_dict().items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        state[key] = value
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in state
    save_file(state, tmp_path / WEIGHTS)
    assert_same_decoder(tmp_path, vae)


def latent_diffusion_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The decoder under CompVis latent-diffusion's names, with its 1 x 1 convolutions in the attention."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(("encoder.", "quant_conv.")):
            continue
        if ".attentions.0." in key and value.ndim == 2:
            value = value[:, :, None, None]
        key = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{2 - int(m[1])}.block.", key)
        key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{2 - int(m[1])}.upsample.", key)
        key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
        for ours, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            key = key.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
        renamed[key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")] = value
    return renamed


def test_latent_diffusion_names(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = make_vae(tmp_path / "v")
    state = latent_diffusion_names(vae.state_dict())
    back = convert_ldm_vae_checkpoint(dict(state), vae.config)  # diffusers agrees that these are the names
    assert all(torch.equal(back[key], value) for key, value in vae.state_dict().items() if key.startswith("decoder."))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "ldm.safetensors")
    whole = {f"first_stage_model.{key}": value for key, value in state.items()} | {"model.x": torch.ones(1)}
    torch.save({"state_dict": whole}, tmp_path / "sd.ckpt")
    for name in ("ldm.safetensors", "sd.ckpt"):
        assert_same_decoder(tmp_path / name, vae)


@pytest.mark.parametrize("changes", [{}, {"latent_channels": 16, "scaling_factor": 1.5, "shift_factor": 0.2}])
def test_tiny_folder_and_its_own_layout(tmp_path: Path, changes: dict[str, Any]) -> None:
    vae = make_tiny(tmp_path / "t", **changes)
    assert_same_decoder(tmp_path / "t", vae)
    own = {
        f"{int(key.split('.')[1]) + 1}.{key.split('.', 2)[2]}": value for key, value in vae.decoder.state_dict().items()
    }
    assert {"1.weight", "3.conv.0.weight", "7.weight", "19.bias"} <= set(own)  # taesd_decoder.safetensors
    save_file(own, tmp_path / "taesd_decoder.safetensors")
    ours = read_vae(tmp_path / "taesd_decoder.safetensors")
    channels = changes.get("latent_channels", 4)
    assert ours.kind == "tiny" and ours.decoder.config == TinyConfig(channels, 3, (64,) * 4, (3, 3, 3, 1))
    z = latents(2, channels)
    with torch.no_grad():
        torch.testing.assert_close(ours.decoder(z), vae.decode(z).sample, rtol=1e-5, atol=1e-5)


def test_tiny_decoder_squashes_large_latents(vaes: Path) -> None:
    """tanh(z / 3) * 3: latents far out give the picture of the bound."""
    decoder = read_vae(vaes / "tiny").decoder
    torch.testing.assert_close(decoder(torch.full((1, 4, 4, 4), 1e4)), decoder(torch.full((1, 4, 4, 4), 50.0)))


# --- files that do not fit ---------------------------------------------------------------------------------------------


def edited_state(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        state = load_file(folder / "kl" / WEIGHTS)
        edit(state)
        save_file(state, folder / "alone.safetensors")
        return folder / "alone.safetensors"

    return make


def edited_config(kind: str = "kl", **changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / kind / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder / kind

    return make


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return (folder / name) if "/" not in name else (folder / name).parent

    return make


def truncated(folder: Path) -> Path:
    raw = (folder / "kl" / WEIGHTS).read_bytes()
    (folder / "kl" / WEIGHTS).write_bytes(raw[: len(raw) // 2])
    return folder / "kl"


BIAS = "decoder.conv_in.bias"
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda f: f / "nope", "nope does not exist"),
    "folder without config": (lambda f: f, r"has no config\.json"),
    "folder without weights": (lambda f: [(f / "kl" / WEIGHTS).unlink(), f / "kl"][1], ": no weights, expected"),
    "truncated": (truncated, "cut short"),
    "pickle that is none": (written("x.bin", b"\x80\x02nonsense"), r"x\.bin: not a readable"),
    "missing key": (edited_state(lambda s: s.pop(BIAS)), BIAS),
    "unknown key": (edited_state(lambda s: s.update({"decoder.extra.weight": torch.ones(2)})), r"decoder\.extra\.weight"),
    "wrong shape": (edited_state(lambda s: s.update({BIAS: torch.ones(3)})), rf"{BIAS}' has shape \[3\]"),
    "not finite": (edited_state(lambda s: s[BIAS].fill_(torch.nan)), f"{BIAS}' has numbers"),
    "integers": (edited_state(lambda s: s.update({BIAS: torch.ones(64, dtype=torch.int32)})), BIAS),
    "no convolution": (edited_state(lambda s: s.update({"decoder.conv_in.weight": torch.ones(4)})), "conv_in.weight"),
    "encoder only": (
        edited_state(lambda s: [s.pop(key) for key in list(s) if key.startswith("decoder.")]),
        "not the decoder of an AutoencoderKL",
    ),
    "a key that asks for many layers": (
        edited_state(lambda s: s.update({"decoder.up_blocks.0.resnets.9999.x": torch.ones(1)})),
        "not an AutoencoderKL",
    ),
    "widths for another number of groups": (
        lambda f: [make_vae(f / "g", norm_num_groups=8, block_out_channels=(8, 24, 48)), (f / "g" / "config.json").unlink(), f / "g" / WEIGHTS][2],
        "not multiples of 32",
    ),
    "16 channels without config": (
        lambda f: [make_vae(f / "c", latent_channels=16), (f / "c" / "config.json").unlink(), f / "c" / WEIGHTS][2],
        "scaling of its 16-channel latents",
    ),
    "a DiT": (lambda f: LATENT, "not the decoder of an AutoencoderKL"),
    "config is no JSON": (written("kl/config.json", b'{"_class'), r"config\.json: not valid JSON"),
    "config of another class": (edited_config(_class_name="AutoencoderDC"), "AutoencoderDC"),
    "config with another activation": (edited_config(act_fn="gelu"), "act_fn"),
    "config with other blocks": (edited_config(up_block_types=["AttnUpDecoderBlock2D"]), "up_block_types"),
    "config with latent means alone": (edited_config(latents_mean=[0.0] * 4), "latents_mean and latents_std come together"),
    "config with too few means": (edited_config(latents_mean=[0.0], latents_std=[1.0]), "each of 4 channels"),
    "config with a deviation of zero": (edited_config(latents_mean=[0.0] * 4, latents_std=[0.0] * 4), "latents_std"),
    "config with scaling zero": (edited_config(scaling_factor=0), "scaling_factor"),
    "config with groups that do not divide": (edited_config(norm_num_groups=48), "norm_num_groups 48"),
    "config with other widths": (edited_config(block_out_channels=[32, 64, 96]), "expected"),
    "config with absurd layers": (edited_config(layers_per_block=10**9), "layers_per_block"),
    "config of a tiny one with KL weights": (edited_config(_class_name="AutoencoderTiny"), "act_fn"),
    "config of a KL one with tiny weights": (
        edited_config("tiny", _class_name="AutoencoderKL", act_fn="silu"),
        "not of the class",
    ),
    "tiny config with uneven lists": (edited_config("tiny", num_decoder_blocks=[1, 2]), "differ in length"),
    "tiny config with another upsampling": (edited_config("tiny", upsample_fn="bilinear"), "upsample_fn"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_files_that_do_not_fit_are_refused(vaes: Path, tmp_path: Path, mistake: str) -> None:
    shutil.copytree(vaes, tmp_path, dirs_exist_ok=True)
    make, complaint = BAD[mistake]
    path = make(tmp_path)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_vae(path)
    assert str(tmp_path) in str(caught.value) or str(LATENT) in str(caught.value)


@pytest.mark.parametrize(
    ("checkpoint", "vae", "complaint"),
    [
        ("gray1_cfg", "kl", "decodes 4 channels to 3, the model makes 1"),
        ("latent4_learned_sigma", "wide", "decodes 16 channels"),
    ],
)
def test_a_vae_that_does_not_fit_the_model(
    vaes: Path, tmp_path: Path, checkpoint: str, vae: str, complaint: str
) -> None:
    make_vae(tmp_path / "wide", latent_channels=16)
    folder = tmp_path / "wide" if vae == "wide" else vaes / vae
    with pytest.raises(RequestError, match=complaint):
        options = ExportOptions(heads={"gray1_cfg": 2}.get(checkpoint, 4), vae=folder)
        bundle_from_checkpoint(GOLDEN / checkpoint / "model.safetensors", tmp_path / "b", options)
    assert not (tmp_path / "b").exists()
