#!/usr/bin/env bash
# Installs the Debian package of every command (or file) that is missing, where that is possible: as root, with apt-get.
# usage: tools/need.sh COMMAND:PACKAGE [COMMAND:PACKAGE ...]     (exit 3: not possible, with a sentence that says what to install)
set -euo pipefail
packages=()
for pair in "$@"; do command -v "${pair%%:*}" > /dev/null || [ -e "${pair%%:*}" ] || packages+=("${pair##*:}"); done
[ ${#packages[@]} -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "installing ${packages[*]} ..."
  if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null; then exit 0; fi
fi
echo "missing: install ${packages[*]} (Debian, Ubuntu: apt-get install ${packages[*]})" >&2
exit 3
