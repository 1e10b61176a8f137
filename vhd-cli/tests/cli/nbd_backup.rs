//! Incremental backups with the programs that people have: qemu-img shows what changed since a snapshot
//! (`x-dirty-bitmap`), and these parts of the disk, put onto the backup of that snapshot, are the disk.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::nbd::{Serving, qemu_io};
use crate::support::{Lab, MIB};
use crate::tools::{have, run};

const KIB: u64 = 1 << 10;

/// First byte and number of bytes.
type Part = (u64, u64);

/// The server of the disk's present state and of its snapshots, and what programs find there. The export without a name
/// is the present state.
struct Clients<'a> {
    lab: &'a Lab,
    serving: Serving,
}

impl<'a> Clients<'a> {
    fn start(lab: &'a Lab) -> Self {
        let serving = Serving::start(lab, &["--unix", "s.sock", "vm.vhd@now"]);
        Self { lab, serving }
    }

    fn stop(self) {
        assert_eq!(self.serving.stop(Signal::TERM).0, Some(0));
    }

    fn path(&self, name: &str) -> String {
        self.lab.path(name).to_str().unwrap().to_owned()
    }

    fn uri(&self, export: &str) -> String {
        let export = export.replace(' ', "%20");
        format!("nbd+unix:///{export}?socket={}", self.path("s.sock"))
    }

    /// A backup of everything.
    fn back_up(&self, export: &str, name: &str) {
        let uri = self.uri(export);
        run(
            "qemu-img",
            ["convert", "-f", "raw", "-O", "raw", &uri, &self.path(name)],
        );
    }

    /// The options with which qemu opens an export, and takes a bitmap for its allocation.
    fn bitmap_options(&self, export: &str, snapshot: &str) -> String {
        let (socket, comma) = (self.path("s.sock"), |name: &str| name.replace(',', ",,"));
        format!(
            "driver=nbd,server.type=unix,server.path={},export={},x-dirty-bitmap=qemu:dirty-bitmap:{}",
            comma(&socket),
            comma(export),
            comma(snapshot),
        )
    }

    /// What changed in an export since a snapshot, as qemu sees it: it shows what is dirty as no data.
    fn changed(&self, export: &str, snapshot: &str) -> Vec<Part> {
        let options = self.bitmap_options(export, snapshot);
        let map = run("qemu-img", ["map", "--output=json", "--image-opts", &options]);
        parts(&map, "start", |part| part["data"] == false)
    }

    /// The same as libnbd sees it.
    fn changed_for_libnbd(&self, export: &str, snapshot: &str) -> Vec<Part> {
        let context = format!("--map=qemu:dirty-bitmap:{snapshot}");
        let map = run("nbdinfo", [&context, "--json", &self.uri(export)]);
        parts(&map, "offset", |part| part["type"] == 1)
    }

    fn has_bitmap(&self, export: &str, snapshot: &str) -> bool {
        let options = self.bitmap_options(export, snapshot);
        let map = ["map", "--output=json", "--image-opts", &options];
        Command::new("qemu-img").args(map).output().unwrap().status.success()
    }

    /// An overlay of an older backup with the changed parts of an export. It takes them by reading: as long as it lies
    /// over the export, a read copies.
    fn increment(&self, export: &str, changed: &[Part], older: &str) -> String {
        let overlay = self.path("increment.qcow2");
        let uri = self.uri(export);
        let raw_base = ["-f", "qcow2", "-F", "raw", "-b"];
        run(
            "qemu-img",
            [&["create", "-q"], &raw_base[..], &[&uri, &overlay]].concat(),
        );
        let reads: Vec<_> = changed
            .iter()
            .map(|(start, len)| format!("read {start} {len}"))
            .collect();
        let commands = reads.iter().flat_map(|read| ["-c", read]);
        run(
            "qemu-io",
            ["-C", "-f", "qcow2"].into_iter().chain(commands).chain([&*overlay]),
        );
        let older = self.path(older);
        run(
            "qemu-img",
            [&["rebase", "-u"], &raw_base[..], &[&older, &overlay]].concat(),
        );
        overlay
    }

    /// Whether an image has the content of an export.
    fn is_same(&self, image: &str, format: &str, export: &str) -> bool {
        let (image, uri) = (self.lab.path(image), self.uri(export));
        let mut command = Command::new("qemu-img");
        command.args(["compare", "-f", format, "-F", "raw"]).arg(image).arg(uri);
        let output = command.output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        output.status.success()
    }

    /// The backup of a snapshot and what changed since make a backup of the export; one alone does not.
    fn back_up_since(&self, export: &str, snapshot: &str) -> Vec<Part> {
        let changed = self.changed(export, snapshot);
        assert_eq!(
            changed,
            self.changed_for_libnbd(export, snapshot),
            "{export:?} since {snapshot:?}"
        );
        let older = format!("{snapshot}.raw");
        assert!(!self.is_same(&older, "raw", export), "{export:?} since {snapshot:?}");
        let increment = self.increment(export, &changed, &older);
        assert!(
            self.is_same(&increment, "qcow2", export),
            "{export:?} since {snapshot:?}: {changed:?}"
        );
        std::fs::remove_file(increment).unwrap();
        changed
    }
}

/// The parts that a map in JSON has of one kind; neighbours are one.
fn parts(map: &[u8], start: &str, is_meant: impl Fn(&Value) -> bool) -> Vec<Part> {
    let map: Value = serde_json::from_slice(map).unwrap();
    let mut parts: Vec<Part> = Vec::new();
    for part in map.as_array().unwrap().iter().filter(|part| is_meant(part)) {
        let (start, len) = (part[start].as_u64().unwrap(), part["length"].as_u64().unwrap());
        match parts.last_mut() {
            Some((before, total)) if *before + *total == start => *total += len,
            _ => parts.push((start, len)),
        }
    }
    parts
}

/// Writes to the present state through the server, makes a full backup of it, and then a snapshot of that name.
fn write_and_keep(lab: &Lab, name: &str, commands: &[&str]) {
    let clients = Clients::start(lab);
    assert!(qemu_io(lab, &clients.uri(""), commands), "{commands:?}");
    clients.back_up("", &format!("{name}.raw"));
    clients.stop();
    lab.run(&["snapshot", "create", "vm.vhd", "--name", name], 0);
}

/// A disk with the snapshots one, "two, or 2" and three on it, and side on one; all of them backed up. The present
/// state comes from side.
fn tree() -> Lab {
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 24 * MIB + 512);
    let mut bytes = vec![0; 3 << 20];
    fastrand::Rng::with_seed(11).fill(&mut bytes);
    lab.write("vm.vhd", 0, &bytes);
    write_and_keep(&lab, "one", &["write -P 1 6M 64k", "write -P 1 24M 512"]);
    write_and_keep(
        &lab,
        "two, or 2",
        &["write -P 2 512k 4k", "write -P 2 9M 700k", "write -z 0 64k"],
    );
    write_and_keep(
        &lab,
        "three",
        &["write -P 3 514k 1k", "write -P 3 9400k 4M", "discard 9M 64k"],
    );
    lab.run(&["snapshot", "apply", "vm.vhd", "one"], 0);
    write_and_keep(
        &lab,
        "side",
        &["write -P 4 1M 1M", "write -P 4 16M 2M", "write -z 24M 512"],
    );
    lab
}

#[test]
fn what_changed_since_a_snapshot_makes_a_backup() {
    let programs = ["qemu-img", "qemu-io", "nbdinfo"];
    if !have(&programs, "incremental backups over NBD") {
        return;
    }
    let lab = tree();
    let clients = Clients::start(&lab);
    let writes = [
        "write -P 5 5243000 700",
        "write -z 1M 64k",
        "discard 16M 1M",
        "write -P 5 23M 1M",
    ];
    assert!(qemu_io(&lab, &clients.uri(""), &writes));
    // To the sector: two of them have the 700 bytes.
    let since_side = clients.back_up_since("", "side");
    assert_eq!(since_side, [(MIB, 64 * KIB), (5_242_880, 1024), (23 * MIB, MIB)]);
    clients.back_up_since("", "one");
    // Of each snapshot since those before it.
    assert_eq!(
        clients.back_up_since("vm@three", "two, or 2"),
        [(514 * KIB, KIB), (9400 * KIB, 4 * MIB)]
    );
    clients.back_up_since("vm@three", "one");
    clients.back_up_since("vm@two, or 2", "one");
    clients.back_up_since("vm@side", "one");
    // What a state does not come from is no bitmap of it, and not one in which nothing changed.
    for (export, snapshot) in [
        ("", "two, or 2"),
        ("", "three"),
        ("vm@side", "three"),
        ("vm@one", "one"),
    ] {
        assert!(!clients.has_bitmap(export, snapshot), "{export:?} since {snapshot:?}");
    }
    clients.stop();
    // The present state has what a deleted snapshot held.
    lab.run(&["snapshot", "delete", "vm.vhd", "side"], 0);
    let clients = Clients::start(&lab);
    assert!(!clients.has_bitmap("", "side"));
    clients.back_up_since("", "one");
    clients.stop();
    // On the other branch.
    lab.run(&["snapshot", "apply", "vm.vhd", "two, or 2", "--discard-current"], 0);
    let clients = Clients::start(&lab);
    assert!(qemu_io(&lab, &clients.uri(""), &["write -P 6 20M 1M"]));
    assert_eq!(clients.back_up_since("", "two, or 2"), [(20 * MIB, MIB)]);
    clients.back_up_since("", "one");
    assert!(!clients.has_bitmap("", "three"));
    clients.stop();
}
