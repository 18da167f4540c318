#!/usr/bin/env bash
# Soaks: tenant-server under redis-benchmark and a hostile mix of tenants for MINUTES, and beside it a process that makes and
# drops groups, registers shrinkers and forks (alloc/tests/soak.rs). At the end usage is exactly 0 after a flush, and the
# server's memory is within 5 % of what it was after the warm-up (1 MiB in a short run).
#
#   ci/soak.sh MINUTES
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:?how many minutes?}
work=$(mktemp -d)
server_pid=
soak_pid=

cleanup() {
  [ -z "$soak_pid" ] || kill "$soak_pid" 2>/dev/null || true
  [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

command -v redis-benchmark >/dev/null || {
  sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-tools
}
cargo build --release -p tenant-server
cargo test -p memcg --test soak --no-run
bin=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release

"$bin/tenant-server" --port 0 --tenant 1=64mb --tenant 2=8mb --default-max 4mb --total-max 256mb >"$work/out" 2>"$work/err" &
server_pid=$!
address=
for _ in $(seq 200); do
  address=$(sed -n 's/^ready on //p' "$work/out")
  [ -z "$address" ] || break
  sleep 0.05
done
port=${address##*:}
cli() { redis-cli -p "$port" "$@"; }
# What is resident once free pages went back: the least of the next seconds.
rss() {
  local now least=
  for _ in $(seq 15); do
    sleep 1
    now=$(awk '/^VmRSS/{print $2}' "/proc/$server_pid/status")
    if [ -z "$least" ] || [ "$now" -lt "$least" ]; then least=$now; fi
  done
  echo "$least"
}

# One round of everything, for about SECONDS.
round() {
  local db end=$((SECONDS + $1))
  while [ "$SECONDS" -lt "$end" ]; do
    timeout 60 redis-benchmark -p "$port" --dbnum 1 -t set,get,incr,mset -n 60000 -r 200000 -d 512 -P 16 -q >/dev/null &
    local load=$!
    for db in 2 3 4 5 6 7; do
      timeout 60 redis-benchmark -p "$port" --dbnum "$db" -t set -n 3000 -r 5000 -d 2000 -c 5 -q >/dev/null 2>&1 || true
      cli -n "$db" config set maxmemory "$((1 + RANDOM % 8))mb" >/dev/null
      head -c $((RANDOM * 100 + 1)) /dev/zero | tr '\0' x | cli -n "$db" -x set "large $RANDOM" >/dev/null || true
      [ $((RANDOM % 3)) -ne 0 ] || cli -n "$db" flushdb >/dev/null
    done
    # Clients that die in the middle of a request.
    for _ in $(seq 20); do
      { exec 3<>"/dev/tcp/127.0.0.1/$port" && printf '*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\nxxxx' >&3; exec 3>&-; } 2>/dev/null || true
    done
    wait "$load" || true
  done
}

# Every tenant as large as it gets, all at once. What is kept for a page or a span of what was ever in use (tags, maps, jemalloc's
# own) is then nearly as much as it will be; by chance that takes longer.
largest() {
  local db
  timeout 120 redis-benchmark -p "$port" --dbnum 1 -t set,mset -n 300000 -r 200000 -d 512 -P 16 -q >/dev/null
  for db in 2 3 4 5 6 7; do
    cli -n "$db" config set maxmemory 8mb >/dev/null
    timeout 60 redis-benchmark -p "$port" --dbnum "$db" -t set -n 12000 -r 12000 -d 2000 -c 5 -q >/dev/null
  done
  for db in 2 3 4 5 6 7; do
    for large in 1 2; do
      head -c 3276701 /dev/zero | tr '\0' x | cli -n "$db" -x set "largest $large" >/dev/null
    done
  done
}

# Everything flushed: what is left, in bytes, of each tenant.
flushed() {
  cli flushall >/dev/null
  # Connections that died are noticed, and garbage goes, within a second or so.
  for _ in $(seq 100); do
    left=$(cli info tenants | tr -d '\r' | sed -n 's/^db\([0-9]*\):.*usage=\([0-9]*\).*/\1 \2/p' | awk '$2 != 0')
    [ -n "$left" ] || return 0
    sleep 0.1
  done
  echo "left: $left"
  return 1
}

echo "== warm-up"
# Until everything was once as large as it gets: connections, tables, threads' records. A short run has no time for that, and
# allows for a MiB.
if [ "$minutes" -ge 10 ]; then
  round 90
  largest
  flushed
  round 90
else
  round 30
fi
flushed
before=$(rss)
echo "== soak: $minutes minutes; $before KiB resident"
MEMCG_SOAK_SECONDS=$((minutes * 60)) cargo test -p memcg --test soak >"$work/soak" 2>&1 &
soak_pid=$!
for minute in $(seq "$minutes"); do
  round 45
  flushed
  after=$(rss)
  echo "minute $minute: $after KiB resident"
done
wait "$soak_pid" || {
  cat "$work/soak"
  soak_pid=
  exit 1
}
soak_pid=
grep -E 'test result|rounds' "$work/soak" || true
kill -TERM "$server_pid"
wait "$server_pid"
server_pid=
cat "$work/err"
echo "usage 0 after FLUSHALL; resident $before KiB before, $after KiB after"
allowed=$((before / 20))
[ "$minutes" -ge 10 ] || [ "$allowed" -ge 1024 ] || allowed=1024
[ ! -s "$work/err" ] && [ "$after" -le $((before + allowed)) ]
