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
classes='T-shirt/top;Trouser;Pullover;Dress;Coat;Sandal;Shirt;Sneaker;Bag;Ankle boot'
request=(--class "$classes" --seed 7 --program dpm++-20 --threads 1 --library "$library")

quietly() { "$@" 2> "$build/avx2.log" || { grep -v "TCG doesn't support" "$build/avx2.log" >&2; return 1; }; }  # qemu's warnings
run() { quietly "$@" --latents "$build/$name.f32"; quietly "$@" -o "$build/$name.png"; }
name=avx2-float run "$build/cpp/ditedge-run" --bundle "$float" "${request[@]}"
name=avx2-native run "$build/cpp/ditedge-run" --bundle "$int8" "${request[@]}"
name=avx2-haswell run "${haswell[@]}" "$build/cpp/ditedge-run" --bundle "$int8" "${request[@]}"

"$python" - "$build" "$levels" << 'PY'
import re, sys
import numpy as np
from PIL import Image
folder, levels = sys.argv[1], int(sys.argv[2])
exact, native, haswell = (np.fromfile(f"{folder}/avx2-{name}.f32", np.float32).reshape(10, -1) for name in ("float", "native", "haswell"))
def drift(a): return float(np.mean(np.linalg.norm(a - exact, axis=1) / np.linalg.norm(exact, axis=1)))
pictures = [np.asarray(Image.open(f"{folder}/avx2-{name}.png")).astype(int) for name in ("native", "haswell")]
difference = int(np.abs(pictures[0] - pictures[1]).max())
kernels = "with VNNI" if re.search("avx512_vnni|avx_vnni", open("/proc/cpuinfo").read()) else "without VNNI"
print(f"int8 of 10 images: drift {drift(native):.2%} natively ({kernels}), {drift(haswell):.2%} on AVX2 kernels (allowed 3 %); "
      f"pictures differ by {difference} of 255 (allowed {levels}), latents {'to the bit equal' if np.array_equal(native, haswell) else 'not equal'}")
sys.exit(not (max(drift(native), drift(haswell)) < 0.03 and difference <= levels))
PY

tests=(tests/runtime/test_engine_ort.py tests/calibration/test_qdq.py::test_static_int8_is_the_formula
       tests/calibration/test_sensitivity.py tests/calibration/test_int8.py)
quietly "${haswell[@]}" "$python" -m pytest -q -p no:cacheprovider "${tests[@]}"
