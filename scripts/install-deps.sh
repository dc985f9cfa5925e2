#!/usr/bin/env bash
# Installs what is missing on a Debian 12 machine: install-deps.sh run|build|test …
# Each need is probed first, so that a second run does nothing and needs no network.
set -euo pipefail

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

packages=()
need() { # need PACKAGE PROBE…: queue PACKAGE unless the probe succeeds
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || packages+=("$package")
}

run_needs() {
  need nftables have nft
  need mmdebstrap have mmdebstrap
  need e2fsprogs have mke2fs
  need iproute2 have ip
  need curl have curl
  need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
  need postgresql-15 sh -c 'ls /usr/lib/postgresql/*/bin/postgres'
}

build_needs() {
  need gcc have gcc
  need libc6-dev test -e /usr/include/stdio.h
  need musl-tools have musl-gcc
  need make have make
}

test_needs() {
  need python3 have python3
  need git have git
}

# QEMU below 8.1 can hang a guest with more than one vCPU under software emulation, so a machine that has none gets the
# one of bookworm-backports. System emulator and tools are of one version and must be installed in one call.
install_qemu() {
  if have qemu-system-x86_64 && have qemu-img; then return; fi
  say "installing QEMU"
  if ! apt-cache policy | grep -q 'n=bookworm-backports'; then
    cat >/etc/apt/sources.list.d/wrenn-backports.sources <<'EOF'
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
    apt-get update -qq
  fi
  apt-get install -y -qq --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils >/dev/null ||
    apt-get install -y -qq --no-install-recommends --allow-downgrades qemu-system-x86/bookworm qemu-utils/bookworm >/dev/null
}

install_rust() {
  if ! have cargo; then
    say "installing Rust"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --no-modify-path
  fi
  export PATH="$HOME/.cargo/bin:$PATH"
  if have rustup && ! rustup target list --installed | grep -qx x86_64-unknown-linux-musl; then
    say "adding the Rust target of the guest daemon"
    rustup target add x86_64-unknown-linux-musl
  fi
}

[ "$(id -u)" = 0 ] || { echo "error: run this as root" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
rust=no qemu=no
for what in "$@"; do
  case $what in
    run) run_needs; qemu=yes ;;
    build) build_needs; rust=yes ;;
    test) test_needs ;;
    *) echo "usage: $0 run|build|test …" >&2; exit 2 ;;
  esac
done

if [ ${#packages[@]} -gt 0 ] || { [ $qemu = yes ] && ! { have qemu-system-x86_64 && have qemu-img; }; }; then
  say "refreshing the package lists"
  apt-get update -qq
fi
if [ ${#packages[@]} -gt 0 ]; then
  say "installing ${packages[*]}"
  # The package would start a cluster of its own, which nothing here uses.
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "${packages[@]}" >/dev/null
fi
[ $qemu = no ] || install_qemu
[ $rust = no ] || install_rust
