//! What people type who know other programs: docs/coming-from.md, row by row; several images; directories as destinations.

use std::fs;

use crate::support::{Lab, MIB, stderr, stdout};

const PAGE: &str = include_str!("../../../docs/coming-from.md");

/// The images that the page's commands are about.
fn lab() -> Lab {
    let lab = Lab::new();
    let mut content = vec![0; 2 << 20];
    content[4096..8192].fill(0x77);
    fs::write(lab.path("disk.raw"), content).unwrap();
    lab.run(&["convert", "disk.raw", "disk.vhd"], 0);
    lab.dynamic("base.vhd", 4 * MIB);
    lab.run(&["create", "child.avhd", "--parent", "base.vhd"], 0);
    fs::create_dir(lab.path("out")).unwrap();
    lab
}

/// The cells of each row of the page's tables: what is typed, and the answer.
fn rows() -> Vec<(Vec<&'static str>, &'static str)> {
    let tables = PAGE
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("| `vhd "));
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, typed, answer] = cells[..] else {
            panic!("{line}");
        };
        (typed.trim_matches('`').split(' ').skip(1).collect(), answer)
    };
    tables.map(row).collect()
}

#[test]
fn what_other_programs_call_it_works_or_is_told() {
    let rows = rows();
    assert!(rows.len() >= 30, "{}", rows.len());
    for (typed, answer) in rows {
        let lab = lab();
        if answer == "works" {
            lab.run(&typed, 0);
            continue;
        }
        let before = lab.names();
        let said = stderr(&lab.run(&typed, 2));
        let tip = said
            .split("tip: ")
            .nth(1)
            .unwrap_or_else(|| panic!("{typed:?}: {said}"));
        assert!(tip.contains(answer), "{typed:?}: {said}");
        assert_eq!(lab.names(), before, "{typed:?}");
    }
}

#[test]
fn each_of_several_images_has_its_turn_and_the_worst_counts() {
    let lab = lab();
    let said = stdout(&lab.run(&["hash", "disk.vhd", "missing.vhd", "base.vhd"], 1));
    assert_eq!(said.lines().count(), 2, "{said}");
    // Damage is worse than a file that can't be read, and that than one that is refused.
    let mut bytes = fs::read(lab.path("disk.vhd")).unwrap();
    bytes[512..1024].fill(0);
    fs::write(lab.path("broken.vhd"), bytes).unwrap();
    lab.run(&["check", "disk.raw", "base.vhd"], 8);
    lab.run(&["check", "disk.raw", "missing.vhd", "base.vhd"], 1);
    lab.run(&["check", "broken.vhd", "disk.raw", "missing.vhd"], 3);
    for command in ["info", "measure", "compact", "repair"] {
        let said = stdout(&lab.run(&[command, "disk.vhd", "base.vhd"], 0));
        assert!(said.contains("disk.vhd") && said.contains("base.vhd"), "{said}");
    }
    lab.run(&["repair", "disk.vhd", "base.vhd", "--size", "2M"], 2);
    // One object for each image, failures included.
    let said = stdout(&lab.run(&["info", "disk.vhd", "missing.vhd", "base.vhd", "--json"], 1));
    let objects: Vec<serde_json::Value> = serde_json::Deserializer::from_str(&said)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(objects.len(), 3);
    assert_eq!(objects[1]["error"]["code"], "VHD-E0302", "{said}");
    assert_eq!(objects[2]["image"], "base.vhd");
}

#[test]
fn a_directory_takes_the_name_of_the_source() {
    let lab = lab();
    lab.run(&["convert", "disk.vhd", "out", "-O", "raw"], 0);
    lab.run(&["compare", "out/disk.raw", "disk.vhd"], 0);
    lab.run(&["convert", "disk.vhd", "out", "-O", "fixed"], 0);
    assert!(lab.exists("out/disk.vhd"));
    // What is there is not replaced unasked.
    lab.run(&["convert", "disk.raw", "out", "-O", "vpc"], 8);
    lab.run(&["convert", "disk.raw", "out", "-O", "vpc", "--force"], 0);
    lab.dynamic("vm.vhd", MIB);
    lab.run(&["snapshot", "create", "vm.vhd", "--name", "monday"], 0);
    lab.run(&["convert", "vm.vhd@monday", "out", "-O", "raw"], 0);
    assert!(lab.exists("out/vm-monday.raw"));
    lab.run(&["azure", "prepare", "vm.vhd@monday", "out"], 0);
    assert!(lab.exists("out/vm-monday.vhd"));
    let said = stderr(&lab.run(&["convert", "-", "out", "-O", "raw"], 2));
    assert!(said.contains("is a directory"), "{said}");
    let said = stderr(&lab.run(&["convert", "disk.vhd", "out"], 2));
    assert!(said.contains("--to raw"), "{said}");
    let said = stderr(&lab.run(&["convert", "disk.vhd", "new.qcow3"], 2));
    assert!(said.contains("--to raw"), "{said}");
}

#[test]
fn a_disk_is_made_larger_or_smaller_by_so_much() {
    let lab = lab();
    let size = |image| lab.json(&["info", image], 0)["virtual_size"].as_u64().unwrap();
    lab.dynamic("d.vhd", 4 * MIB);
    lab.run(&["resize", "d.vhd", "+1M"], 0);
    assert_eq!(size("d.vhd"), 5 * MIB);
    lab.run(&["resize", "d.vhd", "-2M", "--shrink"], 0);
    lab.run(&["resize", "--shrink", "d.vhd", "-1M"], 0);
    assert_eq!(size("d.vhd"), 2 * MIB);
    // Smaller only if it is said, never to nothing, never past what a VHD can hold.
    lab.run(&["resize", "d.vhd", "-1M"], 8);
    for change in ["-2M", "+2040G", "+0", "-1", "+x"] {
        lab.run(&["resize", "d.vhd", change, "--shrink"], 2);
    }
    // The tree of base.vhd and child.avhd.
    lab.run(&["resize", "child.avhd", "+4M", "--tree"], 0);
    assert_eq!((size("base.vhd"), size("child.avhd")), (8 * MIB, 8 * MIB));
    assert_eq!(size("d.vhd"), 2 * MIB);
}

#[test]
fn quiet_is_quiet_about_all_but_failures() {
    let lab = lab();
    for command in ["info", "check", "hash", "measure"] {
        let run = lab.run(&[command, "-q", "disk.vhd"], 0);
        assert_eq!(
            (stdout(&run), stderr(&run)),
            (String::new(), String::new()),
            "{command}"
        );
    }
    assert!(stderr(&lab.run(&["info", "--quiet", "missing.vhd"], 1)).contains("missing.vhd"));
    lab.run(&["info", "-q", "--json", "disk.vhd"], 2);
}
