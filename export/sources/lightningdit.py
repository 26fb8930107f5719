"""LightningDiT's checkpoints: DiT with parts of newer transformers, which the keys tell, and SiT's flow.

Known by SwiGLU's `w12`, by rotary positions, by norms with weights or by adaLN without shifts; a run that chose none of
these by `model_type: LightningDiT-...` in its settings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...runtime.errors import CheckpointError
from ..networks.lightningdit import LightningConfig, rotary_angles
from .asked import Asked
from .family import Described, check_said
from .settings import Settings
from .shapes import MAX_MLP_RATIO, config_from_shapes

COS, SIN, NORM, SWIGLU = (
    "feat_rope.freqs_cos",
    "feat_rope.freqs_sin",
    "blocks.0.norm1.weight",
    "blocks.0.mlp.w12.weight",
)
ADALN = "blocks.0.adaLN_modulation.1.weight"
SIZES = {(1536, 24): 24, (1792, 28): 28}  # of 1p0B and 1p6B, beside DiT's: (width, blocks) -> heads
# Of its configs/reproductions/lightningdit_xl_vavae_f16d32_800ep_cfg.yaml, where no settings say otherwise.
STEPS, GUIDANCE, INTERVAL_START, SHIFT = 250, 6.7, 0.125, 0.3


def read(state: dict[str, Tensor], settings: Settings, asked: Asked) -> Described | None:
    """None where the keys are another family's. Raises CheckpointError naming the key, or the setting."""
    adaln, width = (_rows(state, key) for key in (ADALN, "x_embedder.proj.weight"))
    shift = adaln != 4 * width or not width
    named = str(settings.values.get("model_type", "")).startswith("LightningDiT")
    if not (named or not shift or {COS, NORM, SWIGLU} & state.keys()):
        return None
    rope = COS in state or settings.values.get("use_rope") is True
    actual = {"use_swiglu": SWIGLU in state, "use_rmsnorm": NORM in state, "use_rope": rope, "wo_shift": not shift}
    check_said(settings, actual)
    config, said = config_from_shapes(state, settings, replace(asked, heads=asked.heads or _heads(state, settings)))
    found = LightningConfig(**vars(config), swiglu=SWIGLU in state, rms_norm=NORM in state, rope=rope, shift=shift)
    if found.swiglu:
        found = replace(found, mlp_ratio=_rows(state, SWIGLU) / 2 / found.hidden_size)
        if not 0 < found.mlp_ratio < MAX_MLP_RATIO:
            raise CheckpointError(f"key '{SWIGLU}' has shape {list(state[SWIGLU].shape)}, which is not SwiGLU's")
    if rope and found.hidden_size // found.num_heads % 4:
        raise CheckpointError(
            f"rotary positions need heads of a multiple of 4 channels, these have {found.num_heads} heads"
        )
    if rope and COS not in state:  # an average of what is trained lacks what is not
        state = state | dict(zip((COS, SIN), rotary_angles(found), strict=True))
    sampling, guidance, note = _sampling(settings)
    flow = "path_type" not in settings.values
    notes = (
        ["path: linear, time from 0 (noise) to 1 (data) (assumed of LightningDiT: nothing says otherwise)"]
        if flow
        else []
    )
    return Described(
        state,
        found,
        said if asked.heads else said.replace("(--heads)", "(the width of a head)"),
        prediction="flow-to-data" if flow else None,
        sampling=sampling,
        guidance=guidance,
        notes=(*notes, f"sampling: {note}"),
    )


def _rows(state: dict[str, Tensor], key: str) -> int:
    return int(state[key].shape[0]) if key in state and state[key].ndim else 0


def _heads(state: dict[str, Tensor], settings: Settings) -> int | None:
    """From the width of the rotary positions or of the norm of queries, else of a size that only LightningDiT has."""
    hidden = _rows(state, "x_embedder.proj.weight")
    for key in (COS, "blocks.0.attn.q_norm.weight"):
        width = int(state[key].shape[-1]) if key in state and state[key].ndim else 0
        if width and hidden and hidden % width == 0:
            return hidden // width
    blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    return None if "num_heads" in settings.values else SIZES.get((hidden, blocks))


def _sampling(settings: Settings) -> tuple[dict[str, Any], float, str]:
    """What `inference.py` does: settings of a program, the guidance, and the sentence that says whence they are."""
    values = settings.values
    start = values.get("cfg_interval_start", INTERVAL_START)
    shift = values.get("timestep_shift", SHIFT)
    guidance = values.get("cfg_scale", GUIDANCE)
    steps = values.get("num_sampling_steps", STEPS) - 1  # its number counts both ends
    made: dict[str, Any] = {"sampler": "flow-euler", "steps": max(steps, 1)}
    last = 1 - 1 / made["steps"]  # the time of the last evaluation
    if shift > 0:
        last = shift * last / (1 + (shift - 1) * last)
        made["shift"] = 1 / shift  # t' = s t / (1 + (s - 1) t), of the data's time
    if 0 < start <= last:
        made["guidance_interval"] = [0.0, 1 - start]
    whence = (
        f"{settings.origin}" if "cfg_scale" in values else "assumed: its config for 800 epochs, 6.7; for 64 it has 10"
    )
    method = values.get("sampling_method", "euler")
    other = "" if method == "euler" else f"; its {method} is no table"
    return (
        made,
        guidance,
        f"{steps} Euler steps, shift {shift:g}, guidance {guidance:g} from t = {start:g} on ({whence}{other})",
    )
