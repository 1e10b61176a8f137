//! What the integration tests share: images byte by byte, random sessions with a model, other programs.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::io::Write as _;

pub(crate) mod build;
pub(crate) mod disk;
pub(crate) mod kills;
pub(crate) mod mounts;
pub(crate) mod rng;
pub(crate) mod tools;
pub(crate) mod tree;
pub(crate) mod unmount;

/// A directory that goes with the test. It is below the build directory, because the usual one may be in memory.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build directory is writable")
}

/// Says something that is to be seen although the test passes: the test harness swallows what `println` prints.
pub(crate) fn announce(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("standard error is there");
}
