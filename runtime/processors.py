"""How many processors this process may use: more threads than that only wait for each other."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_processors(root: Path = ROOT) -> int:
    """By affinity and by the CPU quotas of the process's control groups (versions 1 and 2), rounded up; at least 1.

    root: "/", or a folder with a copy of /proc/self/cgroup and /sys/fs/cgroup.
    """
    return _within_quota(len(_allowed()), root)


def thread_count(wanted: int, root: Path = ROOT) -> int:
    """Threads for an engine: `wanted`, at most the usable processors; 0 is one for each core that may be used.

    Two processors of one core share its arithmetic: a second thread there gains a matrix product nothing.
    """
    if wanted:
        return min(wanted, usable_processors(root))
    siblings = (root / f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list" for i in _allowed())
    cores = {_text(path) or str(path) for path in siblings}
    return _within_quota(len(cores), root)


def _allowed() -> set[int]:
    """The processors that the operating system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _within_quota(count: int, root: Path) -> int:
    quota = min((_quota(group) for group in _groups(root)), default=math.inf)
    return max(1, count if quota >= count else math.ceil(quota))


def _groups(root: Path) -> Iterator[Path]:
    """The control groups that bound this process: its own and those above, in each hierarchy that counts CPU time.

    In a container the paths may be the host's and not be there: its own group is the hierarchy's root.
    """
    hierarchies = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():  # "4:cpu,cpuacct:/path" (version 1), "0::/path" (2)
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and "cpu" not in names.split(","):
            continue
        for name in {names, "cpu"} if names else ("", "unified"):
            group = hierarchies / name
            yield group
            for part in Path(path).parts[1:]:
                group /= part
                yield group


def _quota(group: Path) -> float:
    """A control group's quota in processors; infinity without one."""
    both = _text(group / "cpu.max").split()
    if not both:
        both = [_text(group / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    try:
        quota, period = (float(number) for number in both)  # "max 100000" is no quota
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
