//! Help, completions, manual pages, and the tour.

use std::fs;

use crate::support::{Lab, stderr, stdout};

const COMMANDS: &[&str] = &[
    "create",
    "info",
    "map",
    "check",
    "hash",
    "convert",
    "compare",
    "diff",
    "export-delta",
    "import-delta",
    "tree",
    "snapshot",
    "azure",
    "compact",
    "merge",
    "measure",
    "nbd",
    "resize",
    "verify",
    #[cfg(target_arch = "x86_64")]
    "vm",
    "repair",
    "tour",
    "completions",
    "man",
];

#[test]
fn the_help_explains_every_exit_code_and_command() {
    let lab = Lab::new();
    for flag in ["--help", "-h"] {
        let help = stdout(&lab.run(&[flag], 0));
        for code in 0..=10 {
            assert!(help.contains(&format!("\n  {code}  ")), "{code}: {help}");
        }
        for command in COMMANDS {
            assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        }
    }
}

#[test]
fn every_command_helps_with_examples() {
    let lab = Lab::new();
    for command in COMMANDS {
        let help = stdout(&lab.run(&[command, "--help"], 0));
        assert!(
            help.contains(&format!("\n  vhd {command} ")) || help.contains(&format!("\n  vhd {command}\n")),
            "{help}"
        );
    }
}

#[test]
fn completions_for_every_shell() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&lab.run(&["completions", shell], 0));
        assert!(script.contains("block-size"), "{shell}");
    }
    lab.run(&["completions", "cmd"], 2);
}

#[test]
fn manual_pages_for_every_command() {
    let lab = Lab::new();
    let page = stdout(&lab.run(&["man"], 0));
    assert!(page.contains(".TH vhd 1") && page.contains("Exit codes"), "{page}");
    lab.run(&["man", "man1"], 0);
    for command in COMMANDS {
        assert!(lab.exists(&format!("man1/vhd-{command}.1")), "{command}");
    }
    assert!(lab.exists("man1/vhd.1"));
    fs::write(lab.path("none"), b"a file").unwrap();
    lab.run(&["man", "none"], 8);
}

#[test]
fn the_tour_ends_well_and_leaves_nothing_but_what_was_asked_for() {
    let lab = Lab::new();
    fs::create_dir(lab.path("tmp")).unwrap();
    let tour = lab.vhd(&["tour"]).env("TMPDIR", lab.path("tmp")).assert().code(0);
    assert!(stdout(&tour).contains("The tour is over"));
    assert_eq!(lab.path("tmp").read_dir().unwrap().count(), 0);
    lab.run(&["tour", "kept"], 0);
    assert!(lab.exists("kept/snapshot.avhd"));
    let again = stderr(&lab.run(&["tour", "kept"], 8));
    assert!(again.contains("empty directory"), "{again}");
}
