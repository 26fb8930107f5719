"""Kills every command that writes, at random moments and at its system calls, and looks at what is left.

    python tools/crash.py [--kills 200] [--seed 0] [--jobs 2] [--only convert | --only convert/17]

The promise: at the target lies nothing (where nothing was), what was there before, or what the command makes, complete
(a bundle replays its golden trajectories). A signal that can be handled leaves nothing else behind, and what SIGKILL
leaves (beside the target, in TMPDIR, in the cache) the next run of the same command removes. A system call that fails
ends the command in a sentence. Of two writers at once, one wins, and none says that it wrote what is not there.
Exit code 1 when the promise is broken. `--only` with the number and the same seed repeats a trial, to about the moment.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.crash_commands import commands  # noqa: E402
from tools.crash_processes import (  # noqa: E402
    CLI,
    STRACE,
    Prepared,
    launch,
    messages,
    names_below,
    prepare,
    strike,
    trial_folder,
    wait,
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KINDS = ("moment", "call", "writers", "moment", "call", "error", "twice", "call", "writers", "moment", "call", "error")
KILLS = ("moment", "call", "twice")
ERRORS = ("ENOSPC", "EIO", "EACCES")
INTERPRETER = 0.1  # seconds of Python's own start, before the first line of ours
ENDS = {0, *(128 + number for number in SIGNALS), *(-number for number in SIGNALS)}  # exit codes of who got a signal


@dataclass
class Outcome:
    """What a trial did (`what`), found at the target, left behind until the next run, and what speaks against it."""

    command: str
    number: int
    kind: str
    what: str = ""
    found: str = ""
    debris: bool = False
    faults: list[str] = field(default_factory=list)


def trial(prepared: Prepared, number: int, seed: int, parent: Path) -> Outcome:
    """One run that is killed, made to fail, or has a rival; everything but the exact moment follows from the seed."""
    name, kind = prepared.command.name, KINDS[number % len(KINDS)]
    outcome, chance = Outcome(name, number, kind), random.Random(f"{seed}/{name}/{number}")
    start = chance.choice(("absent", "old", "old"))
    with trial_folder(prepared.start[start], parent, f"{name}-{number:03d}") as folder:
        if kind == "writers":
            run_two_writers(prepared, folder, chance, outcome)
        else:
            code = run_once(prepared, folder, chance, outcome)
            outcome.found = look(prepared, folder, outcome)
            check_words(code, folder, outcome)
        if outcome.found == "absent" and start == "old":
            outcome.faults.append("what was there is gone")
        check_debris(prepared, folder, outcome)
    outcome.what += f", onto {'an older one' if start == 'old' else 'nothing'}"
    return outcome


def run_once(prepared: Prepared, folder: Path, chance: random.Random, outcome: Outcome) -> int:
    """The newer variant, with a signal at a moment, or with a signal or an error at a system call -> its exit code."""
    number = signal.SIGINT if outcome.kind == "twice" else chance.choice(SIGNALS)
    if outcome.kind in ("call", "error") and prepared.calls:
        call = chance.choice(sorted(prepared.calls))
        n = chance.choice(prepared.calls[call])
        blow = f"error={chance.choice(ERRORS)}" if outcome.kind == "error" else f"signal={number.name}"
        trace = folder.with_suffix(".trace")
        inject = ("-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:{blow}:when={n}")
        outcome.what = f"{blow} at {call} {n}"
        process = launch(prepared.command, prepared.command.newer, folder, strace=(*STRACE, *inject))
    else:
        seconds, later = chance.uniform(INTERPRETER, 1.05 * prepared.seconds), chance.uniform(0, 0.3)
        outcome.what = f"signal={number.name} at {seconds:.2f} s"
        process = launch(prepared.command, prepared.command.newer, folder)
        strike(process, number, seconds, group=chance.random() < 0.5)
        if outcome.kind == "twice":
            outcome.what += f" and {later:.2f} s later"
            strike(process, number, later, group=False)
    return waited(process, outcome)


def run_two_writers(prepared: Prepared, folder: Path, chance: random.Random, outcome: Outcome) -> None:
    """Both variants at once onto one target; one of them may be killed meanwhile."""
    command, pause = prepared.command, chance.uniform(0, prepared.seconds)
    moment, victim = chance.uniform(0, prepared.seconds), chance.choice((0, 1, None, None))
    number = chance.choice(SIGNALS)
    outcome.what = f"another writer after {pause:.2f} s"
    pair = [launch(command, command.older, folder, "err0")]
    time.sleep(pause)
    pair.append(launch(command, command.newer, folder, "err1"))
    if victim is not None:
        outcome.what += f", signal={number.name} to writer {victim} {moment:.2f} s later"
        strike(pair[victim], number, moment, group=True)
    codes = [waited(process, outcome) for process in pair]
    outcome.found = look(prepared, folder, outcome)
    told = [messages(folder, f"err{i}") for i in range(2)]
    for i, code in enumerate(codes):
        if i != victim and (code not in (0, 2) or "Traceback" in told[i] or (code == 2 and "Error: " not in told[i])):
            outcome.faults.append(f"writer {i}: exit code {code}: {told[i][-300:]}")
    if victim is None and 0 not in codes:
        outcome.faults.append(f"no writer won: {told[0][-200:]} / {told[1][-200:]}")
    if victim is None and codes.count(0) == 1 and outcome.found != ("old", "new")[codes.index(0)]:
        outcome.faults.append(f"writer {codes.index(0)} says that it wrote, and the other one's result lies there")


def waited(process: subprocess.Popen[bytes], outcome: Outcome) -> int:
    code, fault = wait(process)
    outcome.faults += [fault] if fault else []
    return code


def look(prepared: Prepared, folder: Path, outcome: Outcome) -> str:
    """What lies at the target: "absent", "old", "new", or "broken" with a fault."""
    target = folder / "place" / prepared.command.target
    if not os.path.lexists(target):
        return "absent"
    try:
        identity = prepared.command.identify(target)
    except Exception as error:  # whatever a broken file raises
        outcome.faults.append(f"the target is not whole: {type(error).__name__}: {error}")
        return "broken"
    if identity not in prepared.known:
        outcome.faults.append(f"neither the old nor the new result: {identity}")
    return prepared.known.get(identity, "broken")


def check_words(code: int, folder: Path, outcome: Outcome) -> None:
    """The exit code and the last message against what was found."""
    told = messages(folder)
    if told.endswith("KeyboardInterrupt"):
        return  # Python's own start; from the first line of ours on, the exception has another name
    if "Traceback" in told and str(ROOT) in told:
        outcome.faults.append(f"a traceback: {told[-600:]}")
    if code == 0 and outcome.found != "new":
        outcome.faults.append("says that it wrote")
    if code != 0 and outcome.found == "new" and "no result was written" in told:
        outcome.faults.append("says that no result was written")
    if outcome.kind != "error":
        if code not in ENDS:
            outcome.faults.append(f"exit code {code}: {told[-300:]}")
        return
    trace = folder.with_suffix(".trace").read_text(errors="replace").splitlines()
    hit = next((line.split(" ", 1)[-1] for line in trace if "(INJECTED)" in line), "never reached")
    outcome.what += f" ({hit.replace(str(folder), '')[:160]})"
    sentence = code == 2 and told.split("\n")[-1].startswith("Error: ") and "/" in told.split("\n")[-1]
    if str(folder) in hit and code != 0 and not sentence:
        outcome.faults.append(f"no sentence with a path: exit code {code}, {told[-300:]}")


def check_debris(prepared: Prepared, folder: Path, outcome: Outcome) -> None:
    """Only SIGKILL, a second Ctrl-C and a failing system call may leave something, until the next run."""
    left = sorted(names_below(folder) - prepared.names)
    if not left:
        return
    outcome.debris = True
    if outcome.kind not in ("error", "twice") and "SIGKILL" not in outcome.what:
        outcome.faults.append(f"left behind: {', '.join(left[:5])}")
    if launch(prepared.command, prepared.command.newer, folder, "next").wait() != 0:
        outcome.faults.append(f"the next run fails: {messages(folder, 'next')[-300:]}")
    elif look(prepared, folder, outcome) != "new":
        outcome.faults.append("the next run wrote nothing")
    if left := sorted(names_below(folder) - prepared.names):
        outcome.faults.append(f"the next run leaves {', '.join(left[:5])}")


def table(outcomes: list[Outcome]) -> str:
    columns = ("kills", "errors", "writers", "absent", "old", "new", "debris", "faults")
    lines = [f"{'command':12}" + "".join(f"{column:>9}" for column in columns)]
    for name in [*dict.fromkeys(outcome.command for outcome in outcomes), "all"]:
        some = [outcome for outcome in outcomes if name in (outcome.command, "all")]
        found, kinds = Counter(outcome.found for outcome in some), Counter(outcome.kind for outcome in some)
        kills = sum(kinds[kind] for kind in KILLS)
        debris, faults = sum(outcome.debris for outcome in some), sum(bool(outcome.faults) for outcome in some)
        row = (kills, kinds["error"], kinds["writers"], found["absent"], found["old"], found["new"], debris, faults)
        lines.append(f"{name:12}" + "".join(f"{value:9d}" for value in row))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="in all; beside them system calls fail, and two write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--only", default="", help="one command, or one trial of it: convert/17")
    options = parser.parse_args()
    only, _, only_one = options.only.partition("/")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        parent = Path(name)
        chosen, not_run = commands(parent, CLI, only)
        each = options.kills * len(KINDS) / sum(kind in KILLS for kind in KINDS) / sum(one.share for one in chosen)
        print(f"running {', '.join(command.name for command in chosen)} undisturbed", flush=True)
        ready = list(pool.map(lambda command: prepare(command, parent), chosen))
        waiting = [
            pool.submit(trial, one, number, options.seed, parent)
            for one in ready
            for number in ([int(only_one)] if only_one else range(math.ceil(each * one.command.share)))
        ]
        outcomes = []
        for i, future in enumerate(waiting, start=1):
            outcome = future.result()
            outcomes.append(outcome)
            print(
                f"[{i}/{len(waiting)}] {outcome.command}/{outcome.number}: {outcome.what}: {outcome.found}", flush=True
            )
            for fault in outcome.faults:
                print(
                    f"    FAULT (--seed {options.seed} --only {outcome.command}/{outcome.number}): {fault}", flush=True
                )
    print(table(outcomes), *(f"not run: {line}" for line in not_run), sep="\n")
    sys.exit(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    main()
