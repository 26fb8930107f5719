"""Threads: never more than the processors that may be used, and idle ones do not spin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ditedge.runtime import EngineOptions, Session, open_bundle, processors
from ditedge.runtime.loop.engine_ort import session_settings
from ditedge.runtime.processors import thread_count, usable_processors

SPINNING = "session.intra_op.allow_spinning"


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_allowed", lambda: set(range(8)))


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A copy of /proc/self/cgroup and of what lies under /sys."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "5:memory:/job\n4:cpu,cpuacct:/job/a\n3:cpuset:/\n"


@pytest.mark.parametrize(
    ("groups", "files", "usable"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # the parent's quota holds, too
        ("0::/not/there\n", {"cpu.max": "200000 100000"}, 2),  # a container that sees the host's path
        ("0::/\n", {"cpu.max": "nonsense"}, 8),
        (V1, {"cpu,cpuacct/job/a/cpu.cfs_quota_us": "250000", "cpu,cpuacct/job/a/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (V1 + "0::/x\n", {"unified/x/cpu.max": "200000 100000"}, 2),  # both versions, as systemd mounts them
        ("", {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, eight: None, groups: str, files: dict[str, str], usable: int) -> None:
    root = machine(tmp_path, groups, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert usable_processors(root) == usable
    assert thread_count(0, root) == usable
    assert [thread_count(wanted, root) for wanted in (1, 999)] == [1, usable]


def test_two_processors_of_one_core_are_one_thread_unless_asked_for(tmp_path: Path, eight: None) -> None:
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = machine(tmp_path, "0::/\n", {topology.format(i): f"{i % 4},{i % 4 + 4}\n" for i in range(8)})
    assert (thread_count(0, root), thread_count(6, root), thread_count(8, root)) == (4, 6, 8)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_processors() == thread_count(0) == thread_count(64) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(("threads", "spin"), [(0, False), (1, True), (999, False)])
def test_every_session_is_opened_so(golden_bundle, threads: int, spin: bool) -> None:
    with Session(open_bundle(golden_bundle("gray1_cfg")), EngineOptions(threads=threads, spin=spin)) as session:
        for graph in ("conditioner", "step", "decoder"):
            settings = session.engine(graph)._session.get_session_options()
            assert settings.intra_op_num_threads == thread_count(threads) <= usable_processors()
            assert settings.get_session_config_entry(SPINNING) == ("1" if spin else "0")


def test_the_feature_extractor_keeps_to_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from ditedge.calibration.quality import features
    from tests.conftest import MODELS

    asked = []
    monkeypatch.setattr(features, "session_settings", lambda o: asked.append(o) or session_settings(o))
    features.FeatureExtractor(MODELS / "fashion_classifier.onnx", EngineOptions(threads=999))
    assert asked == [EngineOptions(threads=999)]
    assert session_settings(asked[0]).intra_op_num_threads == usable_processors()


def test_the_process_that_times_gets_the_same_settings() -> None:
    import json

    from ditedge.runtime.bench.contender import Wanted, bundle_contender

    command = bundle_contender(Path("bundle"), EngineOptions(threads=3, spin=True), Wanted())
    settings = json.loads(command[-1])
    assert (settings["threads"], settings["spin"]) == (3, True)
