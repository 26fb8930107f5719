"""Open-loop load for `ditedge serve`: Poisson arrivals of requests of several step counts, whether or not it keeps up.

    ditedge serve --engine build/demo/fashion --port 8000 &
    python bench/serve.py --address http://127.0.0.1:8000 --rate 4 --seconds 60 --steps 4,50
    python bench/serve.py --address http://127.0.0.1:8000 --calibrate --steps 4,50       # images a second that it can
    python bench/serve.py --times 3 --seconds 600 --pid $! --svg memory.svg              # overload, with its memory

Prints JSON: by step count the latencies (from the moment that a request was due, so a late sender hides nothing),
images a second, how many were refused (429) or failed, how full turns were and what they cost beside the engine.
Against a server with `--max-batch 1`, and those of bench/serve_peers.py, it says what sharing steps is worth.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from bench.svg import line_chart  # noqa: E402

PATIENCE = 600  # seconds for an answer
BODY = {"prompt": "1"}  # of every request


@dataclass
class Record:
    """What became of the requests of one load."""

    latencies: dict[int, list[float]] = field(default_factory=dict)  # by steps, of those that were answered 200
    statuses: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, steps: int, status: int, seconds: float) -> None:
        with self.lock:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.latencies.setdefault(steps, []).append(seconds)

    @property
    def done(self) -> int:
        return self.statuses.get(200, 0)


def ask(address: str, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
    """Status 0: no answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
    try:
        text = json.dumps(body).encode() if body is not None else None
        connection.request(method, path, text, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def load(address: str, rate: float, seconds: float, steps: list[int], seed: int = 0) -> Record:
    """`rate` images a second, of step counts that are equally likely; waits for the last answer."""
    chosen, record, threads = random.Random(seed), Record(), []
    due = time.monotonic()
    end = due + seconds
    while (due := due + chosen.expovariate(rate)) < end:
        time.sleep(max(0.0, due - time.monotonic()))
        count = chosen.choice(steps)
        thread = threading.Thread(target=_one, args=(address, record, count, due, chosen.randrange(2**32)))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    return record


def _one(address: str, record: Record, steps: int, due: float, seed: int) -> int:
    """The status, which the record has, too."""
    status, _ = ask(address, "POST", "/v1/images/generations", {**BODY, "num_inference_steps": steps, "seed": seed})
    record.add(steps, status, time.monotonic() - due)
    return status


def crowd(address: str, steps: list[int], images: int, at_a_time: int, again: float = 0.02) -> Record:
    """So many clients, each of whom asks for an image as soon as it has one, until `images` are made.

    again: seconds after which one that was refused comes again, whatever it was told.
    """
    record, numbers = Record(), itertools.count()

    def work() -> None:
        while record.done < images:
            number = next(numbers)
            status = _one(address, record, steps[number % len(steps)], time.monotonic(), number)
            if status == 429:
                time.sleep(again)
            elif status != 200:
                return

    workers = [threading.Thread(target=work) for _ in range(at_a_time)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return record


def capacity(address: str, steps: list[int], images: int = 64, at_a_time: int = 32) -> float:
    """Images a second with always so many asked for."""
    began = time.monotonic()
    return crowd(address, steps, images, at_a_time).done / (time.monotonic() - began)


def memory(pid: int) -> float:
    """MB that a process has in memory now, of Linux."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def watched(pid: int | None, every: float = 1.0) -> Iterator[list[tuple[float, float]]]:
    """(seconds since the beginning, MB) of a process while the block runs; nothing without its id."""
    found: list[tuple[float, float]] = []
    over, began = threading.Event(), time.monotonic()

    def look() -> None:
        while pid is not None and not over.is_set():
            found.append((round(time.monotonic() - began, 1), round(memory(pid), 1)))
            over.wait(every)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@dataclass(frozen=True)
class Snapshot:
    """A server at a moment. memory: MB, cpu: seconds of all its threads so far; None without its process id.

    turn_seconds: of all turns so far; step_seconds: of them in the engine.
    """

    turns: int
    image_steps: int
    turn_seconds: float
    step_seconds: float
    memory: float | None
    cpu: float | None


def snapshot(address: str, pid: int | None) -> Snapshot:
    """Of `ditedge serve`; another server has no turns."""
    status, text = ask(address, "GET", "/metrics")
    lines = text.decode().splitlines() if status == 200 else []
    said = dict(line.split(" ") for line in lines if line.startswith("ditedge_") and "{" not in line)
    turns, image_steps = (int(float(said.get(f"ditedge_{name}_total", 0))) for name in ("turns", "image_steps"))
    in_turns, in_steps = (float(said.get(f"ditedge_{name}_seconds_total", 0)) for name in ("turn", "step"))
    cpu = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) if pid else None
    seconds = cpu / os.sysconf("SC_CLK_TCK") if cpu is not None else None
    return Snapshot(turns, image_steps, in_turns, in_steps, memory(pid) if pid else None, seconds)


def summary(record: Record, seconds: float, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    said: dict[str, Any] = {"statuses": record.statuses, "images_per_second": round(record.done / seconds, 3)}
    if after.turns > before.turns:
        said["images_in_a_turn"] = round((after.image_steps - before.image_steps) / (after.turns - before.turns), 2)
        in_turns, in_steps = after.turn_seconds - before.turn_seconds, after.step_seconds - before.step_seconds
        said["around_the_engine"] = {
            "ms_a_turn": round(1000 * (in_turns - in_steps) / (after.turns - before.turns), 3),
            "percent_of_a_turn": round(100 * (1 - in_steps / in_turns), 2),
        }
    if before.memory is not None and after.memory is not None and before.cpu is not None and after.cpu is not None:
        said["memory_mb"] = {"before": round(before.memory, 1), "after": round(after.memory, 1)}
        said["cpu_seconds_per_image"] = round((after.cpu - before.cpu) / max(1, record.done), 4)
    said["seconds"] = {
        steps: {f"p{part}": round(quantile(found, part / 100), 3) for part in (50, 95, 99)}
        for steps, found in sorted(record.latencies.items())
    }
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=float, default=1.0, help="images a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], default=[4, 50])
    parser.add_argument("--calibrate", action="store_true", help="say how many images a second it can, and end")
    parser.add_argument("--times", type=float, help="instead of --rate: so many times what it can, measured first")
    parser.add_argument("--prompt", default="1", help="a class, or words")
    parser.add_argument("--pid", type=int, help="of the server, for its memory and processor time (Linux)")
    parser.add_argument("--svg", type=Path, help="file for its memory over time; needs --pid")
    given = parser.parse_args()
    if given.svg is not None and given.pid is None:
        parser.error("--svg needs --pid")
    BODY["prompt"] = given.prompt
    if given.calibrate:
        print(json.dumps({"images_per_second": round(capacity(given.address, given.steps), 3)}))
        return
    rate = given.times * capacity(given.address, given.steps) if given.times else given.rate
    before, began = snapshot(given.address, given.pid), time.monotonic()
    with watched(given.pid) as memories:
        record = load(given.address, rate, given.seconds, given.steps)
    seconds = time.monotonic() - began
    if given.svg is not None:
        points = [(second / 60, megabytes) for second, megabytes in memories]
        given.svg.write_text(line_chart(points, "minutes", "MB of memory"))
    said = {"rate": round(rate, 3)} | summary(record, seconds, before, snapshot(given.address, given.pid))
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
