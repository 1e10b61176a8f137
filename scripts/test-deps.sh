#!/usr/bin/env bash
# Installs the Debian packages that the tests run against: real peers, no stand-ins. Does nothing where all
# are there; without root it says which are missing, and the tests that need them say what they leave out.
set -euo pipefail
cd "$(dirname "$0")/.."

# command:package, or file:package
needed=(
    qemu-img:qemu-utils qemu-io:qemu-utils 7zz:7zip zstd:zstd gzip:gzip xz:xz-utils bzip2:bzip2 xorriso:xorriso strace:strace losetup:mount
    mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs cc:gcc sgdisk:gdisk sfdisk:fdisk
    mkfs.ntfs:ntfs-3g mkfs.vfat:dosfstools mcopy:mtools mkfs.exfat:exfatprogs mount.exfat-fuse:exfat-fuse
    mkswap:util-linux setpriv:util-linux fusermount3:fuse3 fuser:psmisc setfattr:attr debugfs:e2fsprogs python3:python3 nbdkit:nbdkit nbdinfo:libnbd-bin nbdsh:python3-libnbd fio:fio openssl:openssl
    chromium:chromium pdftotext:poppler-utils /usr/share/fonts/truetype/dejavu:fonts-dejavu-core ssh-keygen:openssh-client unshare:util-linux zsh:zsh fish:fish
    etcd:etcd-server ip:iproute2 fsfreeze:util-linux protoc:protobuf-compiler /usr/include/google/protobuf/descriptor.proto:libprotobuf-dev
)

missing=()
for entry in "${needed[@]}"; do
    [[ $entry == /* && -e ${entry%%:*} ]] || command -v "${entry%%:*}" >/dev/null || PATH="$PATH:/usr/sbin:/sbin" command -v "${entry%%:*}" >/dev/null \
        || missing+=("${entry##*:}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" -ne 0 ]; then
    echo "test-deps: not root, so these packages are not installed: ${missing[*]}" >&2
    exit 0
fi
scripts/install-packages "${missing[@]}"
