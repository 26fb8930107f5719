#!/usr/bin/env bash
# Headers that the C++ runtime is compiled with, by package name: libonnxruntime-dev and nlohmann-json3-dev, of this machine's own
# apt where it has them, on an older Debian of trixie (1.21), in a private apt root. Installs nothing. Where the distribution has no
# package of ONNX Runtime (Ubuntu, JetPack), $ONNXRUNTIME_ROOT is its release archive, unpacked.
# usage: tools/fetch_cpp_headers.sh [FOLDER]     (default build/cpp-headers; then -DDITEDGE_HEADERS=FOLDER)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/cpp-headers}")
include="$folder/usr/include"
packages=()
if [ -n "${ONNXRUNTIME_ROOT:-}" ]; then
  [ -n "$(find -L "$ONNXRUNTIME_ROOT" -name onnxruntime_c_api.h -print -quit 2> /dev/null)" ] ||
    { echo "no onnxruntime_c_api.h in $ONNXRUNTIME_ROOT: give the unpacked release archive of ONNX Runtime as ONNXRUNTIME_ROOT" >&2; exit 3; }
elif [ ! -e "$include/onnxruntime/onnxruntime_c_api.h" ]; then packages+=(libonnxruntime-dev); fi
# With a release archive, an installed nlohmann-json is enough: cmake finds it, and nothing is fetched.
installed() { [ -n "${ONNXRUNTIME_ROOT:-}" ] && echo '#include <nlohmann/json.hpp>' | "${CXX:-c++}" -x c++ -E - > /dev/null 2>&1; }
[ -e "$include/nlohmann/json.hpp" ] || installed || packages+=(nlohmann-json3-dev)
[ ${#packages[@]} -gt 0 ] || exit 0
command -v apt-get > /dev/null || { echo "no apt-get here: give ONNXRUNTIME_ROOT, and install nlohmann-json" >&2; exit 3; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/debs"
options=(-qq)
offered() { for package in "${packages[@]}"; do apt-cache policy "$package" 2> /dev/null | grep -q 'Candidate: [0-9]' || return 1; done; }
. "${OS_RELEASE:-/etc/os-release}"
if ! offered; then
  if [ "${ID:-}" != debian ]; then
    echo "${PRETTY_NAME:-this system} has no package ${packages[*]}: unpack a release archive of ONNX Runtime 1.21 or later" \
         "(onnxruntime-linux-x64-*.tgz or -aarch64-*.tgz), and: make cpp ONNXRUNTIME_ROOT=FOLDER (after apt-get update)" >&2
    exit 3
  fi
  mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null || true; } |
           sed -nE 's/^URIs:[[:space:]]*([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' | grep -v security | head -1)
  [ -n "$mirror" ] || { echo "no package mirror in /etc/apt/sources.list*" >&2; exit 3; }
  mkdir -p "$root"/{state/lists/partial,cache/archives/partial,etc/preferences.d}
  touch "$root/state/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$root/etc/sources.list"
  options+=(-o Dir::State="$root/state" -o Dir::State::status="$root/state/status" -o Dir::Cache="$root/cache"
            -o Dir::Etc::SourceList="$root/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null
            -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts="$root/etc/preferences.d"
            -o Acquire::Languages=none -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
fi
(cd "$root/debs" && apt-get "${options[@]}" download "${packages[@]}")
mkdir -p "$folder"
for package in "$root"/debs/*.deb; do dpkg -x "$package" "$folder"; done
[ -n "${ONNXRUNTIME_ROOT:-}" ] || [ -e "$include/onnxruntime/onnxruntime_c_api.h" ]
[ -e "$include/nlohmann/json.hpp" ]
