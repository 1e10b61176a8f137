//! What the words of other programs are called here.

/// Commands of other programs, separated by spaces, and what to say. Case does not count.
pub(super) const COMMANDS: &[(&str, &str)] = &[
    // qemu-img
    ("commit", "`vhd merge` writes an image into the one below it"),
    (
        "rebase",
        "`vhd reparent` gives an image another parent; with `--rebase` it goes on reading the same",
    ),
    ("dd", "`vhd convert` copies a disk, and `vhd cat` a file inside one"),
    (
        "amend",
        "`vhd convert` writes a disk as another type of image, and `vhd resize` changes its size",
    ),
    ("bench", "serve the disk with `vhd nbd` and measure it with fio"),
    (
        "bitmap",
        "`vhd snapshot create` marks a time; `vhd diff` and `vhd export-delta` tell what changed since",
    ),
    // qemu-nbd, nbdkit, vhdimount, guestmount
    ("serve export qemu-nbd", "`vhd nbd` serves disks over NBD"),
    (
        "unmount dismount detach",
        "`vhd umount` unmounts what `vhd mount` has mounted",
    ),
    ("attach", "`vhd mount` shows a disk as files, and `vhd nbd` serves it"),
    (
        "list dir",
        "`vhd tree` shows the images below a directory, and `vhd ls` the files inside a disk",
    ),
    (
        "extract copy copy-out",
        "`vhd cp` copies files out of a disk, and `vhd convert` the whole disk",
    ),
    // vhd-util
    ("query", "`vhd info` shows an image and its chain"),
    ("coalesce", "`vhd merge` writes an image into the one below it"),
    (
        "scan",
        "`vhd tree` shows the images below a directory: which is whose child",
    ),
    (
        "read",
        "`vhd map` shows what is stored where, and `vhd convert` reads the content",
    ),
    (
        "modify set",
        "`vhd reparent` gives an image another parent, and `vhd new-id` another identity",
    ),
    (
        "revert",
        "`vhd snapshot revert` goes back to the last snapshot; `vhd repair` finishes or undoes what was interrupted",
    ),
    (
        "fill",
        "`vhd convert` writes a fixed image, which has all its space with `--preallocate`",
    ),
    ("keyhash", "`vhd hash` prints the digest of a disk's content"),
    // PowerShell
    ("Get-VHD", "`vhd info` shows an image and its chain"),
    (
        "New-VHD",
        "`vhd create` makes an image; with `--parent` a differencing one",
    ),
    (
        "Convert-VHD",
        "`vhd convert` writes a disk as a raw, fixed or dynamic image",
    ),
    ("Resize-VHD", "`vhd resize` gives a disk another size"),
    (
        "Optimize-VHD shrink",
        "`vhd compact` makes an image's file shorter; with `--free-space` what file systems do not use goes too",
    ),
    (
        "Merge-VHD",
        "`vhd merge` writes an image into the one below it, or with `--into` a range of a chain",
    ),
    (
        "Set-VHD",
        "`vhd reparent` gives an image another parent, and `vhd new-id` another identity",
    ),
    ("Test-VHD verify-chain", "`vhd check` checks an image and its ancestors"),
    (
        "Mount-VHD Mount-DiskImage",
        "`vhd mount` shows a disk as files, and `vhd nbd` serves it",
    ),
    (
        "Dismount-VHD Dismount-DiskImage",
        "`vhd umount` unmounts what `vhd mount` has mounted",
    ),
    (
        "Checkpoint-VM",
        "`vhd snapshot create` keeps the present state under a name",
    ),
    (
        "Get-VMSnapshot Get-VMCheckpoint",
        "`vhd snapshot list` lists the snapshots of a disk",
    ),
    (
        "Restore-VMSnapshot Restore-VMCheckpoint",
        "`vhd snapshot apply` makes a snapshot's state the present one",
    ),
    (
        "Remove-VMSnapshot Remove-VMCheckpoint",
        "`vhd snapshot delete` deletes a snapshot; the others stay",
    ),
    ("Start-VM", "`vhd vm run` runs a Linux guest"),
    // VBoxManage
    (
        "createmedium createhd createvdi",
        "`vhd create` makes an image; with `--parent` a differencing one",
    ),
    (
        "clonemedium clonehd clonevdi",
        "`vhd convert` writes a disk as a raw, fixed or dynamic image",
    ),
    (
        "showmediuminfo showhdinfo showvdiinfo",
        "`vhd info` shows an image and its chain",
    ),
    (
        "modifymedium modifyhd",
        "`vhd compact` makes an image's file shorter, and `vhd resize` changes the disk's size",
    ),
    (
        "mediumio",
        "`vhd cat` prints a file inside a disk, and `vhd convert` copies the whole disk",
    ),
    (
        "internalcommands sethduuid",
        "`vhd new-id` gives an image an identity of its own",
    ),
    (
        "convertfromraw convertdd",
        "`vhd convert` with `--from` writes an image from a raw disk",
    ),
    ("startvm", "`vhd vm run` runs a Linux guest"),
    // words of every day
    (
        "delete rm remove",
        "`vhd snapshot delete` deletes a snapshot; a file that nothing relies on (`vhd tree`) is removed by rm",
    ),
    (
        "clone",
        "`vhd convert` copies a disk, and `vhd new-id` gives a copied file an identity of its own",
    ),
    (
        "fsck",
        "`vhd check` checks an image, `vhd repair` repairs it, and `vhd doctor` does the first for a directory",
    ),
    (
        "flatten",
        "`vhd convert` writes a chain as one image, and `vhd merge` makes a chain shorter in place",
    ),
    ("grow extend expand", "`vhd resize` gives a disk another size"),
    (
        "size",
        "`vhd resize` changes the size of a disk, and `vhd info` tells it",
    ),
    (
        "backup",
        "`vhd snapshot create`, then copy DISK@NAME with `vhd convert`",
    ),
    (
        "sha256 md5 checksum",
        "`vhd hash` prints the SHA-256 of a disk's content",
    ),
    ("server daemon", "`vhd nbd` serves disks over NBD"),
];

/// Options of other programs, and what to say.
pub(super) struct Option {
    /// The command that they are given to; empty: any.
    pub(super) command: &'static str,
    /// As they are written, separated by spaces.
    pub(super) options: &'static str,
    pub(super) tip: &'static str,
}

const fn row(command: &'static str, options: &'static str, tip: &'static str) -> Option {
    Option { command, options, tip }
}

pub(super) const OPTIONS: &[Option] = &[
    row(
        "check",
        "-r --repair --fix -y",
        "`vhd repair` shows what would repair an image, and does it with `--yes`",
    ),
    row(
        "compact",
        "--repair --fix",
        "`vhd repair` shows what would repair an image, and does it with `--yes`",
    ),
    row(
        "convert",
        "-o",
        "the type is the destination's format: `--to fixed`, `--to dynamic`; `--block-size` and `--preallocate` are options",
    ),
    row(
        "convert",
        "-c --compress",
        "a VHD is never compressed: compress the file, or standard output with `--to raw`",
    ),
    row(
        "convert",
        "-B -b --backing",
        "`vhd export-delta` writes what a disk has that an older one has not, as a child of that",
    ),
    row("convert", "-l", "name the snapshot in the source: DISK@NAME"),
    row(
        "convert",
        "-n",
        "the destination is made anew; `--force` replaces one that exists",
    ),
    row("convert", "-S", "zeroes never take space in the destination"),
    row("convert", "-W -m", "`--threads` says how many threads copy"),
    row(
        "create",
        "-b --backing --backing-file -ParentPath",
        "`--parent` names the disk below a differencing image",
    ),
    row("create", "-F", "`--from` says the format of the parent"),
    row(
        "create",
        "-o",
        "`--type` says the type: dynamic or fixed; `--block-size` and `--preallocate` are options",
    ),
    row(
        "create",
        "-n --name",
        "the new image is the first argument: `vhd create disk.vhd 64G`",
    ),
    row(
        "create",
        "-f -O --format --fixed --dynamic --variant -Fixed -Dynamic",
        "only VHDs are created: `--type` says fixed or dynamic",
    ),
    row("create", "-r --reserve", "`--preallocate` says how space is allocated"),
    row(
        "create",
        "-s --sizebytes",
        "the size is the second argument: `vhd create disk.vhd 64G`",
    ),
    row("nbd", "--socket -k --sock", "`--unix` listens on a unix socket"),
    row(
        "nbd",
        "-p --port -b --bind --listen",
        "`--tcp` takes the address and the port: 127.0.0.1:10809",
    ),
    row("nbd", "-r --readonly --ro", "`--read-only` refuses writes"),
    row("nbd", "-x --export-name", "`--export` takes NAME=IMAGE"),
    row(
        "nbd",
        "-c --connect -d --disconnect",
        "the server listens on a socket; connect to it with nbd-client",
    ),
    row(
        "nbd",
        "-e --shared",
        "`--max-connections` says how many clients there may be",
    ),
    row("nbd", "-t --persistent", "the server stays until it is ended"),
    row(
        "nbd",
        "--format",
        "`--from` says the format; `--export` takes NAME=raw:FILE for a raw disk",
    ),
    row(
        "nbd",
        "-s",
        "`--snapshot` takes writes into a layer that is thrown away at the end",
    ),
    row("nbd", "-P --partition", "`vhd mount` shows each partition as a file"),
    row(
        "merge",
        "-b --base -d -DestinationPath",
        "`--into` names the ancestor to merge into",
    ),
    row(
        "reparent",
        "-b --backing --new-parent -u",
        "`--parent` names the new parent; without `--rebase` the child's data stays as it is",
    ),
    row(
        "resize",
        "--size --resize -s -SizeBytes",
        "the size is the second argument: `vhd resize disk.vhd 128G`",
    ),
    row(
        "resize",
        "--preallocation",
        "new space of a fixed image is a hole until it is written",
    ),
    row("info", "--output", "`--json` reports as one JSON object"),
    row(
        "snapshot",
        "-c",
        "`vhd snapshot create` keeps the present state under the name that `--name` gives",
    ),
    row("snapshot", "-l", "`vhd snapshot list` lists the snapshots"),
    row(
        "snapshot",
        "-a",
        "`vhd snapshot apply` makes a snapshot's state the present one",
    ),
    row(
        "snapshot",
        "-d",
        "`vhd snapshot delete` deletes a snapshot; the others stay",
    ),
    row(
        "snapshot",
        "-n -p",
        "`vhd snapshot create` keeps the present state; `vhd create` with `--parent` makes one differencing image",
    ),
    row(
        "mount",
        "-r --ro --readonly --read-only -o",
        "a disk is mounted read-only unless `--rw` is given; each partition is a file below DIRECTORY/partitions",
    ),
    row(
        "mount",
        "-w --writable --readwrite",
        "`--rw` mounts a disk that can be written",
    ),
    row(
        "mount",
        "-a --add -m",
        "the image and the directory are the two arguments: `vhd mount disk.vhd DIRECTORY`",
    ),
    row(
        "umount",
        "-l --lazy -f --force",
        "the directory is the only argument; what uses it must end first",
    ),
    row(
        "compare",
        "-f -F --image-opts",
        "`--from` and `--from-b` say the formats, which are told by content otherwise",
    ),
    row(
        "compare",
        "-s --strict",
        "`vhd compare` looks at contents alone; `vhd info` tells the sizes",
    ),
    row(
        "vm",
        "-m -smp -hda -drive -kernel -initrd -append -nographic",
        "`vhd vm run` takes DISK, `--memory`, `--cpus`, `--kernel`, `--initrd`, `--append`",
    ),
    row("", "--output", "`--json` reports as one JSON object"),
    row(
        "",
        "--image-opts --object",
        "files, DISK@NAME and NBD URIs are named as they are",
    ),
    row(
        "",
        "--dryrun -n --noop --simulate",
        "`--dry-run` says what would be done, where a command changes something",
    ),
    row(
        "",
        "--share --no-lock",
        "`--force-share` takes no locks and respects none",
    ),
    row(
        "",
        "-y --assume-yes",
        "commands do not ask; `vhd repair` alone needs `--yes`",
    ),
    row(
        "",
        "-d --debug -vv --log-level",
        "the environment variable VHD_LOG=debug has the library say what it does",
    ),
];
