"""What a change is worth: two checkouts of ditedge, each with a bundle of its own, in turns in one run.

    git worktree add ../before COMMIT
    python bench/checkouts.py ../before:build/demo/fashion .:build/demo/fashion --threads 2
    python bench/checkouts.py ../before:../before/build/demo/fashion-int8 .:build/demo/fashion-int8 --repeats 20
    python bench/checkouts.py ../before:../before/build/demo/fashion-int8 .:build/bench/fashion-int8-static@openvino
    python bench/checkouts.py ../before:build/bench/dit-s-2 .:build/bench/dit-s-2 --steps 4  # fewer than its 20

A contender is CHECKOUT:BUNDLE, or CHECKOUT:BUNDLE@PROVIDER. A step is its share of runs of the bundle's default
program, conditioner and loop included. The checkouts share this environment's libraries; they have to have `Session`
(since November 2026).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
GUIDANCE = 4.0
LEAST_SECONDS = 0.25  # of a turn: caches are warm for most of it


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:8]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="+", metavar="CHECKOUT:BUNDLE[@PROVIDER]", help="the first is held against")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: the cores that may be used")
    parser.add_argument("--steps", type=int, default=0, help="of a run [default: the bundle's program as it is]")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    pairs = [tuple(text.rpartition(":")[::2]) for text in given.contenders]
    if not all(checkout and bundle for checkout, bundle in pairs):
        parser.error("write CHECKOUT:BUNDLE, such as .:build/demo/fashion")
    compare(pairs, given)


def compare(pairs: list[tuple[str, ...]], given: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    from ditedge.runtime.bench.record import ratio_of, timing
    from ditedge.runtime.bench.turns import take_turns
    from ditedge.terminal import progress

    numbers = [str(number) for number in (given.batch, given.threads, given.steps)]
    commands = []
    for checkout, bundle in pairs:
        path, _, provider = bundle.partition("@")
        paths = str(Path(checkout).resolve()), str(Path(path).resolve())
        commands.append([sys.executable, __file__, "--child", *paths, provider or "cpu", *numbers])
    with progress() as report:
        found = take_turns(commands, given.repeats, report)
    first = found[0]
    for name, laps in zip(given.contenders, found, strict=True):
        if isinstance(laps, Exception):
            print(f"{name}: failed: {laps}")
            continue
        step = timing([second for calls in laps.calls["step"] for second in calls])
        line = f"{name}: {step.median_ms:.2f} ms a step (p95 {step.p95_ms:.2f}), {laps.peak_bytes / 1e6:.0f} MB at most"
        ratio = None if isinstance(first, Exception) else ratio_of(first, laps)
        print(line + (f", {ratio.median:.3f}x ({ratio.least:.3f} to {ratio.most:.3f})" if ratio is not None else ""))


def child(checkout: Path, path: Path, provider: str, batch: int, threads: int, steps: int) -> None:
    """With the checkout's ditedge, and this one's stopwatch."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    sys.path.insert(0, str(checkout))
    turns = stopwatch()
    import ditedge
    from ditedge.runtime import EngineOptions, Session, open_bundle
    from ditedge.runtime.loop.noise import SeededNoise

    assert Path(ditedge.__file__).resolve().is_relative_to(checkout), "another ditedge was imported"

    def ready() -> object:
        bundle = open_bundle(path)
        options = EngineOptions(provider=provider, threads=threads)
        program, session = bundle.program(steps=steps or None), Session(bundle, options)
        model = bundle.manifest.model
        labels, noise = [i % model.num_classes for i in range(batch)], SeededNoise([*range(batch)], model.latent_shape)
        guidance = GUIDANCE if model.null_class is not None else 1.0

        def step() -> float:
            start, runs, seconds = time.perf_counter(), 0, 0.0
            while seconds < LEAST_SECONDS:
                session.latents(program, labels, guidance, noise)
                runs, seconds = runs + 1, time.perf_counter() - start
            return seconds / (runs * program.steps)

        return turns.Made({"step": step})

    turns.serve(ready)


def stopwatch() -> ModuleType:
    """This checkout's turns.py under the other one's package, which may have none, or another one."""
    spec = importlib.util.spec_from_file_location(
        "ditedge.runtime.bench.turns", ROOT / "runtime" / "bench" / "turns.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
