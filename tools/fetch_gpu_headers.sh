#!/usr/bin/env bash
# Headers of TensorRT and CUDA for compile checks and tests, where neither is installed, by package name: kernel-lens carries
# TensorRT 10.14's (Apache-2.0), nvidia-cuda-runtime and nvidia-cuda-crt CUDA's and libcudart. Installs nothing.
# usage: tools/fetch_gpu_headers.sh [PYTHON [FOLDER]]   (default python3 build/gpu-headers;
#        then -DTENSORRT_ROOT=FOLDER/tensorrt -DCUDA_ROOT=FOLDER/cuda)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3} folder=$(realpath -m "${2:-build/gpu-headers}")
if [ -e "$folder/cuda/include/crt/host_defines.h" ] && [ -e "$folder/tensorrt/NvInferRuntime.h" ]; then exit 0; fi
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
echo "kernel-lens==2.0.1 --hash=sha256:07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0" > "$wheels/pinned.txt"
download=("$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$wheels")
"${download[@]}" --require-hashes -r "$wheels/pinned.txt"
"${download[@]}" nvidia-cuda-runtime==13.5.37 nvidia-cuda-crt==13.5.37
for wheel in "$wheels"/*.whl; do "$python" -m zipfile -e "$wheel" "$wheels/unpacked"; done
mkdir -p "$folder"
rm -rf "$folder/cuda" "$folder/tensorrt"
mv "$wheels"/unpacked/nvidia/cu13 "$folder/cuda"
mv "$wheels"/unpacked/kernel_lens/include/tensorrt "$folder/tensorrt"
