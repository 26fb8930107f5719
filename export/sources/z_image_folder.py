"""Reading Z-Image or Z-Image-Turbo: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

from pathlib import Path

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.samplers.flow_settings import FlowInfo
from ..networks.z_image import PATCH, ZImage, ZImageConfig
from .config_values import above, are_axes, check_fixed, check_none, count, has_places
from .flow_scheduler import read_flow
from .prompt_checkpoint import (
    EncoderUse,
    Process,
    PromptCheckpoint,
    PromptFolder,
    config_of,
    open_folder,
    read_weights,
)

# ZImagePipeline's guidance_scale is 5, and 0 guides nothing: it adds so many times the difference. One more, here.
GUIDANCE, STEPS = 6.0, 50
TURBO_GUIDANCE, TURBO_STEPS = 1.0, 8  # as its model card samples it
TURBO = "turbo"
SHIFT = 3.0  # of Turbo's scheduler
TOKENS = 512  # `max_sequence_length`
AROUND = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")  # Qwen3's chat template, thinking
SIDE, LARGEST = 128, 2  # of the latents of training, where no VAE says it; times it
PIPELINES = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")  # of the same parts
# What the class leaves open, and the only value that is read; defaults are those of diffusers 0.42.
FIXED = {"qk_norm": True, "all_patch_size": [PATCH], "all_f_patch_size": [1]}
AXES, PLACES = (32, 48, 48), (1024, 512, 512)
MAX_DEPTH, MAX_HEADS = 1 << 8, 1 << 10
DEFAULTS = {"in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "cap_feat_dim": 2560}


def read_z_image(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    if folder.pipeline is not None and folder.pipeline not in PIPELINES:
        raise CheckpointError(
            f"{folder.path / 'model_index.json'}: '_class_name' is {folder.pipeline[:60]!r}: of Z-Image, "
            f"{PIPELINES[0]} is read, none with a ControlNet, and not Omni"
        )
    config: ZImageConfig = config_of(folder, _config)
    found = read_weights(folder, lambda: ZImage(config), "Z-Image")
    flow = read_flow(folder.scheduler_file, FlowInfo(shift=SHIFT))
    turbo = TURBO in _name(folder.path.absolute()).lower()
    steps, guidance = (TURBO_STEPS, TURBO_GUIDANCE) if turbo else (STEPS, GUIDANCE)
    said = "Turbo, by the folder's name" if turbo else "its pipeline's; Turbo is known by the folder's name"
    info = EncoderInfo(tokens=config.tokens, width=config.caption_channels)
    return PromptCheckpoint(
        architecture="z-image",
        network=ZImage,
        config=config,
        largest=LARGEST * config.sample_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=Process("flow", (float(flow.trained), 0.0), flow=flow, steps=steps, guidance=guidance),
        encoders=(EncoderUse("text_encoder", "tokenizer", info, around=AROUND, layer=-2),),
        notes=(f"weights: {found.sentence}", f"samples: {steps} steps, guidance {guidance:g} ({said})"),
        facts={"mlp_norm_eps": config.norm_eps},
    )


def _name(path: Path) -> str:
    """What a folder is called; a download's is called after its commit, and lies in `models--.../snapshots`."""
    return path.parents[1].name if path.parent.name == "snapshots" else path.name


def _config(folder: PromptFolder) -> ZImageConfig:
    values = folder.values
    check_fixed(values, FIXED, "a Z-Image")
    width, heads = count(values, DEFAULTS, "dim"), count(values, DEFAULTS, "n_heads", MAX_HEADS)
    axes, side = values.get("axes_dims", AXES), folder.trained_side(SIDE, PATCH)
    problems = {
        "'siglip_feat_dim': Z-Image Omni, which reads pictures too, is not supported": values.get("siglip_feat_dim"),
        f"'dim' {width} is not a multiple of 'n_heads' {heads}": width % heads,
        "'axes_dims' is not three even numbers that add up to 'dim' / 'n_heads'": not are_axes(axes, width // heads),
        "'axes_lens' has less places than prompts and pictures need": not has_places(
            values.get("axes_lens", PLACES), TOKENS + 2, LARGEST * side // PATCH
        ),
    }
    check_none(problems)
    channels = count(values, DEFAULTS, "in_channels")
    return ZImageConfig(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        num_heads=heads,
        head_size=width // heads,
        depth=count(values, DEFAULTS, "n_layers", MAX_DEPTH),
        refiner_depth=count(values, DEFAULTS, "n_refiner_layers", MAX_DEPTH),
        caption_channels=count(values, DEFAULTS, "cap_feat_dim"),
        axes=tuple(axes),
        norm_eps=above(values, "norm_eps", 1e-5, 1),
        theta=above(values, "rope_theta", 256.0, 1e9),
        time_scale=above(values, "t_scale", 1000.0, 1e6),
        tokens=TOKENS,
    )
