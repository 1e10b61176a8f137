//! The calling convention of `mount(8)`: `mount.fuse.vhd IMAGE DIR [-sfnv] [-o OPTIONS]`, for fstab.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// What the helper must be called for `mount -t fuse.vhd` to find it.
const NAME: &str = "mount.fuse.vhd";
const TYPE: &str = "fuse.vhd";

/// Options of `mount(8)` and of fstab that are others' business.
const OTHERS: &[&str] = &[
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "defaults",
    "ro",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "async",
    "relatime",
    "noatime",
    "nodiratime",
];
/// Options that are one of `vhd mount` each, with a value or without.
const OURS: &[&str] = &[
    "rw",
    "allow_other",
    "replay",
    "uid",
    "gid",
    "umask",
    "parent-dir",
    "explicit-parents",
];

/// The arguments of `vhd` that do what `mount(8)` asks for, if this program was called as its helper.
pub(crate) fn arguments(given: &[OsString]) -> Option<Vec<OsString>> {
    let (program, given) = given.split_first()?;
    if Path::new(program).file_name() != Some(OsStr::new(NAME)) {
        return None;
    }
    let mut arguments: Vec<OsString> = vec!["vhd".into(), "mount".into()];
    let mut given = given.iter();
    while let Some(argument) = given.next() {
        match argument.to_str() {
            Some("-o") => options(given.next()?.to_str()?, &mut arguments),
            // The type, which is known.
            Some("-t") => {
                given.next().filter(|kind| *kind == TYPE)?;
            }
            // Sloppy, fake, no mtab, verbose.
            Some("-s" | "-n" | "-v") => {}
            _ => arguments.push(argument.clone()),
        }
    }
    Some(arguments)
}

/// Translates `a,b=c`. What is not known is passed on, so that the grammar refuses it by name.
fn options(text: &str, arguments: &mut Vec<OsString>) {
    for option in text.split(',').filter(|option| !option.is_empty()) {
        let name = option.split('=').next().unwrap_or(option);
        if OTHERS.contains(&name) || name.starts_with("x-") || name.starts_with("comment") {
            continue;
        }
        let known = OURS.iter().find(|ours| **ours == name).map_or(name, |ours| ours);
        let dashed = option.replacen(name, &known.replace('_', "-"), 1);
        arguments.push(format!("--{dashed}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(given: &[&str]) -> Option<Vec<String>> {
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        let words = arguments(&given)?.into_iter().map(|word| word.into_string().unwrap());
        Some(words.collect())
    }

    #[test]
    fn what_mount_asks_for_is_a_command_line() {
        let given = [
            "/sbin/mount.fuse.vhd",
            "/a/b.vhd",
            "/mnt",
            "-n",
            "-o",
            "rw,noauto,allow_other,uid=5,x-systemd.x=1",
        ];
        let words = translated(&given).unwrap();
        assert_eq!(
            words,
            ["vhd", "mount", "/a/b.vhd", "/mnt", "--rw", "--allow-other", "--uid=5"]
        );
        let words = translated(&["mount.fuse.vhd", "a", "b", "-t", "fuse.vhd", "-o", "strange"]).unwrap();
        assert_eq!(words, ["vhd", "mount", "a", "b", "--strange"]);
    }

    #[test]
    fn other_names_are_not_the_helper() {
        assert_eq!(translated(&["vhd", "mount", "a", "b"]), None);
        assert_eq!(translated(&[]), None);
    }
}
