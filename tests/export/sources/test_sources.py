"""Every source of a DiT computes what its own library does: diffusers folders, SiT, custom networks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ditedge.cli import main
from ditedge.export import DiT, DiTConfig, ExportOptions, bundle_from_checkpoint, read_source, vae_folder
from ditedge.export.sources.scheduler_config import read_scheduler
from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.errors import CheckpointError, ProgramError, RequestError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.schedule import ScheduleInfo, linear_schedule
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.conftest import GOLDEN, ROOT

GRAY = GOLDEN / "gray1_cfg" / "model.safetensors"
LATENT = GOLDEN / "latent4_learned_sigma" / "model.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCK1 = "transformer_blocks.1."


def diffusers_model(**options):
    """A small DiTTransformer2DModel with random weights; every block has the same embedders, as trained ones do."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
    }
    model = diffusers.DiTTransformer2DModel(**settings | options).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # large enough that attention is far from uniform
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


@pytest.fixture(scope="module")
def transformer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "transformer"
    diffusers_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline with random weights, as the hub's: DDIM without clipping, a VAE, class names."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("diffusers") / "pipeline"
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    diffusers.DiTPipeline(diffusers_model(), vae, scheduler).save_pretrained(folder)
    index = json.loads(
        (folder / "model_index.json").read_text()
    )  # save_pretrained drops id2label; the hub's file has it
    index["id2label"] = {str(i): f"thing {i}, item {i}" for i in range(1000)}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def pipeline_bundle(pipeline_folder: Path) -> Path:
    out = pipeline_folder.parent / "bundle"
    bundle_from_checkpoint(pipeline_folder, out, ExportOptions())
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_eps": 0.1},  # an eps that shows: 1e-5 and 1e-6 differ by less than the tolerance
        {"out_channels": None, "in_channels": 3, "num_embeds_ada_norm": 10},
        {"patch_size": 4, "sample_size": 16, "num_layers": 1},
    ],
)
def test_network_equals_diffusers(tmp_path: Path, options: dict) -> None:
    theirs = diffusers_model(**options)
    theirs.save_pretrained(tmp_path)
    checkpoint = read_source(tmp_path)
    ours, config = checkpoint.model(), checkpoint.config
    assert config.frequency_divisor == 127 and config.mlp_norm_eps == options.get("norm_eps", 1e-5)
    x = torch.randn(4, config.in_channels, config.input_size, config.input_size)
    t, y = torch.tensor([0, 1, 500, 999]), torch.tensor([0, 3, config.num_classes - 1, config.num_classes])
    expected = theirs(x, timestep=t, class_labels=y).sample
    assert relative_error(ours(x, t, y).numpy(), expected.numpy()) < 1e-5  # measured 0


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_default_run_equals_the_ddim_pipeline(pipeline_folder: Path, pipeline_bundle: Path, guidance: float) -> None:
    """The whole DiTPipeline: 50 DDIM steps with leading spacing, guidance on four channels, sigma dropped."""
    latents, z = latents_of_pipeline(pipeline_folder, guidance)
    bundle = open_bundle(pipeline_bundle)
    assert bundle.manifest.defaults.guidance == 4.0 and bundle.manifest.model.guided_channels == 4
    program = bundle.program()
    assert program.name == "ddim-50" and program.timestep.tolist() == list(range(980, -1, -20))
    with Session(bundle) as session:
        ours = session.latents(program, [207, 360], guidance, GivenNoise(z, np.zeros((50, *z.shape), np.float32)))
    assert relative_error(ours, latents) < 1e-4  # measured 1e-6


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.0001 + 0.00003 * i for i in range(1000)]},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=["scaled_linear", "cosine", "given", "zero-snr"],
)
def test_other_betas_equal_the_ddim_pipeline(pipeline_folder: Path, tmp_path: Path, config: dict) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **config)
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "p", ignore=shutil.ignore_patterns("vae")))
    scheduler.save_pretrained(folder / "scheduler")
    bundle_from_checkpoint(folder, tmp_path / "bundle", ExportOptions())
    latents, z = latents_of_pipeline(pipeline_folder, 4.0, scheduler)
    with Session(open_bundle(tmp_path / "bundle")) as session:
        program = session.bundle.program()
        ours = session.latents(program, [207, 360], 4.0, GivenNoise(z, np.zeros((50, *z.shape), np.float32)))
    assert program.name == "ddim-50"
    assert relative_error(ours, latents) < 1e-4  # diffusers' float32 betas; the pipeline's betas swapped give over 0.1


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"betas": "cosine"}, {"kind": "cosine", "steps": 1000}),
        (
            {"betas": "linear:0.0002,0.03"},
            {"kind": "linear", "beta_start": 0.0002, "beta_end": 0.03, "steps": 1000},
        ),
        (
            {"betas": "scaled_linear", "zero_terminal_snr": True, "prediction": "v"},
            {
                "kind": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "steps": 1000,
                "zero_terminal_snr": True,
            },
        ),
    ],
)
def test_betas_of_a_checkpoint_are_given(options: dict, schedule: dict, tmp_path: Path) -> None:
    manifest = bundle_from_checkpoint(LATENT, tmp_path / "b", ExportOptions(heads=2, **options))
    assert manifest.schedule == ScheduleInfo(**schedule)  # and its golden trajectories were replayed by the export


def test_betas_from_a_file(tmp_path: Path) -> None:
    betas = [0.0001 + 0.0001 * i for i in range(60)]
    (tmp_path / "betas.json").write_text(json.dumps(betas))
    options = ExportOptions(heads=2, betas=str(tmp_path / "betas.json"))
    manifest = bundle_from_checkpoint(LATENT, tmp_path / "b", options)
    assert manifest.schedule is not None and manifest.schedule.betas == betas
    assert manifest.model.timestep_range == (59.0, 0.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"betas": "quadratic"}, "--betas 'quadratic' is not linear"),
        ({"betas": "linear:0.1"}, "--betas 'linear:0.1': "),
        ({"betas": "linear:0.1,2"}, "--betas 'linear:0.1,2': beta_end"),
        ({"betas": "SHORT"}, "not a list of at least 50"),
        ({"betas": "NAN"}, "a number that is not finite"),
        ({"betas": "/"}, "cannot read /: not a file"),
        ({"betas": "b" * 5000}, "name too long"),
        ({"betas": "cosine", "prediction": "flow-to-data"}, "a flow model has no betas"),
        ({"zero_terminal_snr": True}, "epsilon says nothing"),
    ],
)
def test_betas_that_cannot_be(options: dict, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "short.json").write_text("[0.1]")
    (tmp_path / "nan.json").write_text(json.dumps([float("nan")] * 60))
    if options.get("betas") in ("SHORT", "NAN"):
        options = {"betas": str(tmp_path / f"{options['betas'].lower()}.json")}
    with pytest.raises(RequestError, match=re.escape(complaint)):
        bundle_from_checkpoint(LATENT, tmp_path / "b", ExportOptions(heads=2, **options))
    assert not (tmp_path / "b").exists()


def test_pictures_equal_the_pipelines(pipeline_folder: Path, pipeline_bundle: Path) -> None:
    """A folder with a VAE: the whole DiTPipeline down to 8-bit pixels, within 1 of 255 in 99.9 % of them."""
    import diffusers

    pipe = diffusers.DiTPipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe([207, 360], 4.0, torch.Generator().manual_seed(5), 50, "np").images
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)).numpy()
    noise = GivenNoise(z, np.zeros((50, *z.shape), np.float32))
    ours = generate(open_bundle(pipeline_bundle), [207, 360], [0, 0], guidance=4.0, noise=noise)
    difference = np.abs(ours.astype(int) - np.round(theirs * 255).astype(int))
    assert ours.shape == theirs.shape and np.ptp(ours) > 20, "the pictures are not all one grey"
    assert np.mean(difference <= 1) >= 0.999


def test_ddpm_scheduler_is_followed(pipeline_folder: Path, pipeline_bundle: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(clip_sample=True)
    latents, z = latents_of_pipeline(pipeline_folder, 1.0, scheduler)
    torch.manual_seed(3)  # the scheduler draws from torch's global generator
    noise = np.stack([torch.randn(z.shape).numpy() for _ in range(49)] + [np.zeros_like(z)])
    facts = read_scheduler(Path("x"), dict(scheduler.config) | {"_class_name": "DDPMScheduler"})
    program = make_program(linear_schedule(), SamplerSettings(**facts.sampling), learned_variance=True)
    with Session(open_bundle(pipeline_bundle)) as session:
        ours = session.latents(program, [207, 360], 1.0, GivenNoise(z, noise))
    assert relative_error(ours, latents) < 1e-4


def latents_of_pipeline(folder: Path, guidance: float, scheduler=None) -> tuple[np.ndarray, np.ndarray]:
    """DiTPipeline itself on classes 207 and 360 -> the latents that it hands to its VAE, and the noise it began with."""
    import diffusers

    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.scheduler = scheduler or pipe.scheduler
    pipe.set_progress_bar_config(disable=True)
    handed: list[torch.Tensor] = []

    def decode(latents: torch.Tensor) -> SimpleNamespace:
        handed.append(latents * pipe.vae.config.scaling_factor)
        return SimpleNamespace(sample=latents)

    pipe.vae.decode = decode
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5)
    pipe([207, 360], guidance, generator, 50, "pt")
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return handed[0].numpy(), z.numpy()


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


DDIM = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}


@pytest.mark.parametrize(
    ("values", "sampling"),
    [
        (DDIM | {"clip_sample": False}, {"sampler": "ddim", "respacing": "ddim50", "clip_x0": False}),
        (DDIM, {}),
        (DDIM | {"timestep_spacing": "trailing"}, {}),
        (DDIM | {"set_alpha_to_one": False, "steps_offset": 1}, {}),
        (DDIM | {"num_train_timesteps": 999}, {}),
        (DDIM | {"clip_sample_range": 2.0}, {}),
        (DDIM | {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, {}),
        (DDIM | {"_class_name": "DPMSolverMultistepScheduler"}, {}),
    ],
)
def test_only_a_scheduler_that_is_the_same_is_followed(values: dict, sampling: dict) -> None:
    assert read_scheduler(Path("s.json"), values).sampling == sampling


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"beta_schedule": "sigmoid"}, "'beta_schedule' is 'sigmoid'"),
        ({"trained_betas": [0.1]}, "'trained_betas': .*1 betas for 1000"),
        ({"trained_betas": [0.1] * 999 + [1.5]}, "'trained_betas'"),
        ({"rescale_betas_zero_snr": True}, "'rescale_betas_zero_snr' with 'prediction_type' epsilon"),
        ({"prediction_type": "flow_prediction"}, "'prediction_type' is 'flow_prediction'"),
        ({"num_train_timesteps": 10}, "'num_train_timesteps' is 10"),
        ({"num_train_timesteps": "many"}, "'num_train_timesteps': "),
        ({"beta_end": 2}, "'beta_end': "),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_schedulers_that_a_bundle_cannot_say(changes: dict, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=rf"s\.json.*{complaint}"):
        read_scheduler(Path("s.json"), DDIM | changes)


def test_labels_must_be_complete(pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "p"))
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"].pop("3")
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model_index.json: 'id2label'"):
        read_source(folder)


# --- SiT --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sit_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded 4-channel model with learned sigma, taken for a SiT: 8 output channels, the first 4 in use."""
    out = tmp_path_factory.mktemp("sit") / "bundle"
    bundle_from_checkpoint(LATENT, out, ExportOptions(heads=2, prediction="flow-to-data"))
    return out


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sit_equals_a_literal_euler_loop(sit_bundle: Path, guidance: float) -> None:
    original = read_source(LATENT, heads=2).model()  # all 8 output channels
    bundle = open_bundle(sit_bundle)
    size, steps, y = bundle.manifest.model.input_size, 20, torch.tensor([1, 2])
    z = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(1))
    x = z
    with torch.no_grad():
        for i in range(steps):
            t = torch.full((2,), i / steps)
            velocity = original(x, t, y)[:, :4]
            if guidance != 1.0:  # SiT's forward_with_cfg: three channels
                null = original(x, t, torch.full_like(y, original.config.num_classes))[:, :3]
                velocity = torch.cat([null + guidance * (velocity[:, :3] - null), velocity[:, 3:]], dim=1)
            x = x + velocity / steps
    program = bundle.program(sampler="flow-euler", steps=steps)
    silence = np.zeros((steps, *z.shape), np.float32)
    ours = generate(
        bundle,
        [1, 2],
        [0, 0],
        program=program,
        guidance=guidance,
        noise=GivenNoise(z.numpy(), silence),
        output="latents",
    )
    assert relative_error(ours, x.numpy()) < 1e-5


def test_sit_bundle_says_what_it_is(sit_bundle: Path) -> None:
    manifest = open_bundle(sit_bundle).manifest
    model = manifest.model
    assert (model.prediction, model.timestep_range, model.learned_variance) == ("flow-to-data", (0.0, 1.0), False)
    assert model.out_channels == model.in_channels == 4 and manifest.schedule is None
    assert manifest.defaults.program == "flow-euler-50"
    assert [(golden.program, golden.guidance) for golden in manifest.golden] == [
        ("flow-euler-10", 4.0),
        ("flow-euler-10", 1.0),
    ]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": "ddim"}, "not one of flow-euler"),
        ({"respacing": "ddim50"}, "not one of flow-euler"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_samplers_that_do_not_fit_a_flow(sit_bundle: Path, settings: dict, complaint: str) -> None:
    with pytest.raises((ProgramError, RequestError), match=complaint):
        open_bundle(sit_bundle).program(**settings)


def test_v_prediction_follows_the_reference(tmp_path: Path) -> None:
    """Export replays trajectories of reference.py, which has v on its own: they agree, or there is no bundle."""
    manifest = bundle_from_checkpoint(GRAY, tmp_path / "b", ExportOptions(heads=2, prediction="v"))
    assert manifest.model.prediction == "v"


def test_a_manifest_from_before_these_fields_opens(gray_bundle: Path) -> None:
    path = gray_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("timestep_range", "frequency_divisor", "mlp_norm_eps"):
        del manifest["model"][key]
    path.write_text(json.dumps(manifest))
    model = open_bundle(gray_bundle).manifest.model
    assert (model.timestep_range, model.frequency_divisor, model.mlp_norm_eps) == ((999.0, 0.0), 128, 1e-6)


# --- custom networks --------------------------------------------------------------------------------------------------

SMALL = """
import torch
from torch import nn
from ditedge.export import DiTConfig

class Small(nn.Module):
    '''A convolution whose gain is the modulation: M = 1, nothing of DiT but the interface.'''

    config = DiTConfig(8, 2, 1, 32, 2, 2, num_classes=10, learn_sigma=False)

    def __init__(self, state):
        super().__init__()
        self.conv, self.table = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(11, 1)

    def conditioner(self, timestep, label):
        return self.table(label) + torch.cos(timestep / 1000)[:, None]

    def trunk(self, x, modulation):
        return self.conv(x) * modulation[:, :, None, None]
"""


def custom(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)


def test_the_documented_custom_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "custom-models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    custom(tmp_path, monkeypatch, "documented_dit", code)
    manifest = bundle_from_checkpoint(GRAY, tmp_path / "b", ExportOptions(model="documented_dit:build"))
    assert (manifest.model.architecture, manifest.model.null_class) == ("custom", 10)
    plain = DiT(DiTConfig(8, 2, 1, 32, 2, 2, num_classes=10, learn_sigma=manifest.model.learned_variance))
    assert manifest.model.parameters == sum(tensor.numel() for tensor in plain.state_dict().values())


def test_a_custom_model_that_only_mimics_dit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    custom(tmp_path, monkeypatch, "small_dit", SMALL)
    bundle_from_checkpoint(GRAY, tmp_path / "b", ExportOptions(model="small_dit:Small", prediction="flow-to-data"))
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest.graphs["conditioner"].outputs[0].shape == ["U", 1]
    assert generate(bundle, [1, 2], [0, 1], program=bundle.program(steps=3)).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("spec", "change", "complaint"),
    [
        ("broken", ("", ""), "write it as package.module:factory"),
        ("nowhere:Small", ("", ""), "cannot import nowhere"),
        ("broken:Large", ("", ""), "broken has no function 'Large'"),
        ("broken:Small", ("import torch\n", "import torch\n1 / 0\n"), r"ZeroDivisionError: .* \(broken.py, line 3\)"),
        ("broken:Small", ("super().__init__()", "state['lora']"), "the factory failed: KeyError: 'lora'"),
        ("broken:Small", ("def trunk", "def body"), "no attribute 'trunk'"),
        ("broken:Small", ("config = DiTConfig(", "config = dict(a="), "cannot import broken .*SyntaxError"),
        ("broken:Small", ("config = ", "config = 3 #"), "config is of type int"),
        ("broken:Small", ("[:, None]\n", "[:, None].double()\n"), r"conditioner\(.*\) returned a torch.float64 tensor"),
        ("broken:Small", ("self.conv(x) *", "self.conv(x).double() *"), "returned a torch.float64 tensor"),
        (
            "broken:Small",
            ("return self.conv(x) *", "return 3 #"),
            "returned an object of type int, expected a float32 tensor",
        ),
        ("broken:Small", ("self.conv(x) *", "self.conv(x)[:, :, 1:] *"), r"shape \[3, 1, 7, 8\], expected"),
        ("broken:Small", ("self.conv(x) *", "self.conv(x) / 0 *"), "not finite"),
        ("broken:Small", ("self.conv(x) *", "torch.rand_like(x) *"), "two outputs for one input"),
        ("broken:Small", ("self.conv(x) *", "x.mean(0) *"), "depends on the other rows"),
        ("broken:Small", ("nn.Embedding(11, 1)", "nn.Embedding(2, 1)"), "failed on a batch of 3: IndexError"),
    ],
)
def test_broken_custom_models_say_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, change: tuple[str, str], complaint: str
) -> None:
    monkeypatch.delitem(__import__("sys").modules, "broken", raising=False)
    custom(tmp_path, monkeypatch, "broken", SMALL.replace(*change))
    with pytest.raises(CheckpointError, match=f"--model {spec}: .*({complaint})"):
        read_source(GRAY, model=spec)


def test_a_flow_has_no_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = SMALL.replace("learn_sigma=False", "learn_sigma=True").replace("self.conv(x) *", "x.repeat(1, 2, 1, 1) *")
    custom(tmp_path, monkeypatch, "flow_dit", code)
    with pytest.raises(CheckpointError, match="set learn_sigma=False"):
        read_source(GRAY, model="flow_dit:Small", prediction="flow-to-data")
    with pytest.raises(CheckpointError, match="leave --heads"):
        read_source(GRAY, model="flow_dit:Small", heads=2)


def test_the_commands_take_every_source(
    transformer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's default bundle name, `inspect` of a folder, and a SiT bundle sampled with its own sampler."""
    monkeypatch.chdir(transformer_folder.parent)
    run = CliRunner().invoke
    inspected = run(main, ["inspect", "transformer", "--json"], catch_exceptions=False)
    description = json.loads(inspected.stdout)
    assert description["model"]["frequency_divisor"] == 127 and description["prediction"] == "epsilon"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(transformer_folder, tmp_path / "dit")
    made = run(main, ["export", "--ckpt", "dit"], catch_exceptions=False)
    assert made.exit_code == 0 and (tmp_path / "dit-bundle" / "manifest.json").is_file(), made.output
    flow = ["export", "--ckpt", str(GRAY), "--heads", "2", "--prediction", "flow-to-data", "--out", "sit"]
    assert run(main, flow, catch_exceptions=False).exit_code == 0
    sample = ["run", "--engine", "sit", "--sampler", "flow-euler", "--steps", "3", "--count", "2", "-o", "a.png"]
    assert run(main, sample, catch_exceptions=False).exit_code == 0
    again = run(main, ["run", "--engine", "sit", "--like", "a.png", "-o", "b.png"], catch_exceptions=False)
    assert again.exit_code == 0 and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert run(main, ["verify", "--engine", "sit"], catch_exceptions=False).output.count("passed") == 2
    assert run(main, ["inspect", "sit"], catch_exceptions=False).exit_code == 0
