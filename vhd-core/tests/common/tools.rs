//! Other programs that read and write VHDs.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// Whether all programs are installed. Where they must be (`CI` is set) a missing one is a failure; elsewhere
/// the test says loudly what it leaves out.
pub(crate) fn have(programs: &[&str], untested: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = |program: &&str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing: Vec<&&str> = programs.iter().filter(|program| !installed(program)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{missing:?} must be installed to test {untested}"
    );
    super::announce(&format!("NOT TESTED: {untested}: {missing:?} not installed"));
    false
}

/// Runs a program that must succeed, and returns what it printed.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    output.stdout
}

/// The disk as qemu reads it. For fixed and dynamic images only: qemu ignores parents.
pub(crate) fn qemu_reads(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("qemu.raw");
    qemu_convert(image, "vpc", &raw, "raw", &[]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    bytes
}

pub(crate) fn qemu_convert(from: &Path, from_format: &str, to: &Path, to_format: &str, options: &[&str]) {
    let (from, to) = (from.as_os_str(), to.as_os_str());
    let fixed = ["convert", "-f", from_format, "-O", to_format].map(OsStr::new);
    let options = options.iter().map(OsStr::new);
    run("qemu-img", fixed.into_iter().chain(options).chain([from, to]));
}

/// qemu must be able to open the image; the content is not looked at.
pub(crate) fn qemu_opens(image: &Path) {
    let fixed = ["info", "-f", "vpc"].map(OsStr::new);
    run("qemu-img", fixed.into_iter().chain([image.as_os_str()]));
}

/// Writes ranges, each full of one byte.
pub(crate) fn qemu_writes(image: &Path, writes: &[(usize, usize, u8)]) {
    let mut arguments = ["-f", "vpc"].map(|argument| OsStr::new(argument).to_owned()).to_vec();
    for (offset, len, byte) in writes {
        arguments.push("-c".into());
        arguments.push(format!("write -P {byte} {offset} {len}").into());
    }
    arguments.push(image.as_os_str().to_owned());
    run("qemu-io", arguments);
}

/// The disk as 7-Zip reads it: any type, and chains whose images are in one directory.
pub(crate) fn seven_zip_reads(image: &Path) -> Vec<u8> {
    let fixed = ["x", "-tvhd", "-so"].map(OsStr::new);
    run("7zz", fixed.into_iter().chain([image.as_os_str()]))
}
