//! What guests are told of processors, and where they can go on.

use std::fs;
use std::io::Read as _;

use serde_json::{Value, json};

use crate::payload::{Payload, has_kvm};
use crate::support::{Lab, stderr, stdout};
use crate::vm::{chain, kernel};
use crate::vm_control::Running;
use crate::vm_saved::{read_on, restore};

/// Describes this host in a file; what the description says.
fn describe(lab: &Lab, file: &str, args: &[&str]) -> Value {
    let described = lab.run(&[&["vm", "cpu", "describe"], args].concat(), 0);
    fs::write(lab.path(file), stdout(&described)).unwrap();
    let described: Value = serde_json::from_str(&stdout(&described)).unwrap();
    assert_eq!(
        (&described["version"], &described["command"]),
        (&json!(1), &json!("vm cpu describe"))
    );
    described
}

fn compare(lab: &Lab, guest: &str, host: &str, code: i32) -> Value {
    let compared = lab.run(&["vm", "cpu", "compare", guest, host, "--json"], code);
    let compared: Value = serde_json::from_str(&stdout(&compared)).unwrap();
    assert_eq!(compared["command"], "vm cpu compare");
    assert_eq!(compared["can_run"], json!(code == 0), "{compared}");
    assert_eq!(compared["lost"].as_array().unwrap().is_empty(), code == 0, "{compared}");
    compared
}

/// Takes a bit of a leaf away.
fn without(lab: &Lab, described: &Value, file: &str, leaf: &str, register: &str, bit: u32) {
    let mut described = described.clone();
    let leaves = described["leaves"].as_array_mut().unwrap();
    let found = leaves.iter_mut().find(|it| it["leaf"] == leaf).unwrap();
    let digits = found[register].as_str().unwrap().trim_start_matches("0x");
    let number = u32::from_str_radix(digits, 16).unwrap();
    assert_eq!(number >> bit & 1, 1, "the host has it");
    found[register] = json!(format!("{:#x}", number & !(1 << bit)));
    fs::write(lab.path(file), described.to_string()).unwrap();
}

#[test]
fn hosts_are_described_and_compared() {
    if !has_kvm("descriptions of processors") {
        return;
    }
    let lab = Lab::new();
    let host = describe(&lab, "host", &[]);
    assert!(host["features"].as_array().unwrap().contains(&json!("cx16")), "{host}");
    compare(&lab, "host", "host", 0);
    // Another host that lacks CMPXCHG16B.
    without(&lab, &host, "less", "0x00000001", "ecx", 13);
    let compared = compare(&lab, "host", "less", 5);
    assert_eq!(compared["lost"], json!(["cx16"]));
    let compared = compare(&lab, "less", "host", 0);
    assert_eq!(compared["more"], json!(["cx16"]));
    let told = stdout(&lab.run(&["vm", "cpu", "compare", "host", "less"], 5));
    assert!(told.contains("cannot run") && told.contains("  cx16\n"), "{told}");
    for (model, file) in [("x86-64-v2", "v2"), ("x86-64-v3", "v3")] {
        describe(&lab, file, &["--cpu", model]);
        compare(&lab, file, "host", 0);
        compare(&lab, "host", file, 5);
        compare(&lab, file, "less", 5);
    }
    compare(&lab, "v2", "v3", 0);
}

#[test]
fn what_says_nothing_of_processors_is_one_line_with_a_code() {
    let lab = Lab::new();
    let leaf = r#"{"leaf":"0x0","index":0,"flags":0,"eax":"0x0","ebx":"0x0","ecx":"0x0","edx":"0x0"}"#;
    let description = |version: u32, leaves: &str| {
        format!(r#"{{"cpu_description":{version},"vendor":"","features":[],"leaves":[{leaves}]}}"#)
    };
    let many = vec![leaf; 257].join(",");
    let files = [
        ("empty", String::new(), 3, "VHD-E0821"),
        (
            "text",
            "some text that is longer than a header".repeat(99),
            3,
            "VHD-E0821",
        ),
        ("json", "{}".to_owned(), 3, "VHD-E0821"),
        (
            "number",
            description(1, &leaf.replace("\"0x0\",\"ebx", "\"12\",\"ebx")),
            3,
            "VHD-E0821",
        ),
        ("newer", description(2, leaf), 3, "VHD-E0821"),
        ("none", description(1, ""), 3, "VHD-E0821"),
        ("many", description(1, &many), 3, "VHD-E0821"),
        ("cut", description(1, leaf)[..90].to_owned(), 3, "VHD-E0821"),
    ];
    fs::write(lab.path("good"), description(1, leaf)).unwrap();
    lab.run(&["vm", "cpu", "compare", "good", "good"], 0);
    for (file, content, code, error) in files {
        fs::write(lab.path(file), content).unwrap();
        for args in [[file, "good"], ["good", file]] {
            let refused = stderr(&lab.run(&[&["vm", "cpu", "compare"], &args[..]].concat(), code));
            assert!(
                refused.starts_with(&format!("vhd: error[{error}]: {file} ")),
                "{refused}"
            );
            assert_eq!(refused.lines().count(), 1, "{refused}");
        }
    }
    lab.run(&["vm", "cpu", "compare", "good", "nowhere"], 1);
    lab.run(&["vm", "cpu", "compare", "good", "."], 1);
}

#[test]
fn a_guest_of_a_level_is_saved_and_goes_on() {
    if !has_kvm("guests that are told of a level of processors") {
        return;
    }
    let lab = Lab::new();
    chain(&lab);
    describe(&lab, "host", &[]);
    let guest = Payload::on_pci().start_disk(0).print("up").count_on_disk(0, 1);
    kernel(&lab, "guest", &guest);
    for level in ["x86-64-v2", "x86-64-v3"] {
        let run = ["leaf.avhd", "--kernel", "guest", "--machine", "vhd-1", "--cpu", level];
        let mut running = Running::start(&lab, "level", &run);
        read_on(&mut running, 5, 0);
        lab.run(&["vm", "save", &running.name, level], 0);
        let mut rest = Vec::new();
        running.child.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
        running.child.wait().unwrap();
        // What it was told goes with it: this host can run it, and it could not run what this host starts.
        compare(&lab, level, "host", 0);
        compare(&lab, "host", level, 5);
        let mut again = restore(&lab, &running.name, level);
        let mut line = [0; 20];
        again.child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        lab.run(&["vm", "stop", &running.name, "--force"], 0);
        again.child.wait().unwrap();
    }
}
