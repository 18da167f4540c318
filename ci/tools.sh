#!/usr/bin/env bash
# Sees to it that what the other scripts call is there: a C compiler and make for jemalloc,
# rustfmt and clippy, a nightly for AddressSanitizer, valgrind, and Debian's Redis clients.
set -euo pipefail

need=()
command -v cc >/dev/null || need+=(gcc)
command -v make >/dev/null || need+=(make)
command -v valgrind >/dev/null || need+=(valgrind)
command -v redis-cli >/dev/null && command -v redis-benchmark >/dev/null || need+=(redis-tools)

if [ "${#need[@]}" -gt 0 ]; then
  sudo=""
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo apt-get update -q
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${need[@]}"
fi

cargo --version
cargo fmt --version || rustup component add rustfmt
cargo clippy --version || rustup component add clippy
rustc +nightly --version || rustup toolchain install nightly --profile minimal
valgrind --version
redis-cli --version
