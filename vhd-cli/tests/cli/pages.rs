//! Help, completions, manual pages, and the tour.

use std::fs;
use std::process::Command;

use crate::support::{Lab, stderr, stdout};
use crate::tools::have;

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

/// The words that a shell offers, the scripts loaded as it loads them.
#[test]
fn shells_complete_commands_and_options() {
    if !have(&["bash", "zsh", "fish"], "completions in the shells") {
        return;
    }
    let lab = Lab::new();
    for (shell, file) in [("bash", "vhd.bash"), ("zsh", "_vhd"), ("fish", "vhd.fish")] {
        fs::write(lab.path(file), stdout(&lab.run(&["completions", shell], 0))).unwrap();
    }
    let ask = |program: &str, script: &str| {
        let output = Command::new(program)
            .args(["-c", script])
            .current_dir(lab.path(""))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    };
    let bash = |line: &str, words: &str, at: usize| {
        let script = format!(
            ". ./vhd.bash; COMP_LINE='{line}' COMP_WORDS=({words}) COMP_CWORD={at}; _vhd vhd '' ''; echo ${{COMPREPLY[@]}}"
        );
        ask("bash", &script)
    };
    assert!(bash("vhd doc", "vhd doc", 1).contains("doctor"));
    assert!(bash("vhd convert --bl", "vhd convert --bl", 2).contains("--block-size"));
    assert!(ask("fish", "source vhd.fish; complete -C 'vhd doc'").contains("doctor"));
    assert!(ask("fish", "source vhd.fish; complete -C 'vhd convert --bl'").contains("--block-size"));
    // zsh completes inside a terminal only: that its own function is found and knows the command is what can be asked.
    let zsh = "fpath=($PWD $fpath); autoload -Uz compinit && compinit -u -d zcompdump; print -r -- $_comps[vhd]; autoload +X _vhd && functions _vhd";
    let zsh = ask("zsh", zsh);
    assert!(zsh.starts_with("_vhd\n") && zsh.contains("block-size"), "{zsh}");
}

#[test]
fn manual_pages_for_every_command() {
    let lab = Lab::new();
    let page = stdout(&lab.run(&["man"], 0));
    assert!(
        page.contains(".TH vhd 1") && page.contains(".SH \"EXIT STATUS\""),
        "{page}"
    );
    lab.run(&["man", "man1"], 0);
    for command in COMMANDS {
        assert!(lab.exists(&format!("man1/vhd-{command}.1")), "{command}");
    }
    assert!(lab.exists("man1/vhd.1"));
    fs::write(lab.path("none"), b"a file").unwrap();
    lab.run(&["man", "none"], 8);
    // Every page has what one looks for there, and examples as they are typed.
    for entry in fs::read_dir(lab.path("man1")).unwrap() {
        let page = fs::read_to_string(entry.unwrap().path()).unwrap();
        for heading in ["NAME", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "SEE ALSO"] {
            assert!(
                page.contains(&format!(".SH {heading}\n")) || page.contains(&format!(".SH \"{heading}\"\n")),
                "{heading}: {page}"
            );
        }
    }
    let page = fs::read_to_string(lab.path("man1/vhd-convert.1")).unwrap();
    assert!(page.contains(".nf\n  vhd convert disk.vhd disk.raw\n"), "{page}");
    let page = fs::read_to_string(lab.path("man1/vhd-snapshot-create.1")).unwrap();
    assert!(page.contains("\nvhd\\-snapshot(1), "), "{page}");
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
