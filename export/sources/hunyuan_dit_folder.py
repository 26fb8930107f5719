"""Reading HunyuanDiT, up to version 1.1 or 1.2: a diffusers pipeline folder, or a transformer folder alone."""

from __future__ import annotations

from pathlib import Path

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.samplers.schedule import ScheduleInfo
from ..networks.hunyuan_dit import POOL_HEADS, HunyuanDiT, HunyuanDiTConfig
from .config_values import above, check_fixed, check_none, count
from .diffusers_folder import scheduler_facts
from .prompt_checkpoint import (
    EncoderUse,
    Process,
    PromptCheckpoint,
    PromptFolder,
    config_of,
    open_folder,
    read_weights,
)

GUIDANCE = 5.0  # of HunyuanDiTPipeline
PIPELINE = "HunyuanDiTPipeline"
BETA_END = {True: 0.03, False: 0.018}  # of training: up to version 1.1, which is told sizes, and of 1.2
LARGEST = 2  # times the side of training
# What the class leaves open, and the only value that is read; defaults are those of diffusers 0.42.
FIXED = {"activation_fn": "gelu-approximate", "norm_type": "layer_norm", "learn_sigma": True}
MAX_WIDTH, MAX_DEPTH, MAX_HEAD = 1 << 14, 1 << 8, 1 << 10
DEFAULTS = {
    "num_attention_heads": 16, "attention_head_dim": 88, "in_channels": None, "patch_size": None, "sample_size": 32,
    "hidden_size": 1152, "num_layers": 28, "cross_attention_dim": 1024, "cross_attention_dim_t5": 2048,
    "pooled_projection_dim": 1024, "text_len": 77, "text_len_t5": 256,
}  # fmt: skip


def read_hunyuan_dit(path: Path) -> PromptCheckpoint:
    """Raises CheckpointError naming file and key."""
    folder = open_folder(path)
    if folder.pipeline not in (None, PIPELINE):
        raise CheckpointError(
            f"{folder.path / 'model_index.json'}: '_class_name' is {str(folder.pipeline)[:60]!r}: of HunyuanDiT, "
            f"{PIPELINE} is read, none with a ControlNet or PAG"
        )
    config: HunyuanDiTConfig = config_of(folder, _config)
    found = read_weights(folder, lambda: HunyuanDiT(config), "HunyuanDiT")
    bert = EncoderInfo(tokens=config.tokens, width=config.caption_channels)
    t5 = EncoderInfo(tokens=config.t5_tokens, width=config.t5_channels, pooled=1, masked=False)
    process = _process(folder, config.told_size)
    version = "up to 1.1, which is told the picture's size" if config.told_size else "1.2"
    return PromptCheckpoint(
        architecture="hunyuan-dit",
        network=HunyuanDiT,
        config=config,
        largest=LARGEST * config.sample_size,
        weights=found.tensors,
        sha256=found.sha256,
        folder=folder.path,
        process=process,
        encoders=(
            EncoderUse("text_encoder", "tokenizer", bert),
            EncoderUse("text_encoder_2", "tokenizer_2", t5, padded=True),
        ),
        notes=(f"weights: {found.sentence}", f"version: {version}", f"predicts: {process.prediction}"),
        facts={"mlp_norm_eps": 1e-6},
    )


def _process(folder: PromptFolder, told_size: bool) -> Process:
    if folder.scheduler_file is None:
        schedule = ScheduleInfo(kind="scaled_linear", beta_start=0.00085, beta_end=BETA_END[told_size], steps=1000)
        return Process("v", (999.0, 0.0), schedule, guidance=GUIDANCE)
    facts = scheduler_facts(folder.scheduler_file)
    last = facts.schedule.steps - 1.0
    return Process(facts.prediction, (last, 0.0), facts.schedule, guidance=GUIDANCE, sampling=facts.sampling)


def _config(folder: PromptFolder) -> HunyuanDiTConfig:
    values = folder.values
    check_fixed(values, FIXED, "a HunyuanDiT")
    heads, channels, patch, size, pooled, t5 = (
        count(values, DEFAULTS, key)
        for key in (
            "num_attention_heads", "in_channels", "patch_size", "sample_size", "pooled_projection_dim",
            "cross_attention_dim_t5",
        )
    )  # fmt: skip
    head, depth = (
        count(values, DEFAULTS, "attention_head_dim", MAX_HEAD),
        count(values, DEFAULTS, "num_layers", MAX_DEPTH),
    )
    width, told = heads * head, values.get("use_style_cond_and_image_meta_size", True)
    problems = {
        f"the width {width} is above {MAX_WIDTH}": width > MAX_WIDTH,
        f"'attention_head_dim' {head} is not a multiple of 4": head % 4,
        f"'hidden_size' is not the width {width}": count(values, DEFAULTS, "hidden_size") != width,
        f"'num_layers' {depth} is not even": depth % 2,
        f"'sample_size' {size} is not a multiple of 'patch_size' {patch}": size % patch,
        f"'patch_size' {patch} does not divide the 64 latent pixels that places are counted by": 64 % patch,
        f"'cross_attention_dim_t5' {t5} is not a multiple of {POOL_HEADS}": t5 % POOL_HEADS,
        "'use_style_cond_and_image_meta_size' is neither true nor false": not isinstance(told, bool),
    }
    check_none(problems)
    return HunyuanDiTConfig(
        sample_size=size,
        patch_size=patch,
        in_channels=channels,
        out_channels=2 * channels,
        num_heads=heads,
        head_size=head,
        depth=depth,
        mlp_size=int(width * above(values, "mlp_ratio", 4.0, 64)),
        caption_channels=count(values, DEFAULTS, "cross_attention_dim"),
        t5_channels=t5,
        pooled_channels=pooled,
        tokens=count(values, DEFAULTS, "text_len", 1 << 12),
        t5_tokens=count(values, DEFAULTS, "text_len_t5", 1 << 12),
        told_size=told,
    )
