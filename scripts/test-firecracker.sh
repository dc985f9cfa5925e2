#!/usr/bin/env bash
# The tests of what needs KVM and device-mapper, with a real Firecracker, in the lab (scripts/lab.sh):
#
#   FIRECRACKER_BIN=PATH test-firecracker.sh [PART…]
#
# TEST_ARGS goes to the test programs (a part of a test's name, say), PYTEST_ARGS to the end-to-end tests.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
all=(disk-devices vmm-pager agent-drivers agent-capsules agent-snapshots agent-faults platform)
# Not a test: what the two ways of restoring memory take.
also=(figures)
parts=("$@")
[ $# -gt 0 ] || parts=("${all[@]}")
for part in "${parts[@]}"; do
  [[ " ${all[*]} ${also[*]} " == *" $part "* ]] || {
    echo "error: no part '$part'; there are ${all[*]} ${also[*]}" >&2
    exit 2
  }
done
runs_platform() { [ "$1" = platform ] || [ "$1" = figures ]; }

if [ -z "${FIRECRACKER_BIN:-}" ]; then
  echo "SKIPPED: the tests with Firecracker need its program, and FIRECRACKER_BIN does not name one."
  echo "Releases are at https://github.com/firecracker-microvm/firecracker/releases."
  exit 0
fi
[ -x "$FIRECRACKER_BIN" ] || { echo "error: FIRECRACKER_BIN: '$FIRECRACKER_BIN' is no program" >&2; exit 1; }
scripts/install-deps.sh run build test

say "programs"
lab=$PWD/target/lab
programs=$lab/programs
cargo build --locked --profile guest --target x86_64-unknown-linux-musl -p wrenn-guest
export WRENN_GUEST_BIN=$PWD/target/x86_64-unknown-linux-musl/guest/wrenn-guest
rm -rf "$programs"
mkdir -p "$programs"
install -m 755 "$FIRECRACKER_BIN" "$programs/firecracker"
with=(--with "programs=$programs" --with "images=$PWD/target/wrenn-images")

if [[ " ${parts[*]} " =~ " platform "|" figures " ]]; then
  cargo build --locked -p wrenn-cli
  strip --strip-debug -o "$programs/wrenn" target/debug/wrenn
  scripts/python-env.sh "$PWD/target/e2e/python"
  wheels=$lab/wheels-$(sha256sum tests/python/requirements.txt | cut -c1-16)
  if [ ! -d "$wheels" ]; then
    rm -rf "$lab"/wheels-* "$lab/wheels"
    target/e2e/python/bin/python -m pip download --quiet --disable-pip-version-check --python-version 3.13 \
      --only-binary=:all: --dest "$lab/wheels" -r tests/python/requirements.txt
    mv "$lab/wheels" "$wheels"
  fi
  with+=(--with "wheels=$wheels" --with "tests=$PWD/tests")
fi

packages=()
for part in "${parts[@]}"; do
  runs_platform "$part" || packages+=(-p "wrenn-${part%%-*}")
done
if [ ${#packages[@]} -gt 0 ]; then
  cargo test --locked --no-run --message-format=json "${packages[@]}" >"$lab/artifacts.json"
  python3 - "$lab/artifacts.json" >"$lab/artifacts" <<'PYTHON'
import json, pathlib, sys

for line in open(sys.argv[1]):
    built = json.loads(line)
    if built.get("executable") and built["target"]["kind"] == ["test"]:
        package = pathlib.Path(built["manifest_path"]).parent.name
        print(f"{package}-{built['target']['name']}", built["executable"])
PYTHON
  while read -r name program; do
    [[ " ${parts[*]} " != *" $name "* ]] || strip --strip-debug -o "$programs/$name" "$program"
  done <"$lab/artifacts"
fi

# This test leaves the images in the cache; to make them in the lab would take far longer.
say "base images"
cargo test --locked -p wrenn-agent --test images -- --exact \
  a_fresh_data_directory_gets_everything_from_the_cache_and_nothing_is_made_twice

variables=(--env WRENN_DRIVER=firecracker --env WRENN_IMAGE_CACHE=/scratch/images --env RUST_BACKTRACE=1)
for name in TEST_ARGS PYTEST_ARGS WRENN_LOG WRENN_CHAOS_SECONDS WRENN_CHAOS_SEED; do
  [ -z "${!name:-}" ] || variables+=(--env "$name=${!name}")
done

running=
trap '[ -z "$running" ] || kill "$running" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
try() { # try PART: its exit code
  local cpus=1 status=0
  # One processor, where nothing is measured, makes the emulation steadier; a platform would starve on it.
  ! runs_platform "$1" || cpus=2
  # One capsule of the platform's tests has 4 GiB.
  LAB_MEMORY=${LAB_MEMORY:-12G} LAB_CPUS=${LAB_CPUS:-$cpus} scripts/lab.sh "${with[@]}" "${variables[@]}" -- /lab/job/test-firecracker "$1" \
    > >(tee "$lab/$1.log") &
  running=$!
  wait $running || status=$?
  running=
  return $status
}

failed=0
summary=()
for part in "${parts[@]}"; do
  for attempt in 1 2 3; do
    say "$part (attempt $attempt)"
    began=$SECONDS status=0
    try "$part" || status=$?
    [ $status = 125 ] || break
  done
  case $status in
    0)
      word=passed
      [ ! -e "$lab/results/latest/again.xml" ] || word="passed, what had failed at its second run"
      ;;
    125) word="the lab crashed" ;;
    *) word="FAILED ($status)" ;;
  esac
  [ $status = 0 ] || failed=1
  summary+=("$(printf '%-16s %s, attempt %s, %s s, target/lab/%s.log' "$part" "$word" $attempt $((SECONDS - began)) "$part")")
done
say "Firecracker"
printf '%s\n' "${summary[@]}"
exit $failed
