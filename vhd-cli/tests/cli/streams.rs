//! Standard input and output.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Lab, MIB, stderr, stdout};

fn shell(lab: &Lab, script: &str) -> assert_cmd::assert::Assert {
    assert_cmd::Command::new("bash")
        .args(["-c", &format!("set -o pipefail; {script}")])
        .env("VHD", env!("CARGO_BIN_EXE_vhd"))
        .current_dir(lab.path(""))
        .assert()
}

fn fixed(lab: &Lab) {
    lab.fixed("a.vhd", 4 * MIB);
    lab.write("a.vhd", 3 * MIB - 100, &[9; 1000]);
}

#[test]
fn a_pipe_in_and_a_pipe_out() {
    let lab = Lab::new();
    fixed(&lab);
    shell(&lab, "cat a.vhd | $VHD convert - - --to raw > out.raw").code(0);
    lab.run(&["compare", "a.vhd", "out.raw"], 0);
    assert_eq!(lab.len("out.raw"), 4 * MIB);
    shell(&lab, "cat a.vhd | $VHD convert - - --to fixed | cat > out.vhd").code(0);
    lab.run(&["compare", "a.vhd", "out.vhd"], 0);
    assert_eq!(lab.len("out.vhd"), 4 * MIB + 512);
    lab.run(&["check", "out.vhd"], 0);
    shell(&lab, "cat a.vhd | $VHD convert - out2.vhd --to dynamic").code(0);
    lab.run(&["compare", "a.vhd", "out2.vhd"], 0);
}

#[test]
fn standard_input_serves_every_command() {
    let lab = Lab::new();
    fixed(&lab);
    let direct = stdout(&lab.run(&["hash", "a.vhd"], 0));
    for source in ["cat a.vhd | $VHD", "<a.vhd $VHD"] {
        let hashed = shell(&lab, &format!("{source} hash -")).code(0);
        assert_eq!(stdout(&hashed), direct.replace("a.vhd", "-"));
        shell(&lab, &format!("{source} info -")).code(0);
        shell(&lab, &format!("{source} map - --json")).code(0);
        shell(&lab, &format!("{source} check -")).code(0);
        shell(&lab, &format!("{source} compare - a.vhd")).code(0);
        shell(&lab, &format!("{source} compare a.vhd -")).code(0);
        shell(&lab, &format!("{source} compare - -")).code(2);
    }
}

#[test]
fn nothing_is_left_of_what_was_kept_of_a_pipe() {
    let lab = Lab::new();
    fixed(&lab);
    fs::create_dir(lab.path("tmp")).unwrap();
    shell(&lab, "cat a.vhd | TMPDIR=$PWD/tmp $VHD hash -").code(0);
    assert_eq!(lab.path("tmp").read_dir().unwrap().count(), 0);
    let refused = shell(&lab, "cat a.vhd | TMPDIR=$PWD/none $VHD hash -").code(1);
    assert!(stderr(&refused).contains("none"), "{}", stderr(&refused));
}

#[test]
fn a_half_read_standard_input_is_what_is_left_of_it() {
    let lab = Lab::new();
    fs::write(lab.path("two.bin"), [vec![1; 4096], vec![2; 4096]].concat()).unwrap();
    fs::write(lab.path("second.bin"), vec![2; 4096]).unwrap();
    shell(
        &lab,
        "{ dd bs=4096 count=1 status=none > /dev/null; $VHD compare - second.bin; } < two.bin",
    )
    .code(0);
}

#[test]
fn a_leaf_from_standard_input_needs_its_parent_named() {
    let lab = Lab::new();
    lab.chain();
    for source in ["cat leaf.avhd | $VHD", "<leaf.avhd $VHD"] {
        shell(&lab, &format!("{source} hash -")).code(6);
        let named = shell(&lab, &format!("{source} hash - --parent parent.vhd")).code(0);
        let direct = stdout(&lab.run(&["hash", "leaf.avhd"], 0));
        assert_eq!(stdout(&named), direct.replace("leaf.avhd", "-"));
    }
}

#[test]
fn standard_output_is_never_a_part_of_the_source() {
    let lab = Lab::new();
    fixed(&lab);
    let before = fs::read(lab.path("a.vhd")).unwrap();
    let refused = shell(&lab, "$VHD convert a.vhd - --to raw >> a.vhd").code(8);
    assert!(stderr(&refused).contains("VHD-E0501"));
    let refused = shell(&lab, "<a.vhd $VHD convert - a.vhd --to raw --force").code(8);
    assert!(stderr(&refused).contains("VHD-E0501"));
    assert_eq!(fs::read(lab.path("a.vhd")).unwrap(), before);
}

#[test]
fn the_report_of_a_stream_goes_to_standard_error() {
    let lab = Lab::new();
    fixed(&lab);
    let ran = lab.run(&["convert", "a.vhd", "-", "--to", "raw", "--json"], 0);
    let report: Value = serde_json::from_str(&stderr(&ran)).unwrap();
    assert_eq!(
        (&report["command"], &report["destination"]),
        (&"convert".into(), &"-".into())
    );
    assert_eq!(ran.get_output().stdout.len(), 4 << 20);
}

#[test]
fn a_reader_that_leaves_is_no_failure_of_a_report() {
    let lab = Lab::new();
    // Blocks in descending order, so that no two of them are one extent: the table is longer than a pipe holds.
    lab.dynamic("a.vhd", 8192 * MIB);
    let opened = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&lab.path("a.vhd"))
        .unwrap();
    for block in (0..4096_u64).rev() {
        opened.disk().write_at(&[1; 512], block * 2 * MIB).unwrap();
    }
    opened.close().unwrap();
    for json in ["", "--json"] {
        let ran = shell(&lab, &format!("$VHD map a.vhd {json} | head -n 1")).code(0);
        assert_eq!(stderr(&ran), "");
    }
    let cut = shell(&lab, "$VHD convert a.vhd - --to raw | head -c 100").code(1);
    assert!(stderr(&cut).contains("VHD-E0504"), "{}", stderr(&cut));
}

#[test]
fn output_that_can_not_be_written_is_a_failure() {
    let lab = Lab::new();
    fixed(&lab);
    for command in [
        "info a.vhd",
        "map a.vhd",
        "hash a.vhd",
        "check a.vhd",
        "convert a.vhd - --to raw",
        "man",
    ] {
        let ran = shell(&lab, &format!("$VHD {command} > /dev/full")).code(1);
        assert!(stderr(&ran).contains("VHD-E0504"), "{command}: {}", stderr(&ran));
    }
}

#[test]
fn a_standard_input_that_fails_is_a_failure() {
    let lab = Lab::new();
    let directory = File::open(lab.path("")).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_vhd"))
        .args(["hash", "-"])
        .stdin(Stdio::from(directory))
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("VHD-E0505"));
}
