"""What reaches the terminal, and how a command ends: by a sentence, never by a traceback."""

from __future__ import annotations

import collections
import errno
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge import interrupt
from ditedge.failures import Commands, importing_extra, sentence_for
from ditedge.runtime import replacing
from ditedge.runtime.files import write_text, written_atomically
from ditedge.terminal import duration, printable, progress_lines
from tests.conftest import ROOT
from tests.test_cli import ditedge, edit_manifest

CLI = [sys.executable, str(ROOT / "cli.py")]


def test_control_characters_are_written_out() -> None:
    assert printable("\x1b[31mred\x1b[2J") == "\\x1b[31mred\\x1b[2J"
    assert printable("a\x9b1mb\u202ec\u2028d\ud800") == "a\\x9b1mb\\u202ec\\u2028d\\ud800"
    assert printable("Käfer 犬\tzwei\nZeilen") == "Käfer 犬\tzwei\nZeilen"


@pytest.mark.parametrize("command", ["inspect", "run", "usage", "json"])
def test_names_of_a_bundle_do_not_command_the_terminal(gray_bundle: Path, command: str) -> None:
    labels = ["\x1b]0;owned\x07", "\x9b2J", *"bcdefghi"]
    edit_manifest(gray_bundle, lambda m: m.update(name="\x1b[31mred", labels=labels))
    arguments = {
        "inspect": ["inspect", gray_bundle],
        "run": ["run", "--engine", gray_bundle, "--class", "zzz"],
        "usage": ["inspect", gray_bundle, "\x1b[31m.onnx"],
        "json": ["inspect", gray_bundle, "--json"],
    }[command]
    result = ditedge(*arguments)
    assert not set("\x1b\x07\x9b") & set(result.output), result.output
    assert "u001b" in result.output if command == "json" else "\\x1b" in result.output


def test_square_brackets_of_a_name_are_no_markup(tmp_path: Path) -> None:
    """On a terminal, where rich draws: a path like [/b] used to end the command with a traceback."""
    folder = tmp_path / "["
    folder.mkdir()
    (folder / "b].pt").write_bytes(b"nothing")
    code = (
        "from ditedge.terminal import progress\n"
        "with progress() as report:\n    report('reading [/b].pt \\x1b]0;x'), report('sampling [/i]', 1, 3)\n"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=child, env={**os.environ, "TERM": "xterm"})
    os.close(child)
    shown = b""
    try:
        while block := os.read(parent, 65536):
            shown += block
    except OSError:
        pass  # the other end was closed
    assert process.wait(60) == 0, shown.decode()
    assert b"[/b].pt" in shown and b"\x1b]0;x" not in shown


def test_without_a_terminal_progress_is_lines() -> None:
    now, lines = 0.0, []
    report = progress_lines(lines.append, lambda: now)
    report("reading")
    report("reading")
    for done in range(1, 101):
        report("sampling", done, 100)
        now += 0.5
    assert lines[0] == "reading" and lines[1] == "sampling: 10 of 100, about 45 s left"
    assert lines[-1] == "sampling: 100 of 100" and len(lines) == 11
    lines.clear()
    for done in range(1, 4):  # steps that take long are told one by one
        report("recording", done, 3)
        now += 60
    assert lines == ["recording: 2 of 3, about 1 min 0 s left", "recording: 3 of 3"]
    lines.clear()
    now, report = now + 50_000, progress_lines(lines.append, lambda: now)
    report(
        "replaying"
    )  # what is left follows from the time that it has been counted for, not from the clock's own start
    now += 20
    for done in range(1, 4):
        report("replaying", done, 3)
        now += 60
    assert lines == ["replaying", "replaying: 2 of 3, about 1 min 0 s left", "replaying: 3 of 3"]
    lines.clear()
    for done in range(1, 200):  # quick work tells nothing
        report("quick", done, 200)
        now += 0.001
    assert lines == [] and duration(3720) == "1 h 2 min"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300), "give a shorter name"),
        (PermissionError(errno.EACCES, "Permission denied", "b/step.onnx"), "b/step.onnx: Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write the output: No space left"),
        (RuntimeError("Symlink loop from '/b/a'"), "remove the link"),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory (Unable to allocate 9 GiB)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (ImportError("libtorch.so: cannot map segment", name="torch"), "torch is installed but cannot be loaded"),
        (ImportError("libx.so: failed to map: Cannot allocate memory", name="torch"), "out of memory"),
    ],
)
def test_errors_of_the_system_become_a_sentence(error: Exception, words: str) -> None:
    assert words in (sentence_for(error) or "")
    group = Commands("x")
    group.command("fail")(lambda: (_ for _ in ()).throw(error))
    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and len(result.stderr) < 1100


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ZeroDivisionError(), ModuleNotFoundError(name="x")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    group = Commands("x")
    group.command("fail")(lambda: (_ for _ in ()).throw(error))
    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, type(error))


def test_a_library_that_does_not_load_is_not_called_missing() -> None:
    with pytest.raises(ImportError, match="its part numpy.no_such_part is missing"):
        with importing_extra("export"):
            import numpy.no_such_part  # noqa: F401
    with pytest.raises(Exception, match=r"no_such_package is not installed: pip install 'ditedge\[export\]'"):
        with importing_extra("export"):
            import no_such_package.part  # noqa: F401


def test_output_on_a_full_disk_and_a_folder_that_is_gone(gray_bundle: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([*CLI, "inspect", gray_bundle], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2 and "cannot write the output: No space left" in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && exec {sys.executable} {ROOT / 'cli.py'} run --engine b -o x.png"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr


def test_too_little_memory_is_a_sentence(gray_bundle: Path, tmp_path: Path) -> None:
    """Whatever it is that fails under 400 MB: an import, numpy's memory or the engine's."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    arguments = ["run", "--engine", gray_bundle, "--count", "900", "--batch", "900", "--steps", "1"]
    out = ["--save-latents", tmp_path / "l.safetensors"]
    result = subprocess.run([*CLI, *arguments, *out], capture_output=True, text=True, preexec_fn=limit)
    assert "Traceback" not in result.stderr and "not installed" not in result.stderr, result.stderr
    assert result.returncode in (0, 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("entry", [CLI, [sys.executable, "-m", "ditedge"]], ids=["script", "module"])
def test_a_signal_during_the_imports_is_quiet(entry: list[str], number: int, tmp_path: Path) -> None:
    """The imports are held up by a module that sleeps; the signal comes while it does."""
    (tmp_path / "pydantic.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen(
        [*entry, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number and errors == "Interrupted: no result was written.\n"


def test_a_signal_that_comes_out_as_another_error_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the import of a C extension, which then says that its initialization failed."""

    def load() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed", name="onnxruntime") from None

    group, before = Commands("x"), {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    group.command("load")(load)
    monkeypatch.setattr(interrupt, "_last", None)
    monkeypatch.setattr(replacing, "_placed", collections.deque())
    try:
        interrupt.handle_signals()
        result = CliRunner().invoke(group, ["load"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert result.exit_code == 143 and result.stderr == "Interrupted: no result was written.\n"


def test_an_interrupt_after_the_result_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_placed", collections.deque())
    out, cache = tmp_path / "out\x1b.txt", tmp_path / "cache.txt"

    def write() -> None:
        with written_atomically(cache, is_result=False) as path:
            path.touch()
        write_text(out, "result")
        raise KeyboardInterrupt

    group = Commands("x")
    group.command("write")(write)
    result = CliRunner().invoke(group, ["write"])
    assert result.exit_code == 130
    assert result.stderr == f"Interrupted: {tmp_path}/out?.txt was already written.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_clean_up_as_ctrl_c_does(gray_bundle: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["--ckpt", ROOT / "models" / "fashion-dit.safetensors", "--heads", "3", "--out", out / "b"]
    process = subprocess.Popen([*CLI, "export", *map(str, arguments)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(out.iterdir()), "the export never began"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors.decode()
    assert b"Traceback" not in errors and errors.endswith(b"Interrupted: no result was written.\n")
    assert list(out.iterdir()) == []


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    from ditedge.terminal import print_json

    group = Commands("x")
    group.command("show")(lambda: print_json({"a": [float("nan"), 1.5], "b": float("inf"), "c": "\x9b"}))
    text = CliRunner().invoke(group, ["show"]).output
    assert json.loads(text) == {"a": [None, 1.5], "b": None, "c": "\x9b"} and "\x9b" not in text
