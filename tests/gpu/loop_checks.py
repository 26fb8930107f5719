"""What the loop over plans must do on a device, each as a check: figures for the report, AssertionError when it fails."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ditedge.runtime import Session, StepEvent, generate
from ditedge.runtime.errors import Cancelled
from ditedge.runtime.loop.device_loop import DeviceLoop
from ditedge.runtime.loop.noise import standard_normal
from ditedge.runtime.loop.verify import relative_error, replay
from ditedge.runtime.samplers.program import with_x0_slot

from .torch_plan import Subject

TOLERANCE = 1e-4  # relative, as bundles allow; float32 without TF32 is a few 1e-6
SEEDS, DRAWS = (0, 1, 7, 2**32 - 1, 2**40 + 1, 2**64 - 1), 3
# cuRAND's u is a float32: near 1 it is off by up to 2^-25, which moves a number by 2^-25 / r, and r is at least 2.4e-4.
USUAL, RARE, RARE_SHARE = 5e-6, 2e-4, 1e-4
SHAPES = ((1, 32, 32), (3, 29, 31), (4, 32, 32), (4, 64, 64), (16, 128, 128))  # the last: nearly all threads of an H100
LEAK_BYTES, ROUNDS = 8 << 20, 5


@dataclass(frozen=True)
class Lab:
    """subject: the demo. latent: a model whose bundle has the graph `preview`. say: figures so far, if the time ends."""

    subject: Subject
    latent: Subject
    say: Callable[[str], None]

    @property
    def host(self) -> bool:
        return self.subject.host


def noise(lab: Lab) -> str:
    """Ours against torch.randn on CUDA: float64 rounded once against float32 logarithms and sines."""
    worst, equal, numbers, rare = 0.0, 0, 0, 0
    for seed in SEEDS:
        for shape in SHAPES:
            torch.manual_seed(seed)
            for draw in range(DRAWS):
                theirs = torch.randn(*shape, device="cuda").cpu().numpy().reshape(-1)
                ours = standard_normal(seed, draw, theirs.size)
                apart = np.abs(ours - theirs)
                assert apart.max() < RARE, f"seed {seed}, shape {list(shape)}, draw {draw}: {apart.max():.1e} apart"
                worst, rare = max(worst, float(apart.max())), rare + int((apart > USUAL).sum())
                equal, numbers = equal + int((ours == theirs).sum()), numbers + ours.size
    assert rare < RARE_SHARE * numbers, f"{rare} of {numbers} are more than {USUAL} apart"
    said = f"{numbers} numbers, {equal / numbers:.1%} equal to the bit, {rare} more than {USUAL} apart"
    return f"{said}, largest difference {worst:.1e}"


def golden(lab: Lab) -> str:
    """Recorded trajectories of PyTorch, every step of them: graphs of one step."""
    return _golden(lab.subject)


def golden_small(lab: Lab) -> str:
    """One recorded trajectory of the smaller model, for a tool under which everything is slow."""
    return _golden(lab.latent, most=1)


def _golden(subject: Subject, most: int = 9) -> str:
    with subject.session() as session:
        replayed = [replay(session, one) for one in subject.bundle.manifest.golden[:most]]
    said = ", ".join(f"{one.golden.program} {one.worst:.1e}" for one in replayed)
    assert replayed and all(one.worst <= TOLERANCE for one in replayed), said
    return said


def programs(lab: Lab) -> str:
    """Unwatched, all steps in few graphs, against the host's loop on the CPU; the last one has a second state slot."""
    said, names = {}, ("ddpm-10", "ddim-10", "dpm++-20")
    with lab.subject.session() as session, lab.subject.reference() as reference:
        for name in names:
            expected = lab.subject.sample(reference, name)
            said[name] = relative_error(lab.subject.sample(session, name), expected)
    text = ", ".join(f"{name} {error:.1e}" for name, error in said.items())
    assert max(said.values()) <= TOLERANCE, text
    return text


def bits(lab: Lab) -> str:
    """Captured = replayed = enqueued plainly = watched."""
    with lab.subject.session() as session:
        captured, replayed = lab.subject.sample(session), lab.subject.sample(session)
        watched = lab.subject.sample(session, on_step=lambda event: None)
        assert isinstance(session.loop, DeviceLoop) and session.loop.graphs, "it could not be captured"
    with lab.subject.session(cuda_graphs=False) as session:
        plain = lab.subject.sample(session)
    others = {"replayed": replayed, "plain": plain, "watched": watched}
    apart = {name: float(np.abs(captured - x).max()) for name, x in others.items() if not np.array_equal(captured, x)}
    assert not apart, f"not equal to the captured run: {apart}"
    return "equal"


def ring(lab: Lab) -> str:
    """Noise goes through a ring of pinned memory, drawn while the device works: more steps than it has places."""
    name = "ddpm-50"
    with lab.subject.session() as session, lab.subject.reference() as reference:
        expected = lab.subject.sample(reference, name)
        made = [lab.subject.sample(session, name) for _ in range(3)]
    assert all(np.array_equal(one, made[0]) for one in made), "runs of one seed differ"
    error = relative_error(made[0], expected)
    assert error <= TOLERANCE, f"{name} {error:.1e}"
    return f"{name} {error:.1e}, three runs equal"


def batches(lab: Lab) -> str:
    """Pictures of several batch sizes; another size has other kernels."""
    with lab.subject.session() as session, lab.subject.reference() as reference:
        expected = lab.subject.sample(reference, output="images").astype(int)
        made = {b: lab.subject.sample(session, output="images", batch=b).astype(int) for b in (1, 2, 5)}
    levels = {batch: float(np.abs(pictures - expected).mean()) for batch, pictures in made.items()}
    text = ", ".join(f"{batch}: {level:.4f}" for batch, level in levels.items()) + " levels of 255"
    assert max(levels.values()) < 0.1, text
    return text


def cancelled(lab: Lab) -> str:
    """Watched, by another thread while it runs; unwatched, before it runs. What comes after is what came before."""
    with lab.subject.session() as session:
        before = lab.subject.sample(session)
        seen, cancel = threading.Event(), threading.Event()
        steps: list[int] = []

        def on_step(event: StepEvent) -> None:
            steps.append(event.step)
            seen.set()

        other = threading.Thread(target=lambda: (seen.wait(60), cancel.set()))
        other.start()
        _expect_cancelled(lambda: lab.subject.sample(session, "ddpm-250", on_step=on_step, cancel=cancel))
        other.join()
        _expect_cancelled(lambda: lab.subject.sample(session, "ddpm-250", cancel=cancel))
        assert np.array_equal(lab.subject.sample(session), before), "the next run has other numbers"
    return f"after {steps[-1]} of 250 steps; the next run equal to the bit"


def _expect_cancelled(run: Callable[[], Any]) -> None:
    try:
        run()
    except Cancelled:
        return
    raise AssertionError("it was not cancelled")


def previews(lab: Lab) -> str:
    """x0 estimates while sampling goes on: of the demo by its decoder, of a latent model by the graph `preview`."""
    said = []
    for subject in (lab.subject, lab.latent):
        program = with_x0_slot(subject.bundle.program("ddpm-10"))
        with subject.session() as session, subject.reference() as reference:
            (final, shown), (_, expected) = _watched(subject, session, program), _watched(subject, reference, program)
            plain = subject.sample(session, program=program)
        assert np.array_equal(final, plain), "previews change the picture"
        level = float(np.abs(shown.astype(int) - expected.astype(int)).mean())
        assert len(shown) == 10 * 5 and level < 0.1, f"{len(shown)} previews, {level:.4f} levels apart"
        said.append(f"{subject.bundle.manifest.name} {level:.4f}")
    return ", ".join(said) + " levels of 255"


def _watched(subject: Subject, session: Session, program: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents, and the previews of all steps end to end."""
    shown: list[np.ndarray] = []
    look = lambda event: shown.append(session.preview(event.state[:, -1]).copy())  # noqa: E731
    return subject.sample(session, program=program, on_step=look), np.concatenate(shown)


def memory(lab: Lab) -> str:
    """Everything is given back, also after a run that was cancelled."""
    gpu = lab.subject.gpu()

    def once() -> None:
        with lab.subject.session(gpu=gpu) as session:
            lab.subject.sample(session, output="images")
            cancel = threading.Event()
            cancel.set()
            _expect_cancelled(lambda: lab.subject.sample(session, "ddim-10", cancel=cancel))

    once()
    before = _free_bytes(lab.host)
    for _ in range(ROUNDS):
        once()
    lost = before - _free_bytes(lab.host)
    assert not gpu.left(), f"{gpu.left()} allocations or handles are left"
    assert lost < LEAK_BYTES, f"{lost} bytes lost in {ROUNDS} rounds"
    return f"nothing is left; free memory changed by {lost} bytes in {ROUNDS} rounds"


def _free_bytes(host: bool) -> int:
    """Of the device, PyTorch's caches emptied."""
    gc.collect()
    if host:
        return 0
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def idle(lab: Lab) -> str:
    """Replays of 50 unwatched steps: what a step takes, and how busy the host is meanwhile."""
    with lab.subject.session() as session:
        for batch in (1, 8):
            first = _seconds(lab.subject, session, batch)
            runs = sorted(_seconds(lab.subject, session, batch) for _ in range(9))
            wall, busy = runs[4]
            lab.say(
                f"batch {batch}: first {1000 * first[0]:.0f} ms, then {1000 * wall / 50:.3f} ms a step, "
                f"host idle {1 - busy / wall:.0%}"
            )
    return ""


def _seconds(subject: Subject, session: Session, batch: int) -> tuple[float, float]:
    """Of one run of 50 steps: by the clock, and of this process's CPU time."""
    labels, program = [i % 10 for i in range(batch)], subject.bundle.program("ddim-50")
    wall, busy = time.perf_counter(), time.process_time()
    generate(subject.bundle, labels, labels, program=program, output="latents", session=session, batch=batch)
    return time.perf_counter() - wall, time.process_time() - busy
