"""The production loop for plans, on the CPU: every CUDA and TensorRT call goes to a strict double (gpu_double.py)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ditedge.runtime import Cancelled, EngineOptions, Program, Session, generate, open_bundle
from ditedge.runtime.bundle import manifest
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import NotFiniteError
from ditedge.runtime.loop import device_loop, device_memory, device_run, engine_trt
from ditedge.runtime.loop.device_tables import parts_of_step
from ditedge.runtime.loop.noise import GivenNoise, SeededNoise
from ditedge.runtime.loop.verify import relative_error, replay
from ditedge.runtime.samplers.program import with_x0_slot
from tests.conftest import CASES, GOLDEN, golden_case, overheat
from tests.doubles.gpu_double import DoubleError, DoubleGpu
from tests.doubles.plans import write_plans

TOLERANCE = 1e-5  # float32 against the reference's float32, as on ONNX Runtime: measured at most 2.4e-6
LOOPS = [(case, loop["name"]) for case in CASES for loop in golden_case(case)["loops"]]
LABELS, SEEDS = [3, 1, 3, 9, 0], [11, 12, 13, 14, 15]


@pytest.fixture(scope="session")
def plan_bundle(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """plan_bundle(case, prediction) -> an opened bundle with engines/double/."""
    folder = tmp_path_factory.mktemp("plans")

    def copy(case: str, prediction: str = "epsilon") -> Bundle:
        out = folder / f"{case}-{prediction}"
        if not out.exists():
            shutil.copytree(golden_bundle(case, prediction), out)
            write_plans(out)
        return open_bundle(out)

    return copy


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> DoubleGpu:
    """What `Session` finds instead of a GPU."""
    double = DoubleGpu()
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: double)
    return double


def plans(bundle: Bundle, cuda_graphs: bool = True) -> Session:
    folder = bundle.folder / "engines" / "double"
    return Session(bundle, EngineOptions(plans=folder, cuda_graphs=cuda_graphs))


def latents(bundle: Bundle, session: Session, program: Program, guidance: float = 3.0, **options) -> np.ndarray:
    options = {"labels": LABELS, "seeds": SEEDS, "batch": 8} | options
    return generate(bundle, program=program, guidance=guidance, output="latents", session=session, **options)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of matrix products of other shapes (blocks of steps, threads)."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


def recorded_program(case: str, name: str, plan_bundle) -> tuple[Bundle, Program, dict[str, np.ndarray], float]:
    loop = next(loop for loop in golden_case(case)["loops"] if loop["name"] == name)
    bundle = plan_bundle(case, "x0" if loop.get("predict_xstart") else "epsilon")
    variance = None
    if loop["loop"] == "ddpm" and not bundle.manifest.model.learned_variance:
        variance = "fixed-small" if loop.get("sigma_small") else "fixed-large"
    eta = loop["eta"] if loop["loop"] == "ddim" else None
    program = bundle.program(
        sampler=loop["loop"], respacing=loop["respacing"], eta=eta, clip_x0=loop["clip"], variance=variance
    )
    return bundle, program, load_file(GOLDEN / case / f"{name}.safetensors"), loop["cfg"] or 1.0


@pytest.mark.parametrize(("case", "name"), LOOPS)
def test_recorded_trajectories(plan_bundle, gpu: DoubleGpu, case: str, name: str) -> None:
    bundle, program, recorded, guidance = recorded_program(case, name, plan_bundle)
    errors: list[float] = []
    noise = GivenNoise(recorded["z"], recorded["noise"])
    with plans(bundle) as session:
        session.latents(
            program, recorded["y"].tolist(), guidance, noise,
            on_step=lambda event: errors.append(relative_error(event.latents, recorded["x"][event.step - 1])),
        )  # fmt: skip
        final = session.latents(program, recorded["y"].tolist(), guidance, noise)  # one graph of all steps
    assert len(errors) == len(recorded["x"]) and max(errors) < TOLERANCE
    assert relative_error(final, recorded["x"][-1]) < TOLERANCE
    assert not gpu.live and not gpu.graphs and not gpu.events and not gpu.streams


def test_verify_replays_on_plans(plan_bundle, gpu: DoubleGpu) -> None:
    with plans(plan_bundle("gray1_cfg")) as session:
        results = [replay(session, golden) for golden in session.bundle.manifest.golden]
    assert results and all(result.passed for result in results)
    assert {path.name for path in gpu.deserialized} == {"conditioner.plan", "dit.plan", "decoder.plan"}


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_equals_the_loop_on_onnx_runtime(plan_bundle, gpu: DoubleGpu, sampler: str, cuda_graphs: bool) -> None:
    """Also with two batches of one shape (a replay), a smaller last one, and other labels, seeds and guidance."""
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler=sampler, steps=6)
    with Session(bundle) as ort, plans(bundle, cuda_graphs) as device:
        for options in (
            {"batch": 2},
            {"batch": 5},
            {"seeds": [1, 2, 3, 4, 5]},
            {"away_from": [7] * 5},
            {"guidance": 1.5},
        ):
            same(latents(bundle, device, program, **options), latents(bundle, ort, program, **options))


def test_a_shape_is_captured_once_and_replayed(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    with plans(bundle) as device:
        first = latents(bundle, device, bundle.program(sampler="ddpm", steps=6))
        again = latents(bundle, device, bundle.program(sampler="ddpm", steps=6))
        latents(bundle, device, bundle.program(sampler="ddpm", steps=6), labels=[1, 2, 3, 4, 2], guidance=5.0)
        assert gpu.log.count("capture") == 1 and gpu.log.count("launch") == 3
        assert np.array_equal(first, again)
    assert not gpu.live


def test_unguided_steps_run_half_the_evaluations(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program = replace(bundle.program(steps=5), guidance=np.array([0.0, 1, 1, 0, 1]))
    with Session(bundle) as ort, plans(bundle) as device:
        same(latents(bundle, device, program), latents(bundle, ort, program))
        run = next(iter(device.loop._runs.values()))
        evaluations = {count: context.shapes["sample"][0] for count, context in run._contexts.items()}
    assert evaluations == {10: 10, 5: 5}


@pytest.mark.parametrize("steps_held", [1, 3])
@pytest.mark.parametrize("watched", [False, True])
def test_modulation_that_does_not_fit_is_computed_in_blocks(
    plan_bundle, gpu, monkeypatch, steps_held: int, watched: bool
) -> None:
    bundle = plan_bundle("gray1_cfg")
    row = 4 * (6 * 2 + 2) * 32 * 5  # four labels and the null class
    monkeypatch.setattr(device_run, "MODULATION_BYTES", steps_held * row)
    program = bundle.program(sampler="ddpm", steps=7)
    with Session(bundle) as ort, plans(bundle) as device:
        same(
            latents(bundle, device, program, on_step=(lambda p: None) if watched else None),
            latents(bundle, ort, program),
        )
    calls = gpu.log.count("conditioner") - 1  # without the warm-up's
    assert calls == -(-7 // steps_held)


def test_modulation_rows_that_are_not_aligned_are_computed_step_by_step(plan_bundle, gpu, monkeypatch) -> None:
    """A step's rows begin where TensorRT can bind them, even if the model's width is odd."""
    monkeypatch.setattr(device_memory, "ALIGNMENT", 4096)
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=3)
    with Session(bundle) as ort, plans(bundle) as device:
        same(latents(bundle, device, program), latents(bundle, ort, program))
    assert gpu.log.count("conditioner") == 3 + 1
    assert all(addresses["modulation"] % 256 == 0 for addresses in gpu.bound)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("draws_held", [2, 4, 5])
def test_noise_that_does_not_fit_goes_through_a_ring(
    plan_bundle, gpu, monkeypatch, draws_held: int, watched: bool
) -> None:
    bundle = plan_bundle("gray1_cfg")
    monkeypatch.setattr(device_run, "NOISE_BYTES", draws_held * 5 * 8 * 8 * 4)
    program = bundle.program(sampler="ddpm", steps=11)
    with Session(bundle) as ort, plans(bundle) as device:
        expected = latents(bundle, ort, program)
        for _ in range(2):
            same(latents(bundle, device, program, on_step=(lambda p: None) if watched else None), expected)


def test_noise_is_drawn_while_the_device_works(plan_bundle, gpu: DoubleGpu) -> None:
    bundle, queued = plan_bundle("gray1_cfg"), []

    class Noise(SeededNoise):
        def step(self, step: int) -> np.ndarray:
            queued.append(gpu.log.count("launch"))
            return super().step(step)

    with plans(bundle) as device:
        device.latents(bundle.program(sampler="ddpm", steps=30), LABELS, 3.0, Noise(SEEDS, (1, 8, 8)))
    assert queued == [0] * 10 + [1] * 10 + [2] * 9


def test_samplers_without_noise_upload_none(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    with plans(bundle) as device:
        latents(bundle, device, bundle.program(sampler="ddim", steps=9))
        assert gpu.log.count("copy") == 3  # tables, initial state, result


def test_progress_reports_every_step_in_order(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program, seen, expected = with_x0_slot(bundle.program(steps=7)), [], []
    with Session(bundle) as ort, plans(bundle) as device:
        latents(bundle, ort, program, on_step=lambda p: expected.append((p.done, p.state.copy())))
        latents(bundle, device, program, on_step=lambda p: seen.append((p.done, p.state.copy())))
    assert [done for done, _ in seen] == [done for done, _ in expected]
    for (_, actual), (_, wanted) in zip(seen, expected, strict=True):
        same(actual, wanted)


def test_work_is_enqueued_ahead_of_the_callback(plan_bundle, gpu: DoubleGpu) -> None:
    """While the host is in a callback the stream has more to do."""
    bundle = plan_bundle("gray1_cfg")
    ahead = []
    with plans(bundle) as device:
        latents(
            bundle, device, bundle.program(sampler="ddim", steps=12), on_step=lambda p: ahead.append(len(gpu.queue))
        )
    assert min(ahead[:8]) >= 1


@pytest.mark.parametrize("watched", [False, True])
def test_cancel_stops_between_segments_and_leaves_the_session_usable(plan_bundle, gpu, watched: bool) -> None:
    bundle = plan_bundle("gray1_cfg")
    program, stop, done = bundle.program(sampler="ddpm", steps=40), threading.Event(), []

    class Noise(SeededNoise):
        def step(self, step: int) -> np.ndarray:
            stop.set() if step == 9 else None
            return super().step(step)

    noise = Noise(SEEDS, (1, 8, 8))
    with Session(bundle) as ort, plans(bundle) as device:
        with pytest.raises(Cancelled, match="of 40"):
            device.latents(
                program, LABELS, 3.0, noise, on_step=(lambda e: done.append(e.step)) if watched else None, cancel=stop
            )
        assert not gpu.queue and gpu.log.count("step") < 20
        assert done == list(range(1, len(done) + 1)) and len(done) <= 10
        same(latents(bundle, device, program, cancel=threading.Event()), latents(bundle, ort, program))


def test_a_failing_callback_leaves_the_session_usable(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=6)

    def fail(progress) -> None:
        raise KeyboardInterrupt

    with Session(bundle) as ort, plans(bundle) as device:
        with pytest.raises(KeyboardInterrupt):
            latents(bundle, device, program, on_step=fail)
        same(latents(bundle, device, program), latents(bundle, ort, program))


def test_few_runs_are_kept_and_memory_stays_bounded(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    with plans(bundle) as device:
        sizes = []
        for count in (1, 2, 3, 4, 3, 2, 1):
            latents(bundle, device, bundle.program(steps=3), labels=LABELS[:count], seeds=SEEDS[:count])
            sizes.append(len(gpu.live))
        assert len(set(sizes[1:])) == 1 and len(device.loop._runs) == device_loop.RUNS_KEPT


@pytest.mark.parametrize("case", ["gray1_cfg", "pixel3_no_null_class"])
def test_images_equal_onnx_runtimes(plan_bundle, gpu: DoubleGpu, monkeypatch, case: str) -> None:
    bundle = plan_bundle(case)
    shape = (5, *bundle.manifest.model.latent_shape)
    some = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with Session(bundle) as ort, plans(bundle) as device:
        expected = ort.images(some)
        assert np.array_equal(device.images(some), expected)
        monkeypatch.setattr(manifest, "DECODE_PIXELS", 2 * shape[2] * shape[3])  # pictures in twos, then one
        assert np.array_equal(device.images(some), expected) and gpu.log.count("decoder") == 1 + 3
        assert np.array_equal(device.images(np.concatenate([some] * 2)), np.concatenate([expected] * 2))


def test_decoding_inside_a_callback_disturbs_nothing(plan_bundle, gpu: DoubleGpu) -> None:
    """Previews by the decoder: it shares scratch memory with the steps that are enqueued already."""
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=6)
    with Session(bundle) as ort, plans(bundle) as device:
        pictures = []
        watched = latents(
            bundle, device, program, on_step=lambda p: pictures.append((p.latents.copy(), device.images(p.latents)))
        )
        same(watched, latents(bundle, ort, program))
        for shown, picture in pictures:
            assert np.array_equal(picture, ort.images(shown))


def test_bundles_without_decoder(plan_bundle, gpu: DoubleGpu) -> None:
    from ditedge.runtime.errors import RequestError

    bundle = plan_bundle("latent4_learned_sigma")
    with plans(bundle) as device:
        latents(bundle, device, bundle.program(steps=2), labels=[1], seeds=[1])
        with pytest.raises(RequestError, match="no decoder"):
            device.images(np.zeros((1, 4, 8, 8), dtype=np.float32))


def test_run_and_verify_take_a_plan(plan_bundle, gpu: DoubleGpu, tmp_path: Path) -> None:
    """The command line: the same picture and previews as from the bundle's graphs, and every replay passed."""
    from click.testing import CliRunner
    from PIL import Image

    from ditedge.cli import main

    bundle = plan_bundle("gray1_cfg")
    plan, runner = bundle.folder / "engines" / "double" / "dit.plan", CliRunner()
    for name, engine in (("plan", plan), ("onnx", bundle.folder)):
        result = runner.invoke(
            main, ["run", "--engine", str(engine), "--count", "3", "--batch", "2", "--steps", "6", "--preview-every", "3", "-o", str(tmp_path / f"{name}.png")]
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    for suffix in ("png", "preview-0003.png", "preview-0006.png"):
        with Image.open(tmp_path / f"plan.{suffix}") as actual, Image.open(tmp_path / f"onnx.{suffix}") as expected:
            assert np.abs(np.asarray(actual).astype(int) - np.asarray(expected)).max() <= 1
    result = runner.invoke(main, ["verify", "--engine", str(plan)])
    assert result.exit_code == 0 and "passed" in result.output, result.output
    assert gpu.log.count("decoder") == 6 and not gpu.live  # two batches: two previews and the pictures of each


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    steps=st.integers(1, 13),
    count=st.integers(1, 4),
    guided=st.integers(0, 2**13 - 1),
    sampler=st.sampled_from(["ddpm", "ddim", "dpm++", "sde-dpm++", "euler-ancestral"]),
    guidance=st.sampled_from([1.0, 3.0]),
    watched=st.booleans(),
    cancellable=st.booleans(),
    rows_held=st.integers(1, 60),
    draws_held=st.integers(1, 15),
)
def test_any_combination_equals_onnx_runtime(
    plan_bundle, steps, count, guided, sampler, guidance, watched, cancellable, rows_held, draws_held
) -> None:
    """Segments, blocks of rows, rings of noise and unguided steps, in combinations that nobody thought of; twice each."""
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler=sampler, steps=steps)
    program = replace(program, guidance=np.array([float(guided >> i & 1) for i in range(program.steps)]))
    gpu, seen = DoubleGpu(), []
    options = {"labels": LABELS[:count], "seeds": SEEDS[:count], "guidance": guidance}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
        patch.setattr(device_run, "MODULATION_BYTES", rows_held * 4 * (6 * 2 + 2) * 32)
        patch.setattr(device_run, "NOISE_BYTES", draws_held * count * 8 * 8 * 4)
        with Session(bundle) as ort, plans(bundle) as device:
            expected = latents(bundle, ort, program, **options)
            options["on_step"] = (lambda p: seen.append(p.done)) if watched else None
            for _ in range(2):
                stop = threading.Event() if cancellable else None
                same(latents(bundle, device, program, cancel=stop, **options), expected)
    assert seen == (2 * list(range(1, program.steps + 1)) if watched else [])
    assert not gpu.live and not gpu.graphs


# Mutations: each breaks one function of the loop, and what the tests above check must notice.


def ten_recorded_steps(plan_bundle) -> None:
    bundle, program, recorded, guidance = recorded_program("latent4_learned_sigma", "ddpm10", plan_bundle)
    noise = GivenNoise(recorded["z"], recorded["noise"])
    with plans(bundle) as session:
        for _ in range(2):
            final = session.latents(program, recorded["y"].tolist(), guidance, noise)
            assert relative_error(final, recorded["x"][-1]) < TOLERANCE


def tightly_packed(monkeypatch) -> None:
    for module in (device_memory, device_run):
        monkeypatch.setattr(module, "aligned", lambda size: -(-size // 4) * 4)


def steps_backwards(monkeypatch) -> None:
    monkeypatch.setattr(device_run, "parts_of_step", lambda shape, step: parts_of_step(shape, 9 - step))


def moved_arena(monkeypatch) -> None:
    real = device_memory.Arena.upload

    def upload(self, parts, stream) -> None:
        """Reallocates, as a loop would that lets its buffers grow: captured graphs keep the old address."""
        if any(self._base == block.address and block.written.any() for block in self._gpu.live):
            self._gpu.free(self._base)
            self._base = self._gpu.malloc(self._size)
        real(self, parts, stream)

    monkeypatch.setattr(device_memory.Arena, "upload", upload)


def one_state(monkeypatch) -> None:
    real = device_run.Run._step
    monkeypatch.setattr(
        device_run.Run, "_step", lambda self, s, m, n, states: real(self, s, m, n, (states[0], states[0]))
    )


def cold_capture(monkeypatch) -> None:
    monkeypatch.setattr(device_run.Run, "_warm_up", lambda self: None)


def waiting_by_synchronising(monkeypatch) -> None:
    monkeypatch.setattr(device_run, "wait", lambda gpu, event: gpu.synchronize(next(iter(gpu.streams))))


def forgotten_conditioner(monkeypatch) -> None:
    monkeypatch.setattr(device_run.Run, "_modulate", lambda self, call: None)


def forgotten_noise(monkeypatch) -> None:
    monkeypatch.setattr(device_run.Run, "_upload_noise", lambda self, noise, first, last: None)


def freed_too_early(monkeypatch) -> None:
    real = device_run.Run._upload_noise

    def upload(self, noise, first, last) -> None:
        real(self, noise, first, last)
        self._memory.free()

    monkeypatch.setattr(device_run.Run, "_upload_noise", upload)


MUTATIONS = {
    tightly_packed: "not aligned to 256",
    steps_backwards: "assert",
    moved_arena: "use after free",
    one_state: "lies over an input",
    cold_capture: "captured before its first enqueue",
    waiting_by_synchronising: "host synchronisation while work is enqueued",
    forgotten_conditioner: "read of memory never written: input modulation",
    forgotten_noise: "read of memory never written: input noise",
    freed_too_early: "free while work is enqueued",
}


def test_the_check_that_mutations_break(plan_bundle, gpu: DoubleGpu) -> None:
    ten_recorded_steps(plan_bundle)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_mutations_are_noticed(plan_bundle, gpu: DoubleGpu, monkeypatch, mutate) -> None:
    mutate(monkeypatch)
    gpu.may_synchronize = False
    with pytest.raises(AssertionError, match=MUTATIONS[mutate]) as caught:
        ten_recorded_steps(plan_bundle)
    assert isinstance(caught.value, DoubleError) or mutate is steps_backwards


def test_noise_uploaded_too_early_is_noticed(plan_bundle, gpu: DoubleGpu, monkeypatch) -> None:
    """Without waiting for the ring's oldest part, the host overwrites pinned memory that is still to be copied."""
    real = device_run.Run.__init__

    def impatient(self, device, shape, tables) -> None:
        real(self, device, shape, tables)
        self._events += [gpu.event() for _ in range(20)]
        self._ahead += 20

    monkeypatch.setattr(device_run, "NOISE_BYTES", 2 * 5 * 8 * 8 * 4)
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=11)
    with Session(bundle) as ort, plans(bundle) as device:
        same(latents(bundle, device, program), latents(bundle, ort, program))
        monkeypatch.setattr(device_run.Run, "__init__", impatient)
        other = LABELS[:4]  # another shape, so that its run is made anew
        expected = latents(bundle, ort, program, labels=other, seeds=SEEDS[:4])
        actual = latents(bundle, device, program, labels=other, seeds=SEEDS[:4])
        assert np.abs(actual - expected).max() > 1e-2


def test_shapes_outside_the_profile_reach_no_context(plan_bundle, gpu: DoubleGpu, monkeypatch) -> None:
    monkeypatch.setattr(device_loop, "check_shape", lambda *arguments: None)
    monkeypatch.setattr(device_loop, "check_fits", lambda *arguments: None)
    bundle = plan_bundle("gray1_cfg")
    with pytest.raises(DoubleError, match="outside the profile"), plans(bundle) as device:
        latents(bundle, device, bundle.program(steps=3), labels=[1] * 9, seeds=list(range(9)), batch=9)


@pytest.mark.parametrize(("watched", "step"), [(True, 1), (False, None)])
def test_an_image_that_overflows_is_named_and_the_others_come_with_it(
    plan_bundle, gray_bundle: Path, gpu: DoubleGpu, watched: bool, step: int | None
) -> None:
    hot = overheat(gray_bundle, 3)
    write_plans(hot)
    healthy = plan_bundle("gray1_cfg")
    with plans(healthy) as session:
        expected = latents(healthy, session, healthy.program())
    bundle = open_bundle(hot)
    with plans(bundle) as session, pytest.raises(NotFiniteError) as caught:
        latents(bundle, session, bundle.program(), check_finite=watched)
    assert [(image.index, image.label, image.step) for image in caught.value.images] == [(0, 3, step), (2, 3, step)]
    same(caught.value.results[[1, 3, 4]], expected[[1, 3, 4]])
