#!/usr/bin/env bash
# The integer kernels of an x86 processor that has AVX2 and no VNNI (qemu-user's Haswell), on any x86-64 machine: the int8 demo
# through the C++ runtime, its drift from float32 and its pictures against the native ones; then the Python tests of int8.
# Installs what is missing (Debian, as root).
# usage: tools/test_avx2.sh PYTHON BUNDLE [LEVELS]     (BUNDLE: the demo's, in float32; LEVELS of 255 that pictures may differ by; default 2)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 float=$2 levels=${3:-2} build=$PWD/build
[ "$(uname -m)" = x86_64 ] || { echo "skipped: the wheels of this machine ($(uname -m)) hold no x86 kernels"; exit 0; }
tools/need.sh qemu-x86_64-static:qemu-user-static cmake:cmake c++:g++
make cpp > /dev/null
int8=$build/avx2-int8
"$python" cli.py quantize --engine "$float" --out "$int8" --count 0 --force > /dev/null
haswell=(qemu-x86_64-static -cpu Haswell)
library=$("$python" -c "import glob, os, onnxruntime as o; print(glob.glob(os.path.dirname(o.__file__) + '/capi/libonnxruntime.so.*')[0])")
request=(--class 'T-shirt/top;Trouser;Sandal;Bag' --seed 7 --program ddim-10 --threads 1 --library "$library")

quietly() { "$@" 2> "$build/avx2.log" || { grep -v "TCG doesn't support" "$build/avx2.log" >&2; return 1; }; }  # qemu's warnings
quietly "$build/cpp/ditedge-run" --bundle "$float" "${request[@]}" --latents "$build/avx2-float.f32"
quietly "$build/cpp/ditedge-run" --bundle "$int8" "${request[@]}" --latents "$build/avx2-native.f32"
quietly "${haswell[@]}" "$build/cpp/ditedge-run" --bundle "$int8" "${request[@]}" --latents "$build/avx2-haswell.f32"

"$python" - "$build" "$int8" "$levels" << 'PY'
import sys
from pathlib import Path
import numpy as np
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.loop.int8_kernels import integer_kernels
folder, bundle, levels = Path(sys.argv[1]), open_bundle(Path(sys.argv[2])), int(sys.argv[3])
model = bundle.manifest.model
shape = (-1, model.in_channels, model.input_size, model.input_size)
exact, native, haswell = (np.fromfile(folder / f"avx2-{name}.f32", np.float32).reshape(shape) for name in ("float", "native", "haswell"))
def drift(a): return float(np.mean([np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(a, exact, strict=True)]))
with Session(bundle) as session: pictures = [session.images(latents).astype(int) for latents in (native, haswell)]
difference = int(np.abs(pictures[0] - pictures[1]).max())
print(f"int8 of {len(exact)} images: drift {drift(native):.2%} on this processor's kernels ({integer_kernels().name}), "
      f"{drift(haswell):.2%} on AVX2's (allowed 3 %); pictures differ by {difference} of 255 (allowed {levels}), "
      f"latents are {'equal to the bit' if np.array_equal(native, haswell) else 'not equal'}")
sys.exit(not (len(exact) and max(drift(native), drift(haswell)) < 0.03 and difference <= levels))
PY

tests=(tests/runtime/loop/test_engine_ort.py tests/calibration/formats/test_qdq.py::test_static_int8_is_the_formula
       tests/calibration/statistics/test_sensitivity.py tests/calibration/formats/test_int8.py)
quietly "${haswell[@]}" "$python" -m pytest -q -p no:cacheprovider "${tests[@]}"
