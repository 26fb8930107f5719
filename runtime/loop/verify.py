"""Proof of parity: replay a bundle's golden trajectories, recorded from PyTorch, on the engine at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bundle.manifest import GoldenInfo, ModelInfo
from ..bundle.open import Bundle
from ..bundle.text_info import TextInfo
from ..errors import BundleError
from ..report import Report, silent
from .engine import Engine
from .loop import StepEvent
from .noise import GivenNoise
from .prompts import Prompt, prompt_of_rows
from .session import Session

# Relative error that no bundle may have, whatever its manifest allows. Other seeds of the demo model end 0.45 apart, so
# more than this is nearer to another picture; int4, the coarsest form, is allowed 0.27 there.
LARGEST_ERROR = 0.35
MAX_GOLDEN_BYTES = 1 << 30


@dataclass(frozen=True)
class Replay:
    """One replayed trajectory. error: relative error at each step, ||x - golden|| / ||golden||."""

    golden: GoldenInfo
    timestep: np.ndarray  # [N]
    error: np.ndarray  # [N] float64

    @property
    def worst(self) -> float:
        """The largest error of any step; NaN where one is."""
        return float(np.max(self.error))

    @property
    def allowed(self) -> float:
        return min(self.golden.tolerance, LARGEST_ERROR)

    @property
    def passed(self) -> bool:
        return bool(np.all(self.error <= self.allowed))  # False for NaN, too


def golden_here(bundle: Bundle) -> list[GoldenInfo]:
    """The trajectories whose files are there: a device may leave them out. Raises BundleError when none is."""
    here = [golden for golden in bundle.manifest.golden if bundle.has(golden.file)]
    if not bundle.manifest.golden:
        raise BundleError(f"{bundle.folder}: the bundle has no golden trajectory to replay; export it again")
    if not here:
        raise BundleError(
            f"{bundle.folder}: there is no golden data here, golden/ was left out; all that is here matches its hashes"
        )
    return here


def read_golden(bundle: Bundle, golden: GoldenInfo, steps: int) -> dict[str, np.ndarray]:
    """z [B,C,H,W], noise [N,B,C,H,W], x [N,B,C,H,W] float32, y [B] int64, of N = steps. Raises BundleError.

    Of a model that takes prompts lengths [B+1] int64 instead of y and what `context` reads of each image's prompt, and
    of what all are guided away from: hidden [B+1,T,Dh] float32 of as many tokens, and its like of other text encoders.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path, info, model = bundle.folder / golden.file, bundle.manifest.files[golden.file], bundle.manifest.model
    if info.bytes > MAX_GOLDEN_BYTES:
        raise BundleError(f"{path}: larger than {MAX_GOLDEN_BYTES >> 20} MB, not a golden file")
    try:
        tensors = load(bundle.read(golden.file))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:  # the latter: of its own types
        raise BundleError(f"{path}: not a readable golden file ({error})") from None
    wanted = _wanted(tensors, bundle, steps, path)
    for name, (dtype, shape) in wanted.items():
        if name not in tensors:
            raise BundleError(f"{path}: tensor '{name}' is missing")
        found = tensors[name]
        if found.shape != shape or found.dtype != dtype:
            raise BundleError(
                f"{path}: tensor '{name}' is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)}: "
                "export the checkpoint again"
            )
        if not np.isfinite(found).all():
            raise BundleError(f"{path}: tensor '{name}' has numbers that are not finite: export the checkpoint again")
    if "y" in wanted:
        check_labels(tensors["y"], model, path)
    return {name: tensors[name] for name in wanted}


def _wanted(
    tensors: Mapping[str, np.ndarray], bundle: Bundle, steps: int, path: Path
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By name the type and shape that a golden file's tensors have to have. Raises BundleError for no sample at all."""
    text = bundle.manifest.text
    counted, other = ("y", 0) if text is None else ("lengths", 1)
    batch = len(tensors[counted]) - other if counted in tensors and tensors[counted].ndim == 1 else 0
    if counted in tensors and batch < 1:
        raise BundleError(
            f"{path}: tensor '{counted}' is {list(tensors[counted].shape)}, expected [B] of at least one sample"
        )
    latents = (batch, *bundle.manifest.model.latent_shape)
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {counted: ("int64", (batch + other,))}
    for suffix, info in text.encoders.items() if text is not None else ():
        found = tensors[f"hidden{suffix}"].shape[1:2] if f"hidden{suffix}" in tensors else ()
        tokens = min(found[0] if found else 1, info.tokens) if info.masked else info.tokens
        if counted in tensors and not all(1 <= n <= tokens for n in tensors[counted].tolist() if info.masked):
            raise BundleError(f"{path}: tensor 'lengths' has numbers that are not between 1 and {tokens}")
        wanted |= {name: ("float32", (batch + 1, *shape)) for name, shape in info.rows(suffix, tokens).items()}
    f32 = "float32"
    return wanted | {"z": (f32, latents), "noise": (f32, (steps, *latents)), "x": (f32, (steps, *latents))}


def check_labels(y: np.ndarray, model: ModelInfo, path: Path) -> None:
    """y [B] int64: classes, or the null class. Raises BundleError."""
    for label in y.tolist():
        if not (0 <= label < model.num_classes or label == model.null_class):
            raise BundleError(f"{path}: label {label} is none of the classes 0 to {model.num_classes - 1}")


def replay(session: Session, golden: GoldenInfo, on_step: Callable[[StepEvent], None] | None = None) -> Replay:
    """Runs a golden trajectory through the graphs and the loop, and compares every step."""
    bundle: Bundle = session.bundle
    program = bundle.program(golden.program)
    tensors = read_golden(bundle, golden, program.steps)
    errors: list[float] = []

    def compare(event: StepEvent) -> None:
        errors.append(relative_error(event.latents, tensors["x"][event.step - 1]))
        if on_step is not None:
            on_step(event)

    noise = GivenNoise(tensors["z"], tensors["noise"])
    subjects, text = _subjects(tensors, bundle.manifest.text), bundle.manifest.text
    others = None if text is None else [subjects.pop()] * (len(tensors["z"]))
    side = 0 if text is None else text.factor * bundle.manifest.model.input_size
    session.latents(program, subjects, golden.guidance, noise, on_step=compare, away_from=others, size=(side, side))
    return Replay(golden, program.timestep, np.array(errors))


def _subjects(tensors: Mapping[str, np.ndarray], text: TextInfo | None) -> list[int | Prompt]:
    """Classes; or prompts, the last of which is what they are guided away from."""
    if text is None:
        return list(tensors["y"].tolist())
    found: list[int | Prompt] = []
    for i, count in enumerate(tensors["lengths"].tolist()):
        shapes = {n: own for suffix, info in text.encoders.items() for n, own in info.rows(suffix, count).items()}
        found.append(prompt_of_rows({name: tensors[name][i, : shape[0]] for name, shape in shapes.items()}))
    return found


def golden_prompts(bundle: Bundle) -> tuple[list[Prompt], Prompt]:
    """The prompts of the first golden trajectory that is here, and what they are guided away from. Raises BundleError.

    Of a model that takes prompts.
    """
    golden = golden_here(bundle)[0]
    *of, away_from = _subjects(read_golden(bundle, golden, bundle.program(golden.program).steps), bundle.manifest.text)
    return [prompt for prompt in of if isinstance(prompt, Prompt)], away_from  # type: ignore[return-value]


def replay_golden(bundle: Bundle, engines: Mapping[str, Engine] | None = None, report: Report = silent) -> list[Replay]:
    """Every golden trajectory of a bundle that was just made, by its graphs or by `engines`."""
    with Session(bundle, engines=engines) as session:
        return [replay(session, golden, _reporting(report, golden)) for golden in bundle.manifest.golden]


def check_replayed(replayed: Replay, allowed: float) -> None:
    """Raises BundleError, for a bundle that is not written yet, when an error is beyond `allowed`."""
    if not replayed.worst <= allowed:  # NaN, too
        raise BundleError(
            f"the graphs leave PyTorch's {replayed.golden.program} trajectory: relative error {replayed.worst:.1e}, "
            f"allowed {allowed:.0e}; nothing was written"
        )


def _reporting(report: Report, golden: GoldenInfo) -> Callable[[StepEvent], None]:
    what = f"replaying golden trajectory {golden.program}"
    report(what)
    return lambda event: report(what, event.step, event.steps)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b|| in float64."""
    return float(np.linalg.norm(np.float64(a) - np.float64(b)) / np.linalg.norm(np.float64(b)))
