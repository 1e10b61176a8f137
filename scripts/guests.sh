# What the scripts with Linux guests under qemu share; to be sourced. `target/guest` keeps what was downloaded.
# shellcheck shell=bash

export PATH="$PATH:/usr/sbin:/sbin"
# Order matters: each needs those before it. Some are a part of newer kernels.
DISK_MODULES=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk)
# Of the processor that `run_host` has.
KVM_MODULES=(irqbypass kvm kvm-amd)

# Of a kernel that qemu emulates. On a machine that is busy the check of the timer fails without a reason.
EMULATED="console=ttyS0 quiet panic=-1 reboot=t no_timer_check"

say() { echo "$(basename "$0"): $*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
# What can't be run is not passed over in silence, and in CI it is a failure.
left_out() { say "NOT TESTED: $*"; [ -z "${CI:-}" ] || exit 1; exit 77; }

# Installs what is missing of these, each as command:package.
need() {
    local entry missing=()
    for entry in "$@"; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
    done
    [ ${#missing[@]} -eq 0 ] || scripts/install-packages "${missing[@]}" || left_out "there is no ${missing[*]}"
}

# The kernel of Debian's cloud images, from its package, without installing it, in $guest/kernel.
fetch_kernel() {
    [ ! -e "$guest/kernel/done" ] || return 0
    local name
    name="$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/ *Depends: \(linux-image-.*\)/\1/p' | head -1)"
    [ -n "$name" ] || left_out "apt knows no linux-image-cloud-amd64"
    rm -rf "$guest/kernel"
    mkdir -p "$guest/kernel"
    (cd "$guest/kernel" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$name") \
        || left_out "the kernel $name can't be downloaded"
    dpkg-deb -x "$guest"/kernel/*.deb "$guest/kernel"
    rm "$guest"/kernel/*.deb
    touch "$guest/kernel/done"
}

# The file of that kernel.
kernel() { find "$guest/kernel/boot" -name 'vmlinuz-*'; }

# Puts a file into a root directory, as PLACE there, and beside it the libraries that it needs.
put() { # ROOT FILE PLACE
    local library
    mkdir -p "$1$(dirname "$3")"
    cp -L "$2" "$1$3"
    for library in $(ldd "$2" | grep -o '/[^ ]*'); do
        mkdir -p "$1$(dirname "$library")"
        cp -L "$library" "$1$library"
    done
}

# Puts modules of the kernel into a root directory, and a list of them in that order.
put_modules() { # ROOT LIST MODULE...
    local modules="$1/lib/modules" list="$2" name file
    shift 2
    mkdir -p "$modules"
    for name in "$@"; do
        # What is not there is a part of the kernel itself.
        file="$(find "$guest/kernel" -name "$name.ko" -o -name "$name.ko.xz" | head -1)"
        case "$file" in
            "") ;;
            *.xz) xz -dc "$file" >"$modules/$name.ko" ;;
            *) cp "$file" "$modules/$name.ko" ;;
        esac
    done
    printf '%s\n' "$@" >"$modules/$list.order"
}

# Begins a root directory: busybox, mount points.
begin_root() { # ROOT
    mkdir -p "$1"/{bin,dev,proc,sys,mnt,tmp}
    cp "$(command -v busybox)" "$1/bin/busybox"
}

archive() { (cd "$1" && find . | cpio -o -H newc --quiet); }

# Runs a host that is a guest itself: qemu emulates a processor with virtualisation, and Debian's kernel starts $work/host.cpio
# on it. What it says is in $work/host.said then; that must end with HOST done. $emulator is qemu meanwhile.
run_host() { # SECONDS MEMORY-IN-MIB [OPTION OF QEMU...]
    local seconds="$1" memory="$2"
    shift 2
    timeout "$seconds" qemu-system-x86_64 -M pc -accel tcg -cpu EPYC-Rome -smp 1 -m "$memory" -nodefaults -no-user-config \
        -display none -serial stdio -no-reboot -kernel "$(kernel)" -initrd "$work/host.cpio" -append "$EMULATED" "$@" \
        </dev/null >"$work/host.console" 2>"$work/qemu.log" &
    emulator=$!
    wait "$emulator" || fail "qemu ended with $?: $(tail -5 "$work/qemu.log"; tail -40 "$work/host.console")"
    emulator=
    tr -d '\r' <"$work/host.console" >"$work/host.said"
    grep -E '^HOST|^  ' "$work/host.said" | sed "s/^/$(basename "$0"): /" >&2 || true
    grep -qx 'HOST done' "$work/host.said" || fail "$(tail -40 "$work/host.said")"
}
