#!/usr/bin/env bash
# Runs a command as root in an emulated machine that has what this one may lack: KVM, device-mapper, TAP, userfaultfd.
#
#   lab.sh [--with NAME=PATH]… [--env NAME=VALUE]… -- COMMAND…
#
# PATH appears inside as /lab/with/NAME, read only. What the command writes to /lab/results comes back into
# target/lab/results/<run> (and `latest`). Its output is printed as it comes, its exit code is this script's; 125 means
# that the machine itself crashed, hung or reached LAB_LIMIT (90m). LAB_CPUS (2) and LAB_MEMORY (8G) size it.
set -euo pipefail

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
usage() { echo "usage: lab.sh [--with NAME=PATH]… [--env NAME=VALUE]… -- COMMAND…" >&2; exit 2; }

declare -A with=()
variables=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  [[ $# -ge 2 && $2 == *?=* ]] || usage
  case $1 in
    --with)
      [[ ${2%%=*} =~ ^[A-Za-z0-9._-]+$ ]] || { echo "error: '${2%%=*}' cannot name a folder of the lab" >&2; exit 2; }
      with[${2%%=*}]=$(realpath -e "${2#*=}") ;;
    --env) variables+=("$2") ;;
    *) usage ;;
  esac
  shift 2
done
[ $# -ge 2 ] || usage
shift
cd "$(dirname "$0")/.."

scripts/install-deps.sh run
lab=$PWD/target/lab
mkdir -p "$lab/results"
# One lab at a time makes the root disk, and takes away what killed ones have left.
exec {lock}>"$lab/lock"
flock $lock
root=$(scripts/lab-root.sh)
for old in "$lab"/run.*; do
  [ ! -d "$old" ] || flock --nonblock "$old" rm -rf "$old" || true
done
run=$(mktemp -d "$lab/run.XXXXXX")
exec {own}<"$run"
flock $own
exec {lock}>&-

qemu= reader=
clean() {
  status=$?
  trap - EXIT
  if [ -n "$qemu" ]; then kill "$qemu" 2>/dev/null && wait "$qemu" || true; fi
  if [ -n "$reader" ]; then kill "$reader" 2>/dev/null || true; fi
  rm -rf "$run"
  exit $status
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

pack() { # pack FOLDER IMAGE: a read-only file system with what the folder holds, as large as that needs
  local files=$(($(find "$1" | wc -l) + 1000)) megabytes
  megabytes=$(($(du -s --block-size=1M "$1" | cut -f1) * 5 / 4 + files / 2000 + 64))
  truncate -s "${megabytes}M" "$2"
  mkfs.ext4 -q -F -m 0 -O ^has_journal -N $files -d "$1" "$2"
  debugfs -w -R "rmdir lost+found" "$2" >/dev/null 2>&1
}

disks=()
disk() { # disk SERIAL FILE OPTIONS
  disks+=(-drive "if=none,id=$1,file=$2,format=raw,cache=unsafe,$3" -device "virtio-blk-pci,drive=$1,serial=$1")
}

job=$run/job
mkdir -p "$job/with"
cp lab/* "$job/"
cp /etc/ssl/certs/ca-certificates.crt "$job/"
environment=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DM_DISABLE_UDEV=1)
{
  echo '#!/bin/bash'
  echo 'cd /scratch'
  printf '%q ' exec env -i "${environment[@]}" "${variables[@]}" "$@"
} >"$job/command"
chmod 755 "$job/command"
: >"$job/disks"
for name in "${!with[@]}"; do
  if [ -d "${with[$name]}" ]; then
    serial=with${#disks[@]}
    pack "${with[$name]}" "$run/$serial.raw"
    disk "$serial" "$run/$serial.raw" readonly=on
    echo "$serial $name" >>"$job/disks"
  else
    cp --sparse=always --reflink=auto "${with[$name]}" "$job/with/$name"
  fi
done
pack "$job" "$run/job.raw"
rm -rf "$job"
disk job "$run/job.raw" readonly=on
disk root "$root/disk.raw" snapshot=on
truncate -s 128G "$run/scratch.raw"
mkfs.ext4 -q -F -m 0 -O ^has_journal -E lazy_itable_init=1,nodiscard "$run/scratch.raw"
disk scratch "$run/scratch.raw" discard=unmap

ports=(-device virtio-serial-pci)
for port in output results status; do
  ports+=(-chardev "file,id=$port,path=$run/$port" -device "virtserialport,chardev=$port,name=$port")
done
mkfifo "$run/output"
# Held open, so that the reader also ends where QEMU never came to open it.
exec {held}<>"$run/output"
cat <"$run/output" {held}>&- &
reader=$!

# QEMU keeps what the root disk's snapshot takes in TMPDIR. Where this script is killed, the machine ends too.
TMPDIR=$run setpriv --pdeathsig TERM timeout --kill-after 10 "${LAB_LIMIT:-90m}" \
  qemu-system-x86_64 -M q35 -accel tcg,thread=multi,tb-size=1024 -cpu max,+svm,-la57 \
  -smp "${LAB_CPUS:-2}" -m "${LAB_MEMORY:-8G}" -nodefaults -no-reboot -display none \
  -kernel "$root/vmlinuz" -initrd "$root/initramfs" \
  -append "mitigations=off quiet oops=panic panic=-1 net.ifnames=0 console=ttyS0" -serial "file:$run/console.log" \
  -netdev user,id=net -device virtio-net-pci,netdev=net -device virtio-rng-pci \
  "${disks[@]}" "${ports[@]}" </dev/null >"$run/qemu.log" 2>&1 &
qemu=$!
ended=0
wait $qemu || ended=$?
qemu=
exec {held}>&-
wait $reader
reader=

results=$lab/results/$(date +%Y%m%d-%H%M%S)-${run##*.}
mkdir "$results"
for log in console.log qemu.log; do
  [ ! -s "$run/$log" ] || cp "$run/$log" "$results/lab-$log"
done
ln -sfn "${results##*/}" "$lab/results/latest"
if [ ! -s "$run/status" ]; then
  [ $ended != 124 ] || say "the lab was ended at its limit of ${LAB_LIMIT:-90m}"
  say "the lab's machine came to no end of its own; the last it said:"
  tail -n 40 "$results"/lab-*.log >&2 || true
  exit 125
fi
tar -xf "$run/results" --no-same-owner -C "$results"
say "files of this run: ${results#"$PWD"/}"
exit "$(cat "$run/status")"
