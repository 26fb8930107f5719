"""One picture, all of it: the reference recipe in PyTorch against bundles with a few-step program, in turns.

    python bench/image.py --ckpt xl.pt --vae sd-vae --engine xl-int8 --program tuned-8

The reference recipe is that of DiT's own sample.py: 250 steps of DDPM, every one guided, in PyTorch eager and float32,
then the VAE's decoder. One of its steps and one decoding are timed (the network's two evaluations; noise and the
sampler's arithmetic are left out, in its favour), and a picture is 250 of the one and one of the other. A bundle's
picture is timed whole: conditioner, steps, noise, loop, decoder. Random weights take the same time as trained ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ditedge.runtime.bench.machine import this_machine  # noqa: E402
from ditedge.runtime.bench.turns import Laps, Made, serve, take_turns  # noqa: E402
from ditedge.runtime.errors import DitedgeError  # noqa: E402

REFERENCE_STEPS = 250


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, type=Path, help="of the reference: a class-conditional checkpoint")
    parser.add_argument("--heads", type=int, help="of the reference, where its size is no standard one")
    parser.add_argument("--vae", type=Path, help="of the reference: its VAE's folder; none for a model of pixels")
    parser.add_argument("--engine", required=True, type=Path, action="append", help="a bundle with a decoder; several")
    parser.add_argument("--program", help="a ready program of the bundles, or a program file; default: their own")
    parser.add_argument("--threads", type=int, default=0, help="0: the cores that may be used")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", choices=["reference", "bundle"], help=argparse.SUPPRESS)
    return parser.parse_args()


def reference(given: argparse.Namespace) -> Made:
    """One guided step of one picture, and its decoding, in PyTorch."""
    import torch

    from bench.peers.child import inputs_of
    from ditedge.export.sources.read import read_source
    from ditedge.export.sources.vae_checkpoint import read_vae

    if given.threads:
        torch.set_num_threads(given.threads)
    source = read_source(given.ckpt, heads=given.heads)
    model, inputs = source.model(), inputs_of(source.config, 1)

    @torch.no_grad()
    def step() -> None:
        model(*inputs)

    if given.vae is None:
        return Made({"step": step})
    decoder = read_vae(given.vae).decoder

    @torch.no_grad()
    def decode() -> None:
        decoder(inputs[0][:1])

    return Made({"step": step, "decoder": decode})


def whole(given: argparse.Namespace) -> Made:
    """A picture of the one bundle that is given, as `run` makes it."""
    from ditedge.calibration.tune.shapes import passes_of
    from ditedge.runtime import EngineOptions, Session, generate, open_bundle
    from ditedge.runtime.samplers.program import read_program

    bundle = open_bundle(given.engine[0])
    session, name = Session(bundle, EngineOptions(threads=given.threads)), given.program
    program = read_program(Path(name)) if name and Path(name).is_file() else bundle.program(name)

    def picture() -> None:
        generate(bundle, [0], [0], program=program, session=session)

    return Made({"picture": picture}, {"passes": passes_of(program, bundle)})


def command(given: argparse.Namespace, kind: str, engine: Path) -> list[str]:
    line = [sys.executable, __file__, "--child", kind, "--ckpt", str(given.ckpt), "--engine", str(engine)]
    for name in ("heads", "vae", "program"):
        if getattr(given, name) is not None:
            line += [f"--{name}", str(getattr(given, name))]
    return [*line, "--threads", str(given.threads)]


def reference_seconds(laps: Laps) -> list[float]:
    """Of a picture, by round."""
    decoder = laps.rounds("decoder") if "decoder" in laps.calls else [0.0] * len(laps.rounds("step"))
    return [REFERENCE_STEPS * step + decode for step, decode in zip(laps.rounds("step"), decoder, strict=True)]


def told(name: str, seconds: list[float], laps: Laps, first: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(first, seconds, strict=True))
    middle, passes = len(seconds) // 2, laps.facts.get("passes", 2 * REFERENCE_STEPS)
    spread = f"{ratios[middle]:.1f}x ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    return (
        f"{name}: {passes} passes, {sorted(seconds)[middle]:.2f} s a picture, {spread}, {laps.peak_bytes / 1e9:.2f} GB"
    )


def main() -> None:
    given = parse_arguments()
    if given.child:
        serve(lambda: {"reference": reference, "bundle": whole}[given.child](given))
        return
    from ditedge.terminal import progress

    commands = [command(given, "reference", given.engine[0])]
    commands += [command(given, "bundle", engine) for engine in given.engine]
    with progress() as report:
        found = take_turns(commands, given.repeats, report)
    machine = this_machine()
    print(f"{machine.processor}, {machine.kernels}, {machine.processors} processors, load {machine.load}")
    if isinstance(found[0], Exception):
        raise SystemExit(f"the reference: {found[0]}")
    first = reference_seconds(found[0])
    print(told(f"reference, {REFERENCE_STEPS} steps of DDPM, PyTorch float32", first, found[0], first))
    for engine, laps in zip(given.engine, found[1:], strict=True):
        failed = isinstance(laps, Exception)
        print(f"{engine}: failed: {laps}" if failed else told(str(engine), laps.rounds("picture"), laps, first))


if __name__ == "__main__":
    try:
        main()
    except DitedgeError as error:
        raise SystemExit(str(error)) from None
