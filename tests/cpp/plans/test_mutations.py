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
    "states do not take turns": ("states_[1 - from]", "states_[from]"),
    "tables of the first step": (": bindings_[static_cast<std::size_t>(step)])", ": bindings_[0])"),
    "adaLN rows of the first step": ("this->step(step, step % block_,", "this->step(step, 0,"),
    "noise of the wrong step": ("noise_ + ring(step) *", "noise_ + ring(step + 1) *"),
    "unaligned arena": ("if (fresh) size_ += aligned(bytes);", "if (fresh) size_ += bytes;"),
    "noise is overwritten too early": ("static_cast<std::size_t>(step % (segment_ * ahead_))", "static_cast<std::size_t>(step % 2)"),
    "host does not wait": ("while (!passed(number))", "if (!passed(number))"),
    "no warm-up": ("if (index == 0 && graphs_.empty()) warm_up();", ""),
    "allocation while capturing": ("                enqueue(first, last);\n            } catch", "                memory_.device(8); enqueue(first, last);\n            } catch"),
    "conditioner once": ("modulate(at / per_call_);", "modulate(0);"),
    "state buffer too small": ("state = memory_.device(state_bytes_);", "state = memory_.device(state_bytes_ / 2);"),
    "scratch too small": ("scratch = memory.device(scratch_bytes);", "scratch = memory.device(scratch_bytes / 2);"),
}  # fmt: skip


# These change nothing that anybody may see.
EQUIVALENTS = {
    "adaLN rows in blocks": ("kModulationBytes = 256 << 20", "kModulationBytes = 40 << 10"),
    "longer graphs": ("kSegment = 4, kAhead = 2", "kSegment = 3, kAhead = 5"),
    "one step at a time": ("kSegment = 4, kAhead = 2", "kSegment = 1, kAhead = 1"),
}


@pytest.fixture
def mutant(built: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """mutant(before, after) -> libditedge.so with that text of the loop replaced."""

    def make(before: str, after: str) -> Path:
        source = ROOT / "runtime" / "cpp" / "src" / "device_loop.cpp"
        texts = {path: path.read_text() for path in (source, source.with_name("device_memory.hpp"))}
        assert sum(text.count(before) for text in texts.values()) == 1, f"{before!r} is not in the loop once"
        for path, text in texts.items():
            (tmp_path / path.name).write_text(text.replace(before, after))
        commands = json.loads((built / "compile_commands.json").read_text())
        (command,) = [entry["command"] for entry in commands if Path(entry["file"]) == source]
        words = shlex.split(command)
        place = words.index("-o") + 1
        objects = [*(built / "CMakeFiles" / "ditedge.dir" / "src").glob("*.o")]
        words[place], words[words.index("-c") + 1] = str(tmp_path / "mutant.o"), str(tmp_path / source.name)
        words = [word for word in words if word not in ("-O3", "-Werror")] + ["-O0"]
        subprocess.run(words, cwd=built, check=True, capture_output=True)
        objects = [object for object in objects if object.name != "device_loop.cpp.o"] + [tmp_path / "mutant.o"]
        library = tmp_path / "libditedge.so"
        subprocess.run(["c++", "-shared", "-o", library, *objects, "-ldl", "-pthread"], check=True)
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
        error = max(replay(handle, case, loop, tmp_path / "p.json") for _ in range(2))
    except DitedgeError as refused:
        noticed = f"{refused}; the double: {double.report['broken']}"
    else:
        noticed = "" if error < TOLERANCE else f"latents are off by {error:.1e}"
    print(name, "->", noticed)
    assert bool(noticed) == (name in MUTATIONS)
    if name in MUTATIONS:  # what a broken loop leaves behind is not this test's business
        handle.close() if "handle" in locals() else None
        double.reset()
