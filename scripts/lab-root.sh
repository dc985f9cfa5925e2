#!/usr/bin/env bash
# Makes the lab's kernel, initramfs and root disk once for each version of their recipe, and prints the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

mirror=${WRENN_DEBIAN_MIRROR:-http://deb.debian.org/debian}
root=$PWD/target/lab/root-$(cat scripts/lab-root.sh lab/packages lab/start | sha256sum | cut -c1-16)
if [ -e "$root/disk.raw" ]; then
  echo "$root"
  exit
fi
printf '\033[1m==>\033[0m %s\n' "making the lab's root disk" >&2
mkdir -p target/lab
work=$(mktemp -d target/lab/making.XXXXXX)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# Of bookworm only the kernel: it is the one that was seen to run KVM reliably under emulated SVM.
mmdebstrap --quiet --variant=extract --include=linux-image-cloud-amd64 bookworm "$work/kernel" "$mirror" >&2
mmdebstrap --quiet --variant=minbase --include="$(paste -sd, lab/packages)" --aptopt='Apt::Install-Recommends "false"' \
  --essential-hook='mkdir -p "$1/etc/postgresql-common"; echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"' \
  --customize-hook='chroot "$1" groupadd --system kvm' trixie "$work/tree" "$mirror" >&2

mkdir -p "$work/made"
cp "$work"/kernel/boot/vmlinuz-* "$work/made/vmlinuz"
version=$(basename "$work"/kernel/lib/modules/*)
mkdir -p "$work/tree/usr/lib/modules" "$work"/tree/lab/{job,with,results} "$work/tree/scratch"
mv "$work/kernel/lib/modules/$version" "$work/tree/usr/lib/modules/"
chroot "$work/tree" depmod "$version"

initramfs=$work/tree/initramfs
mkdir -p "$initramfs"/{bin,proc,sys,dev,root,modules}
cp "$work/tree/usr/bin/busybox" "$initramfs/bin/"
install -m 755 lab/start "$initramfs/init"
for name in virtio_pci virtio_blk; do
  chroot "$work/tree" modprobe --set-version "$version" --show-depends "$name"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
  cp "$work/tree/$module" "$initramfs/modules/"
  basename "$module"
done >"$work/order"
mv "$work/order" "$initramfs/modules/order"
chroot "$work/tree" /bin/sh -c 'cd /initramfs && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1' >"$work/made/initramfs"
rm -rf "$initramfs"

truncate -s 6G "$work/made/disk.raw"
mkfs.ext4 -q -F -m 0 -O ^has_journal -d "$work/tree" "$work/made/disk.raw"
rm -rf target/lab/root-* # of earlier recipes; a running lab keeps its own open
mv "$work/made" "$root"
echo "$root"
