"""What a run on a device captures and copies: neither grows with steps that nobody looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import Session, StepEvent
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.loop import Watcher
from tests.doubles.gpu_double import DoubleGpu
from tests.runtime.loop.on_plans import latents, plans, same


def never(step: int) -> bool:
    return False


def fifth(step: int) -> bool:
    return step % 5 == 0


# on_step's `looks`, None without on_step -> graphs, and states that come to the host in a run of N steps
WATCHED = {
    "unwatched": (None, 2, lambda steps: 0),
    "a progress bar": (never, 2, lambda steps: 0),
    "previews": (fifth, 4, lambda steps: steps // 5),
    "every step": (lambda step: True, 2, lambda steps: steps),
}


@pytest.mark.parametrize("steps", [10, 60])
@pytest.mark.parametrize("watched", WATCHED)
def test_graphs_and_copies_to_the_host(plan_bundle, gpu: DoubleGpu, watched: str, steps: int) -> None:
    """In three runs: enqueued plainly, captured, replayed."""
    bundle, (looks, graphs, states) = plan_bundle("gray1_cfg"), WATCHED[watched]
    program, told, looked_at = bundle.program(sampler="ddim", steps=steps), [], []

    def tell(event: StepEvent) -> None:
        told.append(event.step)
        if looks is not None and looks(event.step):
            looked_at.append(float(event.latents.sum()))

    with plans(bundle) as device:
        for _ in range(3):
            latents(bundle, device, program, labels=[1], seeds=[2], on_step=Watcher(tell, looks) if looks else None)
        assert len(gpu.graphs) == gpu.log.count("capture") <= graphs
    assert gpu.log.count("download") == 3 * (states(steps) + 1)
    assert told == (3 * list(range(1, steps + 1)) if looks else []) and len(looked_at) == 3 * states(steps)


def test_a_state_that_was_not_asked_for_is_refused(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    with (
        plans(bundle) as device,
        pytest.raises(RequestError, match="state after step 1 was not asked for: say so in the Watcher's `looks`"),
    ):
        latents(bundle, device, bundle.program(steps=6), on_step=Watcher(lambda event: event.latents, never))


def test_what_is_looked_at_is_what_the_host_has(plan_bundle, gpu: DoubleGpu) -> None:
    bundle, seen = plan_bundle("gray1_cfg"), {"device": {}, "ort": {}}
    program = bundle.program(sampler="ddpm", steps=23)
    with Session(bundle) as ort, plans(bundle) as device:
        for name, session in (("ort", ort), ("device", device)):
            keep = lambda event, to=seen[name]: to.update({event.step: event.state.copy()}) if fifth(event.step) else 0  # noqa: E731
            latents(bundle, session, program, on_step=Watcher(keep, fifth))
    assert list(seen["device"]) == [5, 10, 15, 20]
    for step, state in seen["ort"].items():
        same(seen["device"][step], state)


@pytest.mark.parametrize(
    ("options", "downloads"), [([], 0), (["--preview-every", "10"], 2), (["--check-finite"], 20)], ids=str
)
def test_the_command_copies_what_it_shows(plan_bundle, gpu: DoubleGpu, tmp_path: Path, options, downloads: int) -> None:
    from click.testing import CliRunner

    from ditedge.cli import main

    plan = plan_bundle("gray1_cfg").folder / "engines" / "double" / "dit.plan"
    command = ["run", "--engine", str(plan), "--steps", "20", "-o", str(tmp_path / "a.png"), *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    pictures = 1 + (2 if "--preview-every" in options else 0)
    assert gpu.log.count("download") == downloads + 1 + pictures  # states, the latents, what was decoded
    assert gpu.log.count("capture") <= 2


def test_previews_cost_no_bit(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=12)
    with plans(bundle) as device:
        plain = latents(bundle, device, program)
        for looks in (never, fifth, lambda step: True):
            assert np.array_equal(latents(bundle, device, program, on_step=Watcher(lambda event: None, looks)), plain)
