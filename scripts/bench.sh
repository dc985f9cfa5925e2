#!/usr/bin/env bash
# Measures a platform of its own, with the release build. `make bench` builds it; arguments go to wrenn-bench.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m==> %s\033[0m\n' "$*" >&2; }
PROFILE=${PROFILE:-release}
WORK=$PWD/target/bench
WRENN=$PWD/target/$PROFILE/wrenn
export WRENN_IMAGE_CACHE=$PWD/target/wrenn-images
# The platform that is measured is the one started here.
unset WRENN_API_KEY WRENN_BASE_URL WRENN_DIR DATABASE_URL WRENN_WARM_MB WRENN_POOL_SIZE WRENN_SETTLE_MS
# The bare parts that it is measured against are QEMU's.
export WRENN_DRIVER=qemu

say "bench program"
case $PROFILE in release) flags=--release ;; *) flags= ;; esac
cargo build --locked $flags -p wrenn-bench

bench=
stop() { [ -z "$bench" ] || { kill "$bench" && wait "$bench"; } || true; exit 130; }
trap stop INT TERM
measure() {
  say "measurements"
  # Beside the shell, which would otherwise hear of a signal only when everything has been measured.
  "target/$PROFILE/wrenn-bench" "$@" &
  bench=$!
  wait "$bench"
}
# A pager and a database of its own need no platform.
if [[ "$*" =~ (^| )--only[=\ ](pager|database|pager,database|database,pager)( |$) ]]; then
  measure "$@"
  exit
fi

say "platform"
mkdir -p "$WORK"
export WRENN_DIR=$WORK/data
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
export WRENN_LISTEN=127.0.0.1:$(port) WRENN_AGENT_LISTEN=127.0.0.1:$(port)
down() { "$WRENN" down --destroy-capsules >&2; }
[ ! -d "$WRENN_DIR" ] || down
rm -rf "$WRENN_DIR"
trap 'status=$?; trap "" INT TERM; down || status=1; [ $status = 0 ] || tail -n 60 "$WRENN_DIR/logs/wrenn.log" >&2 || true; exit $status' EXIT
# Nothing is made warm yet: the bench restarts the platform with the settings that each of its parts wants.
WRENN_WARM_MB=0 WRENN_POOL_SIZE=0 "$WRENN" up --detach >&2

set -a; . "$WRENN_DIR/env"; set +a
measure "$@"
