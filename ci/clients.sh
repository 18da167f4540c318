#!/usr/bin/env bash
# Real clients against a release build of tenant-server: redis-cli, Python's redis, redis-benchmark, and an own load over
# 1,000 tenants. Installs what it needs, listens on the loopback only, ends with "N passed, M failed".
set -euo pipefail
cd "$(dirname "$0")/.."

passed=0
failed=0
server_pid=
work=$(mktemp -d)

stop_server() {
  [ -n "$server_pid" ] || return 0
  kill -TERM "$server_pid" 2>/dev/null || true # it may have ended by itself, which `check ends_well` would have said
  wait "$server_pid" 2>/dev/null || true
  server_pid=
}

cleanup() {
  stop_server
  rm -rf "$work"
}
trap cleanup EXIT

# check NAME COMMAND...: runs the command and counts how it ended.
check() {
  local name=$1
  shift
  if "$@" >"$work/check" 2>&1; then
    passed=$((passed + 1))
    echo "ok      $name"
  else
    failed=$((failed + 1))
    echo "FAILED  $name"
  fi
  sed 's/^/        /' "$work/check"
}

# says EXPECTED COMMAND...: whether the command prints exactly that.
says() {
  local expected=$1 got
  shift
  got=$("$@" 2>&1)
  [ "$got" = "$expected" ] || {
    echo "expected: $expected"
    echo "got:      $got"
    return 1
  }
}

# shows PART COMMAND...: whether the command prints a line with that part.
shows() {
  local part=$1 got
  shift
  got=$("$@" 2>&1)
  grep -qF -- "$part" <<<"$got" || {
    echo "expected a line with: $part"
    echo "got: $got"
    return 1
  }
}

install_tools() {
  local wanted=()
  command -v redis-cli >/dev/null && command -v redis-benchmark >/dev/null || wanted+=(redis-tools)
  /usr/bin/python3 -c 'import redis' 2>/dev/null || wanted+=(python3 python3-redis)
  [ ${#wanted[@]} -eq 0 ] && return
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}"
}

start_server() {
  : >"$work/server.out" # so that no address of an earlier server is read
  "$bin/tenant-server" --port 0 "$@" >"$work/server.out" 2>"$work/server.err" &
  server_pid=$!
  for _ in $(seq 100); do
    address=$(sed -n 's/^ready on //p' "$work/server.out")
    [ -z "$address" ] || break
    kill -0 "$server_pid" || {
      cat "$work/server.err"
      exit 1
    }
    sleep 0.05
  done
  port=${address##*:}
}

cli() { redis-cli -p "$port" "$@"; }
load() { timeout 120 "$bin/tenant-load" --address "$address" --pid "$server_pid" "$@"; }

# The server ends with 0 within a few seconds of SIGTERM, and has said nothing on stderr: nothing aborted or panicked.
ends_well() {
  kill -TERM "$server_pid"
  local status=0
  wait "$server_pid" || status=$?
  server_pid=
  cat "$work/server.err"
  [ "$status" -eq 0 ] && [ ! -s "$work/server.err" ]
}

# The benchmark went through: it has a figure for each of its tests and met no error reply.
benchmark_finished() {
  local test
  for test in SET GET INCR 'MSET (10 keys)'; do
    tr '\r' '\n' <"$work/benchmark" | grep -F "$test: " | grep 'requests per second' | tail -n 1 || {
      echo "no figure for $test"
      tail -n 5 "$work/benchmark"
      return 1
    }
  done
  ! grep -iE 'error|OOM' "$work/benchmark"
}

benchmark() {
  timeout 120 redis-benchmark -p "$port" --dbnum 1 -t set,get,incr,mset -n 200000 -r 1000000 -d 1024 -P 16 -q
}

# The benchmark under the sampler. Its output is kept apart from the figures.
sampled_benchmark() {
  export port
  export -f benchmark
  timeout 150 "$bin/tenant-load" --address "$address" --pid "$server_pid" \
    watch --every-ms 10 -- bash -c "benchmark >'$work/benchmark' 2>&1"
}

sampled_spread() {
  load watch --every-ms 10 -- "$bin/tenant-load" --address "$address" --pid "$server_pid" \
    spread --tenants 1000 --connections 16 --rounds 8
}

echo "== set-up"
install_tools
cargo build --release -p tenant-server
bin=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release

echo "== one tenant of 64 MiB, and a neighbour"
start_server --tenant 1=64mb --tenant 2=64mb --tenant 3=1mb --total-max 1gb
check 'redis-cli: PING' says PONG cli ping
check 'redis-cli: SET and GET' says OK cli -n 3 set greeting hello
check 'redis-cli: GET' says hello cli -n 3 get greeting
check 'redis-cli: another database is another tenant' says '' cli -n 4 get greeting
check 'redis-cli -3: HELLO 3' shows 'proto 3' cli -3 hello 3
check 'redis-cli --scan' says greeting cli -n 3 --scan
check 'redis-cli --stat' shows connections timeout 10 redis-cli -p "$port" -i 0.1 --stat -r 1
check 'redis-cli: INFO tenants' shows 'db3:keys=1,usage=' cli info tenants
check 'redis-cli: CONFIG GET' shows 1048576 cli -n 3 config get maxmemory
check 'redis-cli: COMMAND DOCS' shows summary cli command docs set
check 'redis-cli: a wrong command' shows "ERR unknown command 'nonsense'" cli nonsense
head -c 4000000 /dev/zero | tr '\0' x >"$work/large"
check 'redis-cli -x: a value that cannot fit' shows 'OOM command not allowed' cli -n 3 -x set large <"$work/large"
check 'redis-cli: the tenant lives on' says hello cli -n 3 get greeting
check 'python redis' /usr/bin/python3 ci/clients/library.py "$port"
check 'a neighbour is loaded' load fill --db 2 --keys 30000
check 'redis-benchmark under the sampler' sampled_benchmark
check 'redis-benchmark met no error' benchmark_finished
check 'the neighbour has every key' load verify --db 2 --keys 30000
check 'FLUSHDB gives all of it back' load release --db 1
check 'the neighbour has every key still' load verify --db 2 --keys 30000
check 'the server ends well' ends_well

echo "== 1,000 tenants of 1 MiB"
start_server --default-max 1mb --total-max 2gb --databases 1001
check 'the load under the sampler' sampled_spread
check 'flushing gives all of it back' load release
check 'the server ends well' ends_well

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
