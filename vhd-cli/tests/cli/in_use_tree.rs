//! `vhd resize --tree` of a disk with snapshots that a program has in use.
//!
//! VHD_KILL_ROUNDS says how often the server is killed in the middle (default 12):
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli in_use_tree -- --nocapture`

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use vhd_core::ErrorKind;
use vhd_core::chain::OpenOptions;
use vhd_core::device::BlockDevice as _;
use vhd_core::snapshot::{resolve, survey};

use crate::announce;
use crate::in_use::{connect, hash, read, uri, write};
use crate::kills::kill_rounds;
use crate::nbd::Serving;
use crate::nbd_kill::{CELLS, Cells, STRIDE, create_dynamic, verify};
use crate::nbd_live_writers::{KillOnDrop, write_in_scope};
use crate::support::{Lab, MIB, stderr};

/// The report of a resize, without the directory.
fn report(lab: &Lab, args: &[&str]) -> Value {
    let mut report = lab.json(args, 0);
    for file in report["files"].as_array_mut().unwrap() {
        let path = file["path"]
            .as_str()
            .unwrap()
            .replace(&lab.path("").display().to_string(), "");
        file["path"] = json!(path);
    }
    report
}

/// The report is that of the command by itself; clients of the disk and of a snapshot go on, and those that come see the new
/// end. A linked clone that nobody uses grows too.
#[test]
fn a_served_disk_with_snapshots_grows() {
    let (served, alone) = (Lab::new(), Lab::new());
    for lab in [&served, &alone] {
        lab.dynamic("vm.vhd", 16 * MIB);
        lab.write("vm.vhd", 0, &[1; 4096]);
        lab.run(&["create", "clone.vhd", "--parent", "vm.vhd"], 0);
        lab.run(&["create", "leaf.vhd", "--parent", "vm.vhd"], 0);
    }
    let server = Serving::start(&served, &["--unix", "s.sock", "leaf.vhd"]);
    let device = connect(&served, "");
    served.run(&["resize", "leaf.vhd", "24M", "--tree", "--offline"], 7);
    for step in [&["--dry-run"][..], &[]] {
        let command = [&["resize", "leaf.vhd", "24M", "--tree"], step].concat();
        assert_eq!(report(&served, &command), report(&alone, &command), "{step:?}");
    }
    write(&device, 8192, &[2; 512]);
    served.run(&["snapshot", "create", "leaf.vhd", "--name", "one"], 0);
    let one = connect(&served, "leaf@one");
    let before = hash(&served, &uri(&served, "leaf@one"));
    served.run(&["resize", "leaf.vhd", "24M", "--tree"], 0);
    assert_eq!(hash(&served, &uri(&served, "leaf@one")), before, "it has that size");
    // By any image of the tree.
    let grown = served.json(&["resize", "clone.vhd", "4G", "--tree"], 0);
    assert_eq!(grown["files"].as_array().unwrap().len(), 4, "{grown}");
    for export in ["", "leaf@one"] {
        assert_eq!(connect(&served, export).size_bytes(), 4096 * MIB, "{export}");
    }
    write(&device, 8192, &[3; 512]);
    let later = connect(&served, "");
    write(&later, 4096 * MIB - 512, &[4; 512]);
    assert_eq!([read(&one, 0), read(&one, 8192)], [1, 2]);
    assert_eq!([0, 8192, 4096 * MIB - 512].map(|at| read(&later, at)), [1, 3, 4]);
    // Somebody else has an image of the tree.
    let reader = OpenOptions::new().open(&served.path("clone.vhd")).unwrap();
    let locked = served.json(&["resize", "leaf.vhd", "5G", "--tree"], 7);
    assert_eq!(locked["error"]["code"], "VHD-E0304", "{locked}");
    drop((reader, one, later, device));
    served.run(&["snapshot", "delete", "leaf.vhd", "one"], 0);
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!((code, said.contains("warning")), (Some(0), false), "{said}");
    for image in ["vm.vhd", "clone.vhd", "leaf.vhd"] {
        served.run(&["check", image], 0);
        assert_eq!(
            served.json(&["info", image], 0)["virtual_size"],
            json!(4096 * MIB),
            "{image}"
        );
    }
}

/// INV-28, INV-47: whenever the server is killed, the same command finishes, and nothing that was flushed is lost.
#[test]
fn a_killed_server_whose_tree_grows() {
    let mut rng = vhd_testkit::rng::rng(vhd_testkit::rng::seed(0x7EE5));
    let (lab, cells) = (Lab::new(), Cells::new(0));
    create_dynamic(&lab, "disk.vhd");
    for name in ["one", "two"] {
        lab.run(&["snapshot", "create", "disk.vhd", "--name", name], 0);
    }
    let (mut open, mut size) = (0, CELLS * STRIDE);
    for round in 0..kill_rounds() {
        // So large, from the middle on, that blocks make room for the tables.
        size += if round < kill_rounds() / 2 { MIB } else { 512 * MIB };
        let wanted = size.to_string();
        let grow = ["resize", "disk.vhd", &wanted, "--tree"];
        let mut server = Serving::start(&lab, &["--unix", "s.sock", "disk.vhd@now"]);
        thread::scope(|scope| {
            let server = KillOnDrop(&mut server);
            write_in_scope(scope, &lab, &cells, &mut rng);
            thread::sleep(Duration::from_millis(rng.u64(..40)));
            let growing = scope.spawn(|| {
                let grown = lab.vhd(&grow).assert();
                let said = stderr(&grown);
                let broken = ["VHD-E0325", "VHD-E0304", "VHD-E0307"]
                    .iter()
                    .any(|code| said.contains(code));
                assert!(grown.get_output().status.code() == Some(0) || broken, "{said}");
            });
            let record = lab.path("disk.vhd.resize");
            while round % 2 == 0 && !growing.is_finished() && !record.exists() {
                thread::sleep(Duration::from_micros(50));
            }
            thread::sleep(match round % 2 {
                0 => Duration::from_micros(rng.u64(..20_000)),
                _ => Duration::from_millis(rng.u64(..200)),
            });
            drop(server);
            growing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        server.kill();
        let active = resolve(&lab.path("disk.vhd"), "now").unwrap();
        let is_open = match OpenOptions::new().write(true).open(&active) {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::JobPending, "{error}");
                true
            }
        };
        open += u32::from(is_open);
        if !is_open {
            verify(&lab, active.to_str().unwrap(), &cells);
        }
        lab.run(&grow, 0);
        verify(&lab, active.to_str().unwrap(), &cells);
        let files = survey(&lab.path("disk.vhd")).unwrap().manifest;
        for file in files.files() {
            assert_eq!(
                lab.json(&["info", &file.name], 0)["virtual_size"],
                json!(size),
                "{}",
                file.name
            );
            let checked = lab.vhd(&["check", &file.name, "--json"]).output().unwrap();
            let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
            assert!(
                matches!(report["verdict"].as_str(), Some("clean" | "leaks")),
                "{report}"
            );
        }
        assert!(
            lab.names()
                .iter()
                .all(|name| !name.contains(".job") && !name.contains(".resize"))
        );
    }
    announce(&format!(
        "{} kills of a server whose tree grew: {open} in the middle of a resize",
        kill_rounds()
    ));
    assert!(open > 0, "none was killed in the middle: the test tested little");
}
