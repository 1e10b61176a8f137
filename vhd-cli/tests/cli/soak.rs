//! A bounded run of scripts/soak: random jobs on whole trees, killed and starved, with an independent reader as the oracle.
//!
//! VHD_SOAK_ROUNDS says how many rounds (default 12), VHD_TEST_SEED replaces the seed. The long run is in docs/testing.md.

use std::path::Path;
use std::process::Command;

#[test]
fn soak_of_random_jobs_on_whole_trees() {
    if !installed("strace") || !installed("python3") {
        assert!(std::env::var_os("CI").is_none(), "CI must have strace and python3");
        crate::announce("NOT TESTED: random jobs on whole trees: strace or python3 is not installed");
        return;
    }
    let number = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/soak");
    let output = Command::new(script)
        .args(["--vhd", env!("CARGO_BIN_EXE_vhd"), "--dir", env!("CARGO_TARGET_TMPDIR")])
        .args(["--rounds", &number("VHD_SOAK_ROUNDS", "12")])
        .args(["--seed", &number("VHD_TEST_SEED", "36")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    crate::announce(said.trim_end());
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
