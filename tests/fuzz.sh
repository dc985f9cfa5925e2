#!/usr/bin/env bash
# Fuzzes every route by its own description: no answer may be a server's fault or outside of the document.
#
#   tests/fuzz.sh WRENN PYTHON_ENV
#
# Runs a control plane of its own, without hosts, on a new database in the cluster of the running platform
# ($WRENN_DIR), and asks as nobody, as a program with a key, and as an administrator of the platform.
set -euo pipefail
cd "$(dirname "$0")/.."
wrenn=$(realpath "$1") python=$(realpath "$2")
socket=$WRENN_DIR/postgres/socket
database=fuzz_$$
work=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
plane=
end() {
  status=$?
  [ -z "$plane" ] || { kill "$plane" && wait "$plane"; } 2>/dev/null || true
  psql -q -h "$socket" -U postgres -c "drop database if exists $database (force)" postgres || true
  [ $status = 0 ] || tail -n 40 "$work/log" || true
  rm -rf "$work"
  exit $status
}
trap end EXIT
psql -q -h "$socket" -U postgres -c "create database $database" postgres

settings=(
  WRENN_DIR="$work" WRENN_LISTEN=127.0.0.1:"$port" WRENN_SIGNINS_PER_MINUTE=100000 WRENN_PASSWORD_TRIES=100000
  DATABASE_URL="postgres://postgres@localhost/$database?host=$socket"
)
unset WRENN_API_KEY WRENN_BASE_URL
run() { env "${settings[@]}" "$wrenn" "$@"; }
# Without the function, so that the process id is the program's own.
env "${settings[@]}" "$wrenn" control-plane 2>"$work/log" >&2 &
plane=$!
for _ in $(seq 100); do curl -fs "$url/health" >/dev/null && break || sleep 0.2; done
run admin create-user fuzz@example.com --admin <<<correct-horse >/dev/null
key=$(run keys create --local fuzz)
sign_in() {
  curl -fs "$url/v1/auth/login" -H 'Content-Type: application/json' \
    -d '{"email": "fuzz@example.com", "password": "correct-horse"}' | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])'
}

# Statuses that this deployment gives rightly: without hosts no capsule can be made, and no provider can be reached.
cat >"$work/schemathesis.toml" <<'TOML'
[checks]
enabled = false
not_a_server_error.enabled = true
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 101, 502, 503]
status_code_conformance.enabled = true
content_type_conformance.enabled = true
response_headers_conformance.enabled = true
response_schema_conformance.enabled = true
TOML

fuzz() {
  local who=$1
  shift
  printf '\n--- as %s\n' "$who"
  # Where it is asked from, it leaves notes.
  (cd "$work" && "$python/bin/python" -m schemathesis.cli --config-file "$work/schemathesis.toml" run "$url/openapi.yaml" \
    --phases examples,coverage,fuzzing --max-examples "${FUZZ_EXAMPLES:-15}" --max-redirects 0 --no-color \
    --suppress-health-check all --warnings off --seed "${FUZZ_SEED:-1}" --request-timeout 30 "$@")
}
fuzz nobody
fuzz "a program" -H "X-API-Key: $key"
# What would end the account itself is asked last, alone.
fuzz "an administrator" -H "Authorization: Bearer $(sign_in)" \
  --exclude-operation-id delete_me --exclude-operation-id post_me_password
