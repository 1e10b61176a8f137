//! The recipes of docs/recipes.md, run as they stand there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Lab, MIB};
use crate::tools::{have, run};

const RECIPES: &str = include_str!("../../../docs/recipes.md");
/// The most lines of a block: who has to read more does not paste.
const MOST_LINES: usize = 10;

/// The blocks of shell commands, each with the heading above it.
fn blocks() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut blocks = Vec::new();
    let mut heading = "";
    let mut lines = RECIPES.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title;
        }
        if line == "```sh" {
            blocks.push((heading, lines.by_ref().take_while(|line| *line != "```").collect()));
        }
    }
    blocks
}

/// What the reader of a recipe has already.
fn prepare(lab: &Lab, heading: &str) {
    let path = |name: &str| lab.path(name);
    match heading {
        "From Hyper-V to KVM" => {
            lab.dynamic("base.vhd", 8 * MIB);
            lab.write("base.vhd", MIB, &[1; 4096]);
            lab.run(&["create", "web.avhd", "--parent", "base.vhd"], 0);
            lab.write("web.avhd", 3 * MIB, &[2; 512]);
        }
        "An AVHD whose parent is missing" => {
            lab.dynamic("base.vhd", 8 * MIB);
            lab.run(&["create", "snapshot.avhd", "--parent", "base.vhd"], 0);
            fs::create_dir(path("moved")).unwrap();
            fs::rename(path("base.vhd"), path("moved/renamed.vhd")).unwrap();
        }
        "A look inside" | "Less space" => {
            fs::create_dir_all(path("tree/etc")).unwrap();
            fs::write(path("tree/etc/hostname"), "web\n").unwrap();
            let (tree, raw) = (path("tree"), path("disk.raw"));
            let options = ["-q", "-d", tree.to_str().unwrap(), raw.to_str().unwrap(), "64M"];
            run("mkfs.ext4", options);
            lab.run(&["convert", "disk.raw", "disk.vhd"], 0);
        }
        "What a server has, and to a device" => {
            lab.dynamic("disk.vhd", 8 * MIB);
            lab.dynamic("new.vhd", 8 * MIB);
            lab.write("new.vhd", MIB, &[3; 4096]);
        }
        _ => {
            lab.dynamic("disk.vhd", 8 * MIB);
            lab.write("disk.vhd", MIB, &[1; 4096]);
        }
    }
}

#[test]
fn every_recipe_works_as_it_is_written() {
    if !have(&["bash", "qemu-img", "mkfs.ext4", "ssh-keygen"], "the recipes") {
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_vhd")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let blocks = blocks();
    assert!(blocks.len() >= 8, "{blocks:?}");
    for (heading, lines) in blocks {
        assert!(lines.len() <= MOST_LINES, "{heading}: {} lines", lines.len());
        // Some of them write beside the directory.
        let outer = Lab::new();
        let lab = Lab::below(&outer);
        prepare(&lab, heading);
        run(
            "ssh-keygen",
            [
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                outer.path("key").to_str().unwrap(),
            ],
        );
        let script = format!("set -euo pipefail\n{}", lines.join("\n"));
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(lab.path(""))
            .env("PATH", &path)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{heading}:\n{script}\n{told}");
    }
}

#[test]
fn the_backup_leaves_no_server_behind() {
    // The recipe ends it by its pid file.
    let (_, lines) = blocks()
        .into_iter()
        .find(|(heading, _)| heading.starts_with("A backup"))
        .unwrap();
    assert_eq!(lines.last(), Some(&"kill \"$(cat nbd.pid)\""));
}
