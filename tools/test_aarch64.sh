#!/usr/bin/env bash
# Cross-compiles the C++ runtime for aarch64, makes the demo picture under qemu-user with the aarch64 ONNX Runtime, and
# compares its latents with x86's (relative error below 1e-4); then the same through the engine for plans, over the double of
# CUDA and TensorRT. Installs the toolchain when it is missing (Debian, as root).
# usage: tools/test_aarch64.sh PYTHON BUNDLE     (PYTHON has ditedge and onnxruntime)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 bundle=$2 build=$PWD/build
tools/need.sh aarch64-linux-gnu-g++:g++-aarch64-linux-gnu qemu-aarch64-static:qemu-user-static cmake:cmake c++:g++
tools/fetch_cpp_headers.sh
tools/fetch_gpu_headers.sh "$python"
version=$("$python" -c "import onnxruntime; print(onnxruntime.__version__)")
wheel=$build/aarch64-onnxruntime
if ! ls "$wheel"/onnxruntime/capi/libonnxruntime.so.* > /dev/null 2>&1; then
  mkdir -p "$wheel"
  for platform in manylinux_2_28_aarch64 manylinux_2_27_aarch64; do
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --platform $platform \
      --python-version 3.11 -d "$wheel" "onnxruntime==$version" && break
  done
  "$python" -m zipfile -e "$wheel"/onnxruntime-*.whl "$wheel"
fi
for target in x86_64 aarch64; do
  toolchain=(); [ $target = aarch64 ] && toolchain=(-DCMAKE_TOOLCHAIN_FILE="$PWD/runtime/cpp/cmake/aarch64-linux-gnu.cmake")
  cmake -S runtime/cpp -B "$build/cpp-$target" -DCMAKE_BUILD_TYPE=Release -DDITEDGE_HEADERS="$build/cpp-headers" \
    -DTENSORRT_ROOT="$build/gpu-headers/tensorrt" -DCUDA_ROOT="$build/gpu-headers/cuda" -DDITEDGE_TESTS=ON "${toolchain[@]}" > /dev/null
  cmake --build "$build/cpp-$target" --parallel 2 > /dev/null
done

# ONNX Runtime reads /proc/cpuinfo, and qemu-user shows it the host's: give it ARM's.
sysroot=$build/aarch64-sysroot
mkdir -p "$sysroot/proc"
ln -sfn /usr/aarch64-linux-gnu/lib "$sysroot/lib"
printf 'processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n' > "$sysroot/proc/cpuinfo"
request=(--bundle "$bundle" --class 'Ankle boot;Bag' --seed 7 --program ddim-10 --threads 1)
library=$("$python" -c "import glob, os, onnxruntime as o; print(glob.glob(os.path.dirname(o.__file__) + '/capi/libonnxruntime.so.*')[0])")
"$build/cpp-x86_64/ditedge-run" "${request[@]}" --library "$library" --latents "$build/x86_64.f32"
arm=$(ls "$wheel"/onnxruntime/capi/libonnxruntime.so.*)
for kind in fast portable; do  # SHA-256 with ARMv8's instructions and without
  digest=$(qemu-aarch64-static -cpu max -L "$sysroot" "$build/cpp-aarch64/ditedge-sha256" $kind 999 "$arm")
  [ "$digest" = "$(sha256sum "$arm" | cut -d' ' -f1)" ] || { echo "SHA-256 ($kind) is wrong on aarch64" >&2; exit 1; }
done
emulated=(qemu-aarch64-static -cpu max -L "$sysroot" "$build/cpp-aarch64/ditedge-run" "${request[@]}" --library "$arm")
"${emulated[@]}" --latents "$build/aarch64.f32"
"${emulated[@]}" -o "$build/aarch64.png"

plans=$build/aarch64-plans double=$build/cpp-aarch64/libditedge-gpu-double.so
rm -rf "$plans"
cp -r "$bundle" "$plans"
"$python" -c "import sys, pathlib; from tests.cpp.plan_text import with_cpp_plans; with_cpp_plans(pathlib.Path(sys.argv[1]), '10.14.1')" "$plans"
export DITEDGE_CUDART=$double DITEDGE_TENSORRT=$double DITEDGE_ONNXRUNTIME=$arm
qemu-aarch64-static -cpu max -L "$sysroot" "$build/cpp-aarch64/ditedge-run" --bundle "$plans" "${request[@]:2}" --engine tensorrt \
  --latents "$build/aarch64-plans.f32"

"$python" - "$build" << 'PY'
import sys
import numpy as np
x86, arm, plans = (np.fromfile(f"{sys.argv[1]}/{name}.f32", np.float32).astype(np.float64) for name in ("x86_64", "aarch64", "aarch64-plans"))
errors = [np.linalg.norm(other - x86) / np.linalg.norm(x86) for other in (arm, plans)]
print(f"aarch64 against x86-64: relative error of the latents {errors[0]:.2e}, as plans {errors[1]:.2e} (allowed 1e-4)")
sys.exit(not (len(x86) and max(errors) < 1e-4))
PY
