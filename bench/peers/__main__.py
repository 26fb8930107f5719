"""One guided step of a DiT: our bundles and the peers, in turns in one run (`make peers` installs what can be).

    python -m bench.peers --size S                                  # DiT-S/2 at 256, random weights
    python -m bench.peers --size XL --int8 build/xl-int8 --at-once 3
    python -m bench.peers --engine build/demo/fashion --int8 build/demo/fashion-int8 \\
        --ckpt models/fashion-dit.safetensors --heads 3 --report peers.html

A step is 2 network evaluations per image: guidance. Peers evaluate the whole network in one batch, conditioner
included, without the sampler's update; bundles run their whole step graph, and their conditioner beside it, once an
image. A peer's drift is that of the network's output against PyTorch's in float32; a bundle's is that of latents.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from bench.peers import PEERS  # noqa: E402
from ditedge.benching import show  # noqa: E402
from ditedge.runtime import open_bundle  # noqa: E402
from ditedge.runtime.bench.measure import Contender, contender_of, measure, opened_or_why  # noqa: E402
from ditedge.runtime.bench.page import write_page  # noqa: E402
from ditedge.runtime.bench.record import Record  # noqa: E402
from ditedge.runtime.bench.request import BenchSettings  # noqa: E402
from ditedge.runtime.errors import DitedgeError  # noqa: E402
from ditedge.runtime.files import check_writable, write_text  # noqa: E402
from ditedge.runtime.plans.library import first_gpu  # noqa: E402
from ditedge.runtime.processors import thread_count  # noqa: E402
from ditedge.terminal import progress  # noqa: E402


def arguments_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["S", "B", "L", "XL"], default="S", help="patch 2, 256 px, random weights")
    parser.add_argument("--engine", type=Path, help="a float32 bundle instead, with --ckpt")
    parser.add_argument("--ckpt", type=Path, help="the checkpoint of --engine")
    parser.add_argument("--heads", type=int, default=0, help="of --ckpt, when it has no standard size")
    parser.add_argument("--int8", type=Path, help="an int8 bundle of the same model [default: none is timed]")
    parser.add_argument("--int8-static", type=Path, help="one of `quantize --form tensorrt`, as OpenVINO takes it")
    parser.add_argument("--provider", action="append", help="of the bundles; repeat it [default: those that run each]")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="only these; repeat it")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: the cores that may be used")
    parser.add_argument("--spin", action="store_true", help="our bundles' idle threads wait busily, as peers' do")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=0, help="no round begins later; 0: no limit")
    parser.add_argument("--at-once", type=int, default=5, help="contenders in memory together")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--report", type=Path, help="write a page here")
    given = parser.parse_args()
    if given.engine is not None and given.ckpt is None:
        parser.error("--engine needs the checkpoint that it was made from: --ckpt FILE")
    return given


def main() -> None:
    given = arguments_given()
    try:
        for out in filter(None, (given.json, given.report)):
            check_writable(out)
        with tempfile.TemporaryDirectory() as scratch, progress() as report:
            record = compare(given, Path(scratch), report)
    except DitedgeError as error:
        sys.exit(f"Error: {error}")
    show(record)
    if given.json is not None:
        write_text(given.json, record.model_dump_json(indent=1) + "\n")
    if given.report is not None:
        write_page(record, given.report)


def compare(given: argparse.Namespace, folder: Path, report: Callable[..., None]) -> Record:
    """Our bundles first, then the peers that this machine's kind has."""
    bundle, checkpoint = given.engine, given.ckpt
    what = f"one guided step of {bundle and bundle.name}"
    if bundle is None:
        checkpoint, bundle = folder / "random.pt", folder / f"dit-{given.size.lower()}-2"
        what = f"one guided step of DiT-{given.size}/2 at 256"
        export(given.size, checkpoint, bundle)
    settings = BenchSettings(
        batch=given.batch, threads=given.threads, spin=given.spin, repeats=given.repeats, seconds=given.seconds,
        guidance=4.0, drift_steps=4, at_once=given.at_once,
    )  # fmt: skip
    first = open_bundle(bundle)
    ours = [("ditedge float32", bundle, first, ("cpu", "openvino"))]
    if given.int8 is not None:
        ours.append(("ditedge int8", given.int8, opened_or_why(given.int8), ("cpu",)))
    if given.int8_static is not None:
        ours.append(("ditedge int8, static", given.int8_static, opened_or_why(given.int8_static), ("openvino",)))
    contenders = [
        contender_of(f"{name} on {provider}", path, made, provider, settings, first, folder / f"{name}-{provider}.npy")
        for name, path, made, providers in ours
        for provider in given.provider or providers
    ]
    contenders += peers(given, checkpoint, folder)
    return measure(contenders, settings, what, first, report)


def export(size: str, checkpoint: Path, bundle: Path) -> None:
    from export_size import random_checkpoint

    random_checkpoint(size, 256, 2, checkpoint)
    command = [sys.executable, ROOT / "cli.py", "export", "--ckpt", checkpoint, "--out", bundle]
    subprocess.run(command, check=True, stdout=sys.stderr)


def peers(given: argparse.Namespace, checkpoint: Path, folder: Path) -> list[Contender]:
    """What needs a GPU only where there is one, unless it is asked for."""
    threads, found = thread_count(given.threads), []
    for name, peer in PEERS.items():
        if name not in given.peer if given.peer else peer.gpu and first_gpu() is None:
            continue
        child = Path(__file__).with_name("child.py")
        settings = map(str, (name, checkpoint, given.heads, given.batch, threads, folder))
        environment = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        found.append(Contender(name, [sys.executable, str(child), *settings], environment, limit=peer.rounding))
    return found


if __name__ == "__main__":
    main()
