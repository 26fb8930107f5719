#!/usr/bin/env bash
# Headers that the C++ runtime is compiled with, by package name: Debian trixie's libonnxruntime-dev and nlohmann-json3-dev.
# Downloads from the mirror that this machine's own apt uses, in a private apt root; installs nothing.
# usage: tools/fetch_cpp_headers.sh [FOLDER]     (default build/cpp-headers; then -DDITEDGE_HEADERS=FOLDER)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/cpp-headers}")
include="$folder/usr/include"
if [ -e "$include/onnxruntime/onnxruntime_c_api.h" ] && [ -e "$include/nlohmann/json.hpp" ]; then exit 0; fi
command -v apt-get > /dev/null || { echo "no apt-get here: give -DONNXRUNTIME_ROOT and install nlohmann-json" >&2; exit 3; }

mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null || true; } |
         sed -nE 's/^URIs:[[:space:]]*([^ ]+).*/\1/p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' | grep -v security | head -1)
[ -n "$mirror" ] || { echo "no package mirror in /etc/apt/sources.list*" >&2; exit 3; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{state/lists/partial,cache/archives/partial,etc/preferences.d,debs}
touch "$root/state/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$root/etc/sources.list"
options=(-o Dir::State="$root/state" -o Dir::State::status="$root/state/status" -o Dir::Cache="$root/cache"
         -o Dir::Etc::SourceList="$root/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null
         -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts="$root/etc/preferences.d"
         -o Acquire::Languages=none -o APT::Sandbox::User=root -qq)
apt-get "${options[@]}" update
(cd "$root/debs" && apt-get "${options[@]}" download libonnxruntime-dev nlohmann-json3-dev)
mkdir -p "$folder"
for package in "$root"/debs/*.deb; do dpkg -x "$package" "$folder"; done
[ -e "$include/onnxruntime/onnxruntime_c_api.h" ] && [ -e "$include/nlohmann/json.hpp" ]
