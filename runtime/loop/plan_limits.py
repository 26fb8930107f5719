"""What a run asks of plans against the sizes that they were built for: each refusal names the option that helps."""

from __future__ import annotations

from ..bundle.text_info import TextInfo
from ..errors import RequestError
from ..plans.record import BuildRecord

STATE_RANK = 5  # [B, K, C, H, W]


def check_fits(record: BuildRecord, batch: int, rows: int) -> None:
    """A batch, and the distinct labels of one step, against what was built. Raises RequestError naming the flag."""
    if batch > record.max_batch:
        raise RequestError(
            f"a batch of {batch} is more than the plans were built for, {record.max_batch}: "
            f"use --batch {record.max_batch}, or build with --max-batch {batch}"
        )
    if rows > record.max_rows:
        raise RequestError(
            f"a batch with {rows} distinct conditions is more than the plans were built for, {record.max_rows}: "
            f"use a smaller --batch, or build with --max-rows {rows}"
        )


def check_size(record: BuildRecord, latent: tuple[int, ...], text: TextInfo) -> None:
    """H and W of a model that takes prompts against what was built. Raises RequestError naming the flag."""
    states = [profile.get("state") for profile in record.plans["step"].profiles]
    limits = [state for state in states if state is not None and len(state.max) == STATE_RANK]
    if len(limits) < len(states) or not limits or any(some.takes(latent, STATE_RANK - 2) for some in limits):
        return  # where a profile does not limit it, the plan itself will

    def said(height: int, width: int) -> str:
        return f"{width * text.factor}x{height * text.factor}"

    built = list(dict.fromkeys(said(*some.max[3:]) for some in limits))
    raise RequestError(
        f"the plans were built for pictures of {', '.join(built)}, and not of {said(*latent)}: "
        f"use --size {built[0]}, or build with --size {said(*latent)}"
    )


def check_shape(record: BuildRecord, graph: str, profile: int, tensor: str, shape: tuple[int, ...]) -> None:
    """One input's shape against an optimisation profile. Raises RequestError."""
    plan = record.plans[graph]  # type: ignore[index]
    limits = plan.profiles[profile].get(tensor) if plan.profiles else None
    if limits is None or limits.takes(shape):
        return
    slots = tensor in ("state", "mix") and shape[1:2] > tuple(limits.max[1:2])
    remedy = "choose a sampler with fewer state slots (a lower --order, no previews)" if slots else "build again"
    raise RequestError(
        f"{plan.file}: input {tensor} is {list(shape)}, and the plan was built for {limits.min} to {limits.max}: "
        f"{remedy}"
    )
