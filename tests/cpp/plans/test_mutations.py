"""Faults put into the device loop on purpose: the double finds each."""

from __future__ import annotations

from pathlib import Path

import pytest
from capi_ctypes import DitedgeError

from ditedge.runtime.samplers.program import write_program
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


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MUTATIONS, *EQUIVALENTS])
def test_mutations_are_noticed(mutant, double: Double, opened, plan_bundle, tmp_path: Path, name: str) -> None:
    case, loop = "gray1_cfg", next(loop for case, loop in LOOPS if case == "gray1_cfg" and loop["name"] == "ddpm10")
    folder = plan_bundle(case, conditioner_rows=12)
    write_program(program_of(folder, loop), tmp_path / "p.json")
    library = mutant((MUTATIONS | EQUIVALENTS)[name])
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
