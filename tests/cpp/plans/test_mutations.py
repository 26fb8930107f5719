"""Faults put into the device loop on purpose: the double finds each."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from capi_ctypes import DitedgeError

from ditedge.runtime.samplers.program import write_program
from tests.conftest import ROOT
from tests.cpp.plans.support import Double, replay
from tests.cpp.support import LOOPS, TOLERANCE, program_of

# Each breaks one thing in the loop: (what stands there, what stands there instead). The double, or PyTorch's recorded
# latents, have to notice every one; a mutation that is not found in the source fails, too.
MUTATIONS = {
    "states do not take turns": ("states[1 - from]", "states[from]"),
    "tables of the first step": ("step_at_[index(segment.first)]", "step_at_[0]"),
    "evaluations are not renewed": ("held_evaluations_[index(place)] != some", "step == 0"),
    "adaLN rows of the first step": ("modulation_ + static_cast<std::size_t>(at % block_) * aligned(row_bytes_);\n        device_", "modulation_;\n        device_"),
    "noise of the wrong step": ("run.noise(step + 1,", "run.noise(step,"),
    "noise is left out": ("drawn != nullptr || !silent_", "drawn == nullptr && !silent_"),
    "unaligned arena": ("if (fresh) size_ += aligned(bytes);", "if (fresh) size_ += bytes;"),
    "noise is overwritten too early": ("std::min(kAhead + kSegment, count_)", "std::min<std::int64_t>(2, count_)"),
    "host does not wait": ("while (!passed(number))", "if (!passed(number))"),
    "captured at once": ("!device_.graphs || fresh ||", "!device_.graphs ||"),
    "allocation while capturing": ("    try {\n        enqueue(segment);", "    try {\n        memory_.device(8); enqueue(segment);"),
    "conditioner once": ("call_at_[static_cast<std::size_t>(at / per_call_)]", "call_at_[0]"),
    "state buffer too small": ("state = memory_.device(state_bytes);", "state = memory_.device(state_bytes / 2);"),
    "scratch too small": ("scratch = memory.device(scratch_bytes);", "scratch = memory.device(scratch_bytes / 2);"),
    "graphs of one kind for two": ("return {steps(), evaluations, first % 2};", "return {1, evaluations, first % 2};"),
}  # fmt: skip


# These change nothing that anybody may see.
EQUIVALENTS = {
    "adaLN rows in blocks": ("kModulationBytes = 256 << 20", "kModulationBytes = 40 << 10"),
    "longer graphs": ("kSegment = 4;", "kSegment = 7;"),
    "odd graphs": ("kSegment = 4;", "kSegment = 3;"),
    "one step at a time": ("kSegment = 4;", "kSegment = 1;"),
}
SOURCES = ("device_loop.cpp", "device_run.cpp", "device_steps.cpp")
HEADERS = ("device.hpp", "device_memory.hpp", "device_run.hpp", "device_steps.hpp")


@pytest.fixture
def mutant(built: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """mutant(before, after) -> libditedge.so with that text of the loop replaced."""

    def make(before: str, after: str) -> Path:
        folder = ROOT / "runtime" / "cpp" / "src"
        texts = {name: (folder / name).read_text() for name in (*SOURCES, *HEADERS)}
        (changed,) = [name for name, text in texts.items() if text.count(before)]
        assert texts[changed].count(before) == 1, f"{before!r} is not in the loop once"
        for name, text in texts.items():
            (tmp_path / name).write_text(text.replace(before, after))
        stale = SOURCES if changed in HEADERS else (changed,)
        commands = {Path(entry["file"]): entry for entry in json.loads((built / "compile_commands.json").read_text())}
        for name in stale:
            words = shlex.split(commands[folder / name]["command"])
            words[words.index("-o") + 1] = str(tmp_path / f"{name}.o")
            words[words.index("-c") + 1] = str(tmp_path / name)
            words = [word for word in words if word not in ("-O3", "-Werror")] + ["-O0"]
            subprocess.run(words, cwd=built, check=True, capture_output=True)
        objects = [*(built / "CMakeFiles" / "ditedge.dir" / "src").glob("*.o")]
        kept = [path for path in objects if path.name.removesuffix(".o") not in stale]
        library = tmp_path / "libditedge.so"
        subprocess.run(
            ["c++", "-shared", "-o", library, *kept, *(tmp_path / f"{name}.o" for name in stale), "-ldl", "-pthread"],
            check=True,
        )
        return library

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MUTATIONS, *EQUIVALENTS])
def test_mutations_are_noticed(mutant, double: Double, opened, plan_bundle, tmp_path: Path, name: str) -> None:
    case, loop = "gray1_cfg", next(loop for case, loop in LOOPS if case == "gray1_cfg" and loop["name"] == "ddpm10")
    folder = plan_bundle(case, conditioner_rows=12)
    write_program(program_of(folder, loop), tmp_path / "p.json")
    library = mutant(*(MUTATIONS | EQUIVALENTS)[name])
    try:
        handle = opened(folder, library)
        error = max(replay(handle, case, loop, tmp_path / "p.json") for _ in range(3))
    except DitedgeError as refused:
        noticed = f"{refused}; the double: {double.report['broken']}"
    else:
        noticed = "" if error < TOLERANCE else f"latents are off by {error:.1e}"
    print(name, "->", noticed)
    assert bool(noticed) == (name in MUTATIONS)
    if name in MUTATIONS:  # what a broken loop leaves behind is not this test's business
        handle.close() if "handle" in locals() else None
        double.reset()
