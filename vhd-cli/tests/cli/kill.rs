//! Sudden death leaves no half-written image under its final name.

use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Lab, MIB};

fn start(lab: &Lab, args: &[&str], stderr: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vhd"))
        .args(args)
        .current_dir(lab.path(""))
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// Runs `vhd` and kills it after `delay`; whether it had ended before.
pub(crate) fn killed(lab: &Lab, args: &[&str], delay: Duration) -> bool {
    let mut child = start(lab, args, Stdio::null());
    sleep(delay);
    let ended = child.try_wait().unwrap().is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    ended
}

/// Runs `vhd` and interrupts it after `delay`, as Ctrl-C does; how it ended. Before the command listens, a signal
/// ends it as it ends any command.
pub(crate) fn interrupt(lab: &Lab, args: &[&str], delay: Duration) -> Output {
    let child = start(lab, args, Stdio::piped());
    sleep(delay);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1) | None), "{output:?}");
    output
}

#[test]
fn killed_conversions_leave_all_or_nothing() {
    let lab = Lab::new();
    let mut bytes = vec![0x5A_u8; 64 << 20];
    bytes[1 << 20..5 << 20].fill(0);
    std::fs::write(lab.path("a.raw"), bytes).unwrap();
    for to in ["raw", "fixed", "dynamic"] {
        let args = ["convert", "a.raw", "out", "--to", to];
        let started = Instant::now();
        lab.run(&args, 0);
        let whole = started.elapsed();
        std::fs::remove_file(lab.path("out")).unwrap();
        let mut before_the_end = 0;
        for part in 0..12_u32 {
            if !killed(&lab, &args, whole * part / 10) {
                before_the_end += 1;
            }
            if lab.exists("out") {
                lab.run(&["compare", "a.raw", "out"], 0);
                std::fs::remove_file(lab.path("out")).unwrap();
            }
            // A file system without nameless files keeps a hidden one.
            let names: Vec<String> = lab.names();
            let visible: Vec<&String> = names.iter().filter(|name| !name.starts_with('.')).collect();
            assert_eq!(visible, ["a.raw", "other.raw"]);
        }
        assert!(before_the_end > 0, "no conversion was killed: the test tested nothing");
    }
}

#[test]
fn a_killed_replacement_leaves_the_old_or_the_new_one() {
    let lab = Lab::new();
    std::fs::write(lab.path("a.raw"), vec![1; 32 << 20]).unwrap();
    for part in 0..10 {
        std::fs::write(lab.path("out"), "old").unwrap();
        killed(
            &lab,
            &["convert", "a.raw", "out", "--to", "raw", "--force"],
            Duration::from_millis(part * 6),
        );
        let len = lab.len("out");
        assert!(len == 3 || len == 32 * MIB, "{len}");
        if len > 3 {
            lab.run(&["compare", "a.raw", "out"], 0);
        }
    }
}

#[test]
fn killed_creations_leave_all_or_nothing() {
    let lab = Lab::new();
    for part in 0..10 {
        let args = [
            "create",
            "out.vhd",
            "--size",
            "32M",
            "--type",
            "fixed",
            "--preallocate",
            "full",
        ];
        killed(&lab, &args, Duration::from_millis(part * 8));
        if lab.exists("out.vhd") {
            lab.run(&["check", "out.vhd"], 0);
            std::fs::remove_file(lab.path("out.vhd")).unwrap();
        }
    }
}
