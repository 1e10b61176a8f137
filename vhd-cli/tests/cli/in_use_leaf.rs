//! `vhd merge` of the file that a program writes to: the disk goes on in the parent, and commands find it by that.
//!
//! VHD_KILL_ROUNDS says how often the server is killed in the middle (default 12):
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli in_use_leaf -- --nocapture`

use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vhd_core::ErrorKind;
use vhd_core::chain::OpenOptions;

use crate::announce;
use crate::in_use::{chain, connect, hash, read, report_without, spawn, uri, wait_for_news, write};
use crate::kills::kill_rounds;
use crate::mounted::{Mounted, fuse};
use crate::nbd::Serving;
use crate::nbd_kill::{Cells, create_dynamic, verify};
use crate::nbd_live_writers::{KillOnDrop, write_in_scope};
use crate::support::{Lab, MIB, stderr};

/// Without what is not the same in two places, and what a disk in use copies more than once.
fn comparable(lab: &Lab, args: &[&str]) -> Value {
    let left_out = ["estimated_seconds", "read_bytes", "copied_bytes", "new_bytes"];
    report_without(lab, args, &left_out)
}

/// The files of the disk, its records and markers.
fn files(lab: &Lab) -> Vec<String> {
    let all = lab.names().into_iter();
    all.filter(|name| name != "other.raw" && name != "s.sock").collect()
}

/// The report is that of the command by itself, and all other jobs go on with the file that is written to now.
#[test]
fn a_served_leaf_is_merged_and_the_disk_goes_on_in_its_parent() {
    let (served, alone) = (Lab::new(), Lab::new());
    for lab in [&served, &alone] {
        chain(lab);
    }
    let server = Serving::start(&served, &["--unix", "s.sock", "leaf.vhd"]);
    let device = connect(&served, "");
    let before = hash(&served, &uri(&served, ""));
    served.run(&["merge", "leaf.vhd", "--offline"], 7);
    let steps: [&[&str]; 2] = [&["merge", "leaf.vhd", "--dry-run"], &["merge", "leaf.vhd"]];
    for step in steps {
        assert_eq!(comparable(&served, step), comparable(&alone, step), "{step:?}");
        assert_eq!(hash(&served, &uri(&served, "")), before, "{step:?}");
    }
    assert_eq!(files(&served), ["base.vhd", "high.vhd", "low.vhd"]);
    let gone = served.run(&["merge", "leaf.vhd"], 1);
    assert!(stderr(&gone).contains("VHD-E0302"), "{}", stderr(&gone));
    // It is found by the file that is written to now, and by no other way.
    served.run(&["snapshot", "create", "high.vhd", "--name", "no", "--offline"], 7);
    write(&device, 9 * MIB, &[9; 512]);
    served.run(&["snapshot", "create", "high.vhd", "--name", "one"], 0);
    let one = connect(&served, "high@one");
    write(&device, 9 * MIB, &[10; 512]);
    assert_eq!([read(&one, 9 * MIB), read(&device, 9 * MIB)], [9, 10]);
    let frozen = served.json(&["merge", "high.vhd"], 8);
    assert_eq!(frozen["error"]["code"], "VHD-E0207", "{frozen}");
    drop(one);
    served.run(&["snapshot", "delete", "high.vhd", "one"], 0);
    served.run(&["merge", "high.vhd", "--into", "base.vhd"], 0);
    served.run(&["resize", "base.vhd", "32M"], 0);
    assert_eq!(files(&served), ["base.vhd"]);
    assert_eq!(
        [0, 4096, 2 * MIB, 3 * MIB, 4 * MIB, 9 * MIB].map(|at| read(&device, at)),
        [1, 4, 2, 3, 4, 10]
    );
    drop(device);
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!((code, said.contains("warning")), (Some(0), false), "{said}");
    served.run(&["check", "base.vhd"], 0);
    assert_eq!(served.json(&["info", "base.vhd"], 0)["virtual_size"], json!(32 * MIB));
    // Nothing is left of the socket under any of its names.
    served.run(&["snapshot", "create", "base.vhd", "--name", "offline"], 0);
}

#[test]
fn a_merge_of_a_served_leaf_is_refused_where_others_depend_on_the_files() {
    let lab = Lab::new();
    chain(&lab);
    let _server = Serving::start(&lab, &["--unix", "s.sock", "leaf.vhd"]);
    lab.run(&["create", "other.vhd", "--parent", "high.vhd"], 0);
    for command in [&["merge", "leaf.vhd"][..], &["merge", "leaf.vhd", "--carry"]] {
        let refused = stderr(&lab.run(command, 8));
        assert!(
            refused.contains("VHD-E0207") && refused.contains("other.vhd"),
            "{refused}"
        );
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
    std::fs::remove_file(lab.path("other.vhd")).unwrap();
    let reader = OpenOptions::new().open(&lab.path("high.vhd")).unwrap();
    let locked = lab.json(&["merge", "leaf.vhd"], 7);
    assert_eq!(locked["error"]["code"], "VHD-E0304", "{locked}");
    drop(reader);
    assert!(
        lab.names()
            .iter()
            .all(|name| !name.contains(".merge") && !name.contains(".job"))
    );
    lab.run(&["merge", "leaf.vhd"], 0);
}

#[test]
fn a_merge_of_a_served_leaf_is_interrupted_and_goes_on() {
    let lab = Lab::new();
    lab.dynamic("base.vhd", 32 * MIB);
    lab.run(&["create", "leaf.vhd", "--parent", "base.vhd"], 0);
    let server = Serving::start(&lab, &["--unix", "s.sock", "leaf.vhd"]);
    let device = connect(&lab, "");
    write(&device, MIB, &vec![5; 12 << 20]);
    let slowly = ["merge", "leaf.vhd", "--rate", "512K", "--progress"];
    for end in [Signal::TERM, Signal::KILL] {
        let mut client = spawn(&lab, &slowly);
        wait_for_news(&mut client);
        if end == Signal::TERM {
            // So that it has something to say.
            thread::sleep(Duration::from_millis(1500));
        }
        kill_process(Pid::from_child(&client), end).unwrap();
        let ended = client.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        if end == Signal::TERM {
            assert_eq!(ended.status.code(), Some(1), "{said}");
            assert!(said.contains("VHD-E0412") && said.contains("of 12.00 MiB"), "{said}");
        }
        write(&device, 21 * MIB, &[7; 512]);
    }
    // The server may need a moment to see that the other command is gone.
    let begun = std::time::Instant::now();
    loop {
        let again = lab.vhd(&["merge", "leaf.vhd"]).assert();
        match again.get_output().status.code() {
            Some(0) => break,
            // On a busy machine it may have been done before the server saw that.
            Some(1) if stderr(&again).contains("VHD-E0302") => break,
            _ => assert!(begun.elapsed() < Duration::from_secs(60), "{}", stderr(&again)),
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(files(&lab), ["base.vhd"]);
    assert_eq!([MIB, 21 * MIB].map(|at| read(&device, at)), [5, 7]);
    drop(device);
    assert_eq!(server.stop(Signal::TERM).0, Some(0));
    lab.run(&["check", "base.vhd"], 0);
}

/// What is taken of a mounted disk afterwards is there without a new mount.
#[test]
fn the_leaf_of_a_mounted_disk_is_merged() {
    if !fuse() {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    let mounted = Mounted::new(&lab, &["--rw", "leaf.vhd"]);
    let raw = std::fs::File::options()
        .read(true)
        .write(true)
        .open(mounted.path("disk.raw"))
        .unwrap();
    raw.write_all_at(&[7; 4096], 9 * MIB).unwrap();
    lab.run(&["merge", "leaf.vhd", "--into", "low.vhd"], 0);
    raw.write_all_at(&[8; 4096], 10 * MIB).unwrap();
    raw.sync_all().unwrap();
    lab.run(&["snapshot", "create", "low.vhd", "--name", "one"], 0);
    raw.write_all_at(&[9; 4096], 10 * MIB).unwrap();
    let one = std::fs::File::open(mounted.path("snapshots/one/disk.raw")).unwrap();
    let at = |file: &std::fs::File, offset: u64| {
        let mut found = [0; 1];
        file.read_exact_at(&mut found, offset).unwrap();
        found[0]
    };
    assert_eq!([9, 10].map(|mib| at(&one, mib * MIB)), [7, 8]);
    assert_eq!([9, 10].map(|mib| at(&raw, mib * MIB)), [7, 9]);
    drop((raw, one));
    mounted.unmount();
    lab.run(&["snapshot", "delete", "low.vhd", "one"], 0);
    lab.run(&["check", "low.vhd"], 0);
}

/// The file that has the disk: the one that may be written to.
fn present<'a>(lab: &Lab, leaf: &'a str, target: &'a str) -> &'a str {
    match OpenOptions::new().write(true).open(&lab.path(leaf)) {
        Ok(_) => leaf,
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::JobPending | ErrorKind::NotFound), "{error}");
            target
        }
    }
}

/// INV-76 to INV-78: whenever the server is killed, what was flushed is in the file that counts, and the same command, with
/// a server or without one, finishes.
#[test]
fn a_killed_server_whose_leaf_is_merged() {
    let mut rng = vhd_testkit::rng::rng(vhd_testkit::rng::seed(0x1EAF));
    let (mut gone, mut begun) = (0, 0);
    let (lab, cells) = (Lab::new(), Cells::new(0));
    create_dynamic(&lab, "disk.vhd");
    for round in 0..kill_rounds() {
        let mut below = "disk.vhd";
        if round % 3 == 1 {
            // A layer with content between.
            lab.run(&["create", "between.vhd", "--parent", below], 0);
            below = "between.vhd";
            let mut server = Serving::start(&lab, &["--unix", "s.sock", below]);
            thread::scope(|scope| {
                let server = KillOnDrop(&mut server);
                write_in_scope(scope, &lab, &cells, &mut rng);
                thread::sleep(Duration::from_millis(30));
                server.0.signal(Signal::TERM);
                assert_eq!(server.0.child.wait().unwrap().code(), Some(0));
            });
        }
        lab.run(&["create", "leaf.vhd", "--parent", below], 0);
        let merge = ["merge", "leaf.vhd", "--into", "disk.vhd"];
        let mut server = Serving::start(&lab, &["--unix", "s.sock", "leaf.vhd"]);
        thread::scope(|scope| {
            let server = KillOnDrop(&mut server);
            write_in_scope(scope, &lab, &cells, &mut rng);
            thread::sleep(Duration::from_millis(rng.u64(..80)));
            let merging = scope.spawn(|| {
                let merged = lab.vhd(&merge).assert();
                let said = stderr(&merged);
                let code = merged.get_output().status.code();
                // The server went in the middle, or before it was asked: then it has the files for a moment, or nobody has.
                let broken = said.contains("VHD-E0325") || said.contains("VHD-E0304");
                assert!(code == Some(0) || broken, "{said}");
            });
            // In some rounds it comes to its end, however busy the machine is, and is killed at the end or behind it.
            while round % 3 == 0 && !merging.is_finished() && lab.exists("leaf.vhd") {
                thread::sleep(Duration::from_micros(rng.u64(1..500)));
            }
            thread::sleep(match round % 3 {
                0 => Duration::from_micros(rng.u64(..3000)),
                _ => Duration::from_millis(rng.u64(1..400)),
            });
            if rng.u8(..4) == 0 {
                server.0.signal(Signal::TERM);
                thread::sleep(Duration::from_micros(rng.u64(..8000)));
            }
            drop(server);
            merging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        server.kill();
        verify(&lab, present(&lab, "leaf.vhd", "disk.vhd"), &cells);
        let is_open = lab.exists("leaf.vhd.merge");
        begun += u32::from(is_open);
        gone += u32::from(!lab.exists("leaf.vhd"));
        let in_use = rng.bool() && present(&lab, "leaf.vhd", "disk.vhd") == "leaf.vhd";
        // The half merged parent has another time than the leaf remembers.
        let server = in_use.then(|| Serving::start_warned(&lab, &["--unix", "s.sock", "leaf.vhd"]).0);
        if lab.exists("leaf.vhd") || is_open {
            lab.run(&merge, 0);
        }
        drop(server);
        assert_eq!(files(&lab), ["disk.vhd"], "round {round}");
        verify(&lab, "disk.vhd", &cells);
        let report = lab.vhd(&["check", "disk.vhd", "--json"]).output().unwrap();
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        assert!(
            matches!(report["verdict"].as_str(), Some("clean" | "leaks")),
            "{report}"
        );
    }
    announce(&format!(
        "{} kills of a server whose leaf was merged: {begun} in the middle of a merge; in {gone} the leaf was gone",
        kill_rounds()
    ));
    assert!(gone > 0 && begun > 0, "all were at one stage: the test tested little");
}
