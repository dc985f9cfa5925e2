#!/usr/bin/env bash
# Every test: formatting, crates against their real parts, then a running platform with real VMs.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
WORK=$PWD/target/e2e
CACHE=$PWD/target/wrenn-images
GUEST=$PWD/target/x86_64-unknown-linux-musl/guest/wrenn-guest
WRENN=$PWD/target/debug/wrenn
export WRENN_IMAGE_CACHE=$CACHE
# Results of earlier runs must not decide this one.
unset WRENN_API_KEY WRENN_BASE_URL WRENN_DIR DATABASE_URL
export WRENN_CREDENTIALS=$WORK/credentials.json

say "formatting"
cargo fmt --all --check

say "guest daemon"
cargo build --locked --profile guest --target x86_64-unknown-linux-musl -p wrenn-guest
export WRENN_GUEST_BIN=$GUEST WRENN_PROGRAM=$WRENN WRENN_TEST_PYTHON=$WORK/python/bin/python

say "programs of the tests"
scripts/python-env.sh "$WORK/python"

say "crates"
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --workspace
else
  cargo test --locked --workspace
fi

say "platform"
cargo build --locked -p wrenn-cli
mkdir -p "$WORK"
export WRENN_DIR=$WORK/data
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
export WRENN_LISTEN=127.0.0.1:$(port) WRENN_AGENT_LISTEN=127.0.0.1:$(port)
down() { "$WRENN" down --destroy-capsules; }
[ ! -d "$WRENN_DIR" ] || down
rm -rf "$WRENN_DIR"
trap 'status=$?; down || status=1; [ $status = 0 ] || tail -n 60 "$WRENN_DIR/logs/wrenn.log" || true; exit $status' EXIT
"$WRENN" up --detach

say "fuzzing the API by its description"
timeout --kill-after=30 600 tests/fuzz.sh "$WRENN" "$WORK/python"

say "command line"
bash tests/cli.sh "$WRENN"

say "published client"
set -a; . "$WRENN_DIR/env"; set +a
# A test that leaves a thread behind would keep the interpreter from ending: say so instead of waiting for it.
timeout --kill-after=30 1500 "$WORK/python/bin/pytest" tests/python
