//! Jobs on disks that other programs have in use: `merge`, `resize` and `snapshot delete` through the control socket, at a
//! rate, with progress, interrupted, one at a time.

use std::io::{IoSlice, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vhd_core::device::BlockDevice as _;
use vhd_nbd::client::{ClientOptions, NbdDevice};

use crate::mounted::{Mounted, fuse};
use crate::nbd::Serving;
use crate::support::{Lab, MIB, stderr};

pub(crate) fn uri(lab: &Lab, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display())
}

pub(crate) fn connect(lab: &Lab, export: &str) -> Arc<NbdDevice> {
    let options = ClientOptions {
        write: !export.contains('@'),
        ..ClientOptions::default()
    };
    NbdDevice::open(&uri(lab, export).parse().unwrap(), options).unwrap()
}

pub(crate) fn write(device: &NbdDevice, offset: u64, bytes: &[u8]) {
    device.write_vectored_at(&[IoSlice::new(bytes)], offset, false).unwrap();
}

pub(crate) fn read(device: &NbdDevice, offset: u64) -> u8 {
    let mut found = [0; 512];
    device.read_at(&mut found, offset).unwrap();
    found[0]
}

pub(crate) fn hash(lab: &Lab, image: &str) -> Value {
    lab.json(&["hash", image], 0)["sha256"].clone()
}

/// base <- low <- high <- leaf, each with some content of its own.
pub(crate) fn chain(lab: &Lab) {
    lab.dynamic("base.vhd", 16 * MIB);
    lab.write("base.vhd", 0, &[1; 8192]);
    for (number, (child, parent)) in (2..).zip([
        ("low.vhd", "base.vhd"),
        ("high.vhd", "low.vhd"),
        ("leaf.vhd", "high.vhd"),
    ]) {
        lab.run(&["create", child, "--parent", parent], 0);
        lab.write(child, MIB * u64::from(number), &[number; 8192]);
        lab.write(child, 4096, &[number; 512]);
    }
}

/// The report of a command without these fields, and without the directory in the others: what is the same in two places.
pub(crate) fn report_without(lab: &Lab, args: &[&str], left_out: &[&str]) -> Value {
    let mut report = lab.json(args, 0);
    let fields = report.as_object_mut().unwrap();
    for field in left_out {
        fields.remove(*field);
    }
    for (_, field) in fields {
        let text = serde_json::to_string(&*field).unwrap();
        let text = text.replace(&lab.path("").display().to_string(), "");
        *field = serde_json::from_str(&text).unwrap();
    }
    report
}

/// A command that runs beside the test.
pub(crate) fn spawn(lab: &Lab, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhd"));
    command.args(args).current_dir(lab.path(""));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The report is that of the command by itself, but for what is not the same in both places.
#[test]
fn layers_below_a_served_leaf_are_merged() {
    let (served, alone) = (Lab::new(), Lab::new());
    for lab in [&served, &alone] {
        chain(lab);
    }
    let server = Serving::start(&served, &["--unix", "s.sock", "leaf.vhd"]);
    let device = connect(&served, "");
    let before = hash(&served, &uri(&served, ""));
    served.run(&["merge", "high.vhd", "--offline"], 7);
    let steps: [&[&str]; 3] = [
        &["merge", "high.vhd", "--into", "base.vhd", "--dry-run"],
        &["merge", "high.vhd"],
        &["merge", "low.vhd"],
    ];
    for step in steps {
        // The leaf that is written to may grow by less than a copy of it.
        let [here, there] = [&served, &alone].map(|lab| report_without(lab, step, &["estimated_seconds"]));
        assert_eq!(here, there, "{step:?}");
        assert_eq!(hash(&served, &uri(&served, "")), before, "{step:?}");
        write(&device, 9 * MIB, &[9; 512]);
        assert_eq!(
            [read(&device, 4096), read(&device, 3 * MIB), read(&device, 9 * MIB)],
            [4, 3, 9]
        );
        write(&device, 9 * MIB, &[0; 512]);
    }
    assert!(!served.exists("high.vhd") && !served.exists("low.vhd"));
    let missing = served.run(&["merge", "low.vhd"], 1);
    assert!(stderr(&missing).contains("VHD-E0302"), "{}", stderr(&missing));
    drop(device);
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(hash(&served, "leaf.vhd"), before);
    served.run(&["check", "base.vhd"], 0);
    served.run(&["check", "leaf.vhd"], 0);
    served.run(&["merge", "leaf.vhd"], 0);
    assert_eq!(hash(&served, "base.vhd"), before);
}

/// Who reads a layer by itself stands in the way, and so does a carried child that is in use; nothing changes.
#[test]
fn a_merge_in_use_is_refused_where_one_alone_would_be() {
    let lab = Lab::new();
    chain(&lab);
    let server = Serving::start(&lab, &["--unix", "s.sock", "leaf.vhd"]);
    lab.run(&["create", "other.vhd", "--parent", "low.vhd"], 0);
    let refused = lab.run(&["merge", "high.vhd"], 8);
    assert!(stderr(&refused).contains("VHD-E0207"), "{}", stderr(&refused));
    let reader = vhd_core::chain::OpenOptions::new()
        .open(&lab.path("other.vhd"))
        .unwrap();
    let locked = lab.run(&["merge", "high.vhd", "--carry"], 7);
    assert!(stderr(&locked).contains("VHD-E0304"), "{}", stderr(&locked));
    drop(reader);
    let before = [hash(&lab, "other.vhd"), hash(&lab, &uri(&lab, ""))];
    lab.run(&["merge", "high.vhd", "--carry"], 0);
    assert_eq!([hash(&lab, "other.vhd"), hash(&lab, &uri(&lab, ""))], before);
    drop(server);
}

#[test]
fn a_served_disk_grows() {
    let lab = Lab::new();
    for (image, fixed) in [("dynamic.vhd", false), ("fixed.vhd", true)] {
        match fixed {
            true => lab.fixed(image, 8 * MIB),
            false => lab.dynamic(image, 8 * MIB),
        }
        lab.write(image, 7 * MIB, &[7; 512]);
        let server = Serving::start(&lab, &["--unix", "s.sock", image]);
        let device = connect(&lab, "");
        write(&device, 0, &[1; 512]);
        lab.run(&["resize", image, "16M", "--offline"], 7);
        let planned = lab.json(&["resize", image, "16M", "--dry-run"], 0);
        assert_eq!(
            (&planned["dry_run"], &planned["files"][0]["old_size"]),
            (&json!(true), &json!(8 * MIB))
        );
        for (size, option) in [("4M", "--shrink"), ("16M", "--fix-gpt")] {
            let refused = lab.json(&["resize", image, size, option], 7);
            assert_eq!(refused["error"]["code"], "VHD-E0326", "{refused}");
        }
        let grown = lab.json(&["resize", image, "16M"], 0);
        assert_eq!((&grown["image"], &grown["size"]), (&json!(image), &json!(16 * MIB)));
        assert_eq!(
            lab.json(&["resize", image, "16M"], 0)["files"],
            json!([]),
            "it has that size"
        );
        // Who is connected goes on, and who connects now sees the new end.
        write(&device, 4096, &[2; 512]);
        let later = connect(&lab, "");
        assert_eq!(later.size_bytes(), 16 * MIB);
        write(&later, 16 * MIB - 512, &[3; 512]);
        assert_eq!(
            [0, 4096, 7 * MIB, 16 * MIB - 512].map(|at| read(&later, at)),
            [1, 2, 7, 3]
        );
        drop((device, later));
        let (code, said) = server.stop(Signal::TERM);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(lab.json(&["info", image], 0)["virtual_size"], json!(16 * MIB));
        lab.run(&["check", image], 0);
    }
    // With snapshots all images have one size.
    let server = Serving::start(&lab, &["--unix", "s.sock", "dynamic.vhd"]);
    lab.run(&["snapshot", "create", "dynamic.vhd", "--name", "one"], 0);
    let active = lab.names().into_iter().find(|name| name.ends_with(".avhd")).unwrap();
    for image in ["dynamic.vhd", &active] {
        let refused = lab.json(&["resize", image, "32M"], 8);
        assert_eq!(refused["error"]["code"], "VHD-E0314", "{refused}");
    }
    // Other commands say what to do.
    for command in [
        &["snapshot", "revert", "dynamic.vhd"][..],
        &["compact", &active],
        &["new-id", &active],
    ] {
        let refused = lab.run(command, 7);
        let said = stderr(&refused);
        assert!(
            said.contains("VHD-E0304") && said.contains("end that program first"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    drop(server);
}

/// A disk whose snapshot "one" holds 12 MiB that a deletion merges, in use.
fn slow(lab: &Lab) -> (Serving, Value) {
    lab.dynamic("vm.vhd", 32 * MIB);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "one"], 0);
    let server = Serving::start(lab, &["--unix", "s.sock", "--export", "vm=vm.vhd@now"]);
    let device = connect(lab, "vm");
    write(&device, MIB, &vec![5; 12 << 20]);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "two"], 0);
    write(&device, 20 * MIB, &[6; 4096]);
    let two = hash(lab, &uri(lab, "vm@two"));
    (server, two)
}

/// Waits for a job to have begun; what the command has said then.
pub(crate) fn wait_for_news(client: &mut Child) -> String {
    let mut line = String::new();
    // A byte at a time: nothing behind the line is taken.
    let said = client.stderr.as_mut().unwrap();
    while !line.ends_with('\n') {
        let mut byte = [0];
        assert_eq!(said.read(&mut byte).unwrap(), 1, "it ended with {line:?}");
        line.push(char::from(byte[0]));
    }
    assert!(line.starts_with("vhd: merging "), "{line}");
    line
}

const DELETE: [&str; 4] = ["snapshot", "delete", "vm.vhd", "one"];

#[test]
fn a_job_has_a_rate_and_progress_and_is_interrupted_and_goes_on() {
    let lab = Lab::new();
    let (server, two) = slow(&lab);
    let slowly = [&DELETE[..], &["--rate", "512K", "--progress"]].concat();
    for end in [Signal::TERM, Signal::KILL] {
        let mut client = spawn(&lab, &slowly);
        wait_for_news(&mut client);
        // Another job has to wait, and says so.
        let busy = lab.run(&["snapshot", "create", "vm.vhd", "--name", "three"], 7);
        let said = stderr(&busy);
        assert!(said.contains("VHD-E0304") && said.contains("another command"), "{said}");
        if end == Signal::TERM {
            // So that it has something to say.
            thread::sleep(Duration::from_millis(1500));
        }
        kill_process(Pid::from_child(&client), end).unwrap();
        let ended = client.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        if end == Signal::TERM {
            assert_eq!(ended.status.code(), Some(1), "{said}");
            assert!(said.contains("VHD-E0412"), "{said}");
            assert!(
                said.contains("vhd: merging ") && said.contains("of 12.00 MiB"),
                "{said}"
            );
        }
        // What reads through the files that are half merged reads what it read.
        assert_eq!(hash(&lab, &uri(&lab, "vm@two")), two);
        let device = connect(&lab, "vm");
        write(&device, 21 * MIB, &[7; 512]);
    }
    // The same command goes on; the server may need a moment to see that the other one is gone.
    let begun = Instant::now();
    loop {
        let again = lab.vhd(&[&DELETE[..], &["--json"]].concat()).assert();
        match again.get_output().status.code() {
            Some(0) => {
                let report: Value = serde_json::from_slice(&again.get_output().stdout).unwrap();
                assert_eq!(report["waiting"], json!([]), "{report}");
                break;
            }
            // On a busy machine it may have been done before the server saw that.
            Some(8) if stderr(&again).contains("VHD-E0309") => break,
            _ => {}
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", stderr(&again));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        lab.names().iter().filter(|name| name.ends_with(".avhd")).count(),
        1,
        "{:?}",
        lab.names()
    );
    lab.run(&DELETE, 8);
    assert_eq!(hash(&lab, &uri(&lab, "vm@two")), two);
    let now = hash(&lab, &uri(&lab, "vm"));
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((hash(&lab, "vm.vhd@two"), hash(&lab, "vm.vhd@now")), (two, now));
    lab.run(&["check", "vm.vhd"], 0);
}

/// A server that is told to stop ends the job at a safe point, and the next command completes it, without a server.
#[test]
fn a_job_ends_with_the_server_and_is_completed_without_it() {
    let lab = Lab::new();
    let (server, two) = slow(&lab);
    let mut client = spawn(&lab, &[&DELETE[..], &["--rate", "512K", "--progress"]].concat());
    wait_for_news(&mut client);
    let now = hash(&lab, &uri(&lab, "vm"));
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(client.wait_with_output().unwrap().status.code(), Some(1));
    let done = lab.run(&DELETE, 0);
    assert!(stderr(&done).contains("its merge is completed"), "{}", stderr(&done));
    assert_eq!((hash(&lab, "vm.vhd@two"), hash(&lab, "vm.vhd@now")), (two, now));
}

/// Jobs on a mounted disk: a new snapshot is there without a new mount, one that stays is read while another goes, and the
/// disk grows.
#[test]
fn a_mounted_disk_is_worked_on() {
    if !fuse() {
        return;
    }
    use std::os::unix::fs::FileExt as _;
    let lab = Lab::new();
    lab.dynamic("vm.vhd", 8 * MIB);
    let mounted = Mounted::new(&lab, &["--rw", "vm.vhd"]);
    let open = |name: &str, write: bool| {
        std::fs::File::options()
            .read(true)
            .write(write)
            .open(mounted.path(name))
            .unwrap()
    };
    lab.run(&["resize", "vm.vhd", "16M"], 0);
    let begun = Instant::now();
    while mounted.path("disk.raw").metadata().unwrap().len() != 16 * MIB {
        assert!(begun.elapsed() < Duration::from_secs(60), "the new size is not seen");
        thread::sleep(Duration::from_millis(50));
    }
    let raw = open("disk.raw", true);
    let at = |file: &std::fs::File, offset: u64| {
        let mut found = [0; 1];
        file.read_exact_at(&mut found, offset).unwrap();
        found[0]
    };
    let names = || {
        let entries = std::fs::read_dir(mounted.path("snapshots")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    for (number, name) in (1..).zip(["one", "two", "three"]) {
        raw.write_all_at(&[number; 4096], 15 * MIB).unwrap();
        raw.sync_all().unwrap();
        lab.run(&["snapshot", "create", "vm.vhd", "--name", name], 0);
        assert!(names().contains(&name.to_owned()), "{:?}", names());
        assert_eq!(
            at(&open(&format!("snapshots/{name}/disk.raw"), false), 15 * MIB),
            number
        );
    }
    raw.write_all_at(&[9; 4096], 0).unwrap();
    let (two, three) = (
        open("snapshots/two/disk.raw", false),
        open("snapshots/three/disk.raw", false),
    );
    for gone in ["one", "three"] {
        let deleted = lab.run(&["snapshot", "delete", "vm.vhd", gone, "--json"], 0);
        let report: Value = serde_json::from_slice(&deleted.get_output().stdout).unwrap();
        assert_eq!(report["waiting"], json!([]), "{report}");
        assert_eq!(at(&two, 15 * MIB), 2, "without {gone}");
        assert!(!names().contains(&gone.to_owned()));
    }
    let mut found = [0];
    // It may be in the kernel's memory.
    assert!(three.read_exact_at(&mut found, 3 * MIB).is_err() || found == [0]);
    assert_eq!((at(&raw, 0), at(&raw, 15 * MIB)), (9, 3));
    drop((raw, two, three));
    mounted.unmount();
    assert_eq!(lab.json(&["info", "vm.vhd@now"], 0)["virtual_size"], json!(16 * MIB));
    for image in ["vm.vhd@two", "vm.vhd@now"] {
        lab.run(&["hash", image], 0);
    }
    lab.run(&["check", "vm.vhd"], 0);
}
