"""What a bundle has to time, in a process that imports nothing from the folder in which the user stands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import EngineOptions, generate, open_bundle
from ditedge.runtime.bench.contender import PARTS, Wanted, bundle_contender, bundle_parts
from ditedge.runtime.errors import BundleError
from tests.conftest import BUNDLES


@pytest.mark.parametrize(
    "planted", ["numpy.py", "json.py", "runpy.py", "ditedge.py", "sitecustomize.py", "onnxruntime.py"]
)
def test_nothing_runs_from_the_working_folder(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bundle could carry it. An argument that is no bundle makes the child end with a sentence, all imports done."""
    (tmp_path / planted).write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = bundle_contender(Path("no-bundle"), EngineOptions(), Wanted())
    done = subprocess.run(command, capture_output=True, text=True)
    assert "does not exist" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_is_measured_is_what_was_opened(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened the bundle has seen to its signature: the process is told its hash, and runs no other one."""
    folder = golden_bundle("gray1_cfg")
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(tmp_path / "none.pem"))
    bundle = open_bundle(folder, trusted_keys=())
    one_step = Wanted(1, 1.0, ("step",))
    bundle_parts(folder, EngineOptions(threads=1), one_step, bundle.sha256).parts["step"]()
    with pytest.raises(BundleError, match="was replaced while its speed was measured"):
        bundle_parts(folder, EngineOptions(threads=1), one_step, "0" * 64)


def test_a_model_of_prompts_has_a_context() -> None:
    """Beside the graphs of every model; drift is measured on latents that any machine makes of the same seeds."""
    made = bundle_parts(BUNDLES / "pixart", EngineOptions(threads=1), Wanted(2, 4.0))
    assert list(made.parts) == [part for part in PARTS if part in ("conditioner", "context", "step", "decoder", "loop")
                                and (part != "decoder" or "decoder" in open_bundle(BUNDLES / "pixart").manifest.graphs)]  # fmt: skip
    assert made.facts["evaluations"] == 4
    for name, part in made.parts.items():
        told = part()
        assert (name == "loop") == isinstance(told, float)


def test_a_short_run_leaves_its_latents(tmp_path: Path) -> None:
    bundle, file = BUNDLES / "gray1_cfg", tmp_path / "latents.npy"
    bundle_parts(bundle, EngineOptions(threads=1), Wanted(2, 3.0, drift_steps=4, drift_file=str(file)))
    program = open_bundle(bundle).program(steps=4)
    expected = generate(open_bundle(bundle), [0, 1], [0, 1], program=program, guidance=3.0, output="latents")
    assert np.array_equal(np.load(file), expected)


@pytest.mark.parametrize("cached", [1, 1 << 40])
def test_a_step_of_a_large_batch_is_what_the_loop_does(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls of the engine, with the same numbers: in pieces that caches hold, or all at once."""
    from ditedge.runtime.loop import host_loop

    monkeypatch.setattr(host_loop, "CACHED_BYTES", cached)
    seen: list[int] = []
    real = host_loop.open_engine

    def spied(graph: object, options: object) -> object:
        engine = real(graph, options)
        run = engine.run

        def counted(inputs: dict, outputs: dict) -> None:
            seen.extend([len(outputs["next_state"])] if "next_state" in outputs else [])
            run(inputs, outputs)

        engine.run = counted
        return engine

    monkeypatch.setattr(host_loop, "open_engine", spied)
    made = bundle_parts(BUNDLES / "gray1_cfg", EngineOptions(threads=1), Wanted(3, 2.0, ("step",)))
    made.parts["step"]()
    assert seen == ([1, 1, 1] if cached == 1 else [3])
