"""Plans whose work cannot be captured as a CUDA graph run all the same."""

from __future__ import annotations

import pytest

from ditedge.runtime import Session
from ditedge.runtime.errors import EngineError
from tests.doubles.gpu_double import DoubleGpu
from tests.runtime.loop.on_plans import latents, plans, same


@pytest.mark.parametrize("refused", ["begin_capture", "end_capture"])
@pytest.mark.parametrize("good", [0, 1])
def test_a_failed_capture_is_said_and_the_steps_are_enqueued(
    plan_bundle, gpu: DoubleGpu, monkeypatch: pytest.MonkeyPatch, refused: str, good: int
) -> None:
    """The first capture fails, or the second, when a graph of the first steps is there: the numbers are the same."""
    bundle, calls, real = plan_bundle("gray1_cfg"), [], getattr(gpu, refused)
    program = bundle.program(steps=5)

    def fail(stream: int) -> int:
        calls.append(stream)
        if len(calls) <= good:
            return real(stream)
        gpu.capture = None  # CUDA drops a capture that it refuses
        raise EngineError("cudaErrorStreamCaptureUnsupported")

    monkeypatch.setattr(gpu, refused, fail)
    watched = {"on_step": lambda event: None}  # a graph of each step
    with Session(bundle) as ort, plans(bundle) as device:
        expected = latents(bundle, ort, program)
        with pytest.warns(RuntimeWarning, match="enqueued anew, which is slower .*CaptureUnsupported"):
            same(latents(bundle, device, program, **watched), expected)
        same(latents(bundle, device, program, **watched), expected)  # without a second try, and a word
        captures = [entry for entry in gpu.log if entry == "capture"]
        assert len(captures) == good and len(calls) <= good + 2
    assert not gpu.live and not gpu.graphs
