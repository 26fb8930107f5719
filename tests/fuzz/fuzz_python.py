"""Hostile files for everything in Python that reads one: each is read, or refused with a DitedgeError in a moment.

    python -m tests.fuzz.fuzz_python --seconds 150                        as `make fuzz` does
    python -m tests.fuzz.fuzz_python --cases 20000 --seed 7               so many cases, however long they take
    python -m tests.fuzz.fuzz_python --seed 7 --first 4711 --cases 1      one of them again

A case is a finding when it raises anything but a DitedgeError or an error of click, warns, takes more than 10 seconds or 1 GB, or
ends the process. Its files are kept in `--out`. Cases run in a child, which is started again where one has killed it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

SECONDS, MEGABYTES = 10, 1024  # of one case; seconds of one processor, so that a busy machine finds nothing
KILLED_AFTER = 60  # seconds of waiting, or in code that no signal reaches
ADDRESS_SPACE = 4 << 30  # bytes more than a child has at its start: this machine is not to suffer
Result = dict[str, Any]


class TooSlow(BaseException):
    """Past `except Exception`."""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--cases", type=int, default=1 << 40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", help="one target of tests/fuzz/readers.py")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz-python"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    if options.child:
        run_cases(options)
        return
    start, results, slowest, largest = time.monotonic(), 0, 0.0, 0.0
    findings: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    for result in supervised(options):
        results += 1
        cases[result["target"]] += 1
        taken[result["target"]] += result["taken"]
        slowest, largest = max(slowest, result["seconds"]), max(largest, result["megabytes"])
        if result["finding"]:
            kind = f"{result['target']}: {result['finding'].splitlines()[-1][:150]}"
            findings[kind] += 1
            told = result["finding"] if findings[kind] == 1 else kind
            print(f"FINDING case {result['case']}, kept in {result['kept']}:\n{told}", flush=True)
    print(
        "taken, of so many: "
        + ", ".join(f"{target} {taken[target]}/{count}" for target, count in sorted(cases.items()))
    )
    for kind, count in findings.most_common():
        print(f"{count:6} x {kind}")
    print(
        f"{results} cases of seed {options.seed} in {time.monotonic() - start:.0f} s: {findings.total()} findings; "
        f"the slowest took {slowest:.1f} s, the largest {largest:.0f} MB"
    )
    sys.exit(bool(findings))


def supervised(options: argparse.Namespace) -> Iterator[Result]:
    """The results of all cases, from as many children as it takes."""
    end, case, last = time.monotonic() + options.seconds, options.first, options.first + options.cases
    while case < last and time.monotonic() < end:
        running: Result | None = None
        with _child(options, case, last, end - time.monotonic()) as child:
            assert child.stdout is not None
            for line in child.stdout:
                told = json.loads(line)
                case = told["case"] + 1
                running = None if "finding" in told else told
                if running is None:
                    yield told
        if child.returncode == 0:
            return
        if running is None:
            raise SystemExit(f"the child ended with {child.returncode}, in no case: see {options.out / 'stderr'}")
        text = (
            f"the process ended with {child.returncode}: {(options.out / 'stderr').read_text(errors='replace')[-3000:]}"
        )
        yield running | {
            "seconds": 0.0,
            "megabytes": 0.0,
            "finding": text,
            "taken": False,
            "kept": str(_keep(options, running)),
        }


def _child(options: argparse.Namespace, first: int, last: int, seconds: float) -> subprocess.Popen[str]:
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.fuzz_python"]
    command += ["--child", "--seed", options.seed, "--first", first, "--cases", last - first]
    command += ["--seconds", seconds, "--out", options.out]
    command += ["--only", options.only] if options.only else []
    with (options.out / "stderr").open("w") as errors:
        return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True)


def run_cases(options: argparse.Namespace) -> None:
    """Two lines a case on the standard output: which begins, and its result."""
    from tests.fuzz.readers import targets

    end = time.monotonic() + options.seconds
    known = targets(options.out.absolute() / "around")
    chosen = [known[options.only]] if options.only else [*known.values()]
    watch_time()
    used = _status("VmSize") * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, used + ADDRESS_SPACE))
    for case in range(options.first, options.first + options.cases):
        if time.monotonic() > end:
            break
        target = chosen[case % len(chosen)]
        folder = options.out.absolute() / "around" / target.name
        told = {"case": case, "target": target.name, "folder": str(folder)}
        files = target.make(Random(f"{options.seed}/{case}"))
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        print(json.dumps(told | {"files": [*files]}), flush=True)
        told |= run_case(target.read, folder)
        told["kept"] = str(_keep(options, told | {"files": [*files]})) if told["finding"] else None
        for name in files:
            (folder / name).unlink(missing_ok=True)
        print(json.dumps(told), flush=True)


def run_case(read: Any, folder: Path) -> Result:
    """Reads, and says how long it took, how much memory, and what was wrong with that."""
    import click

    from ditedge.runtime.errors import DitedgeError

    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
    before, start, finding, taken = _status("VmRSS"), time.process_time(), None, False
    faulthandler.dump_traceback_later(KILLED_AFTER, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(folder)
        taken = True
    except (DitedgeError, click.ClickException):
        pass
    except BaseException:
        finding = traceback.format_exc(limit=-12)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
    megabytes = (_status("VmHWM") - before) / 1024
    if megabytes > MEGABYTES and finding is None:
        finding = f"it took {megabytes:.0f} MB"
    seconds = time.process_time() - start
    return {"seconds": round(seconds, 3), "megabytes": round(megabytes, 1), "finding": finding, "taken": taken}


def watch_time() -> None:
    """From now on an alarm is raised, wherever Python code runs."""
    signal.signal(signal.SIGPROF, _too_slow)


def _too_slow(*_: Any) -> None:
    raise TooSlow(f"more than {SECONDS} s")


def _status(name: str) -> int:
    """A field of /proc/self/status, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _keep(options: argparse.Namespace, told: Result) -> Path:
    """Copies a case's files to where they stay."""
    kept = options.out / "found" / f"{told['target']}-{options.seed}-{told['case']}"
    for name in told["files"]:
        source = Path(told["folder"]) / name
        if source.is_file():
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, kept / name)
    return kept


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    main()
