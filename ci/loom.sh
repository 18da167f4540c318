#!/usr/bin/env bash
# Runs the loom models of the protocols: every interleaving and every allowed reordering of a
# small run, up to a bound on preemptions.
#
#   ci/loom.sh [filter]        all models, or those whose name holds `filter`
#
# LOOM_MAX_PREEMPTIONS bounds the search of models that do not say otherwise (3 is where the
# loom documentation expects all bugs that are found in practice).
set -euo pipefail
cd "$(dirname "$0")/.."

export RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}"
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-3}"
# Its own target folder, so that the flags do not throw away other builds.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
# The tree's own assertions run in the models too.
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true

for package in memcg-accounting memcg-shrink; do
    echo "== loom: $package, at most $LOOM_MAX_PREEMPTIONS preemptions"
    cargo test --release --package "$package" --lib "loom${1:+_$1}"
done
