//! Kernels without a configuration: the newest by its name, or the one that links in the root directory name.

use super::version::compare;
use super::volumes::Volumes;
use super::{Boot, BootFile};

/// Where kernels are: on the file system of the system, and on one of their own.
const DIRECTORIES: &[&str] = &["/boot", ""];
/// How the name of a kernel with a version begins.
const KERNEL: &str = "vmlinuz-";
/// Names of the initramfs for a version, before and behind it.
const INITRDS: &[(&str, &str)] = &[
    ("initrd.img-", ""),
    ("initramfs-", ".img"),
    ("initrd-", ""),
    ("initramfs-", ""),
    ("initrd-", ".img"),
];
/// The links that packages keep: to the kernel, to its initramfs.
const LINKS: &[(&str, &[&str])] = &[
    ("/vmlinuz", &["/initrd.img"]),
    (
        "/boot/vmlinuz",
        &["/boot/initrd.img", "/boot/initramfs.img", "/boot/initrd"],
    ),
];

/// The newest kernel of the first file system that has any, with the initramfs of the same version if there is one.
pub(super) fn find_newest(volumes: &mut Volumes<'_>) -> Option<Boot> {
    let positions = volumes.positions();
    positions
        .flat_map(|volume| DIRECTORIES.iter().map(move |directory| (volume, *directory)))
        .find_map(|(volume, directory)| newest_of(volumes, volume, directory))
}

fn newest_of(volumes: &mut Volumes<'_>, volume: usize, directory: &str) -> Option<Boot> {
    let mut names = volumes.names(volume, if directory.is_empty() { "/" } else { directory });
    names.retain(|name| name.starts_with(KERNEL));
    names.sort_by(|a, b| compare(b, a));
    let (name, kernel) = names.into_iter().find_map(|name| {
        let kernel = volumes.regular(volume, &format!("{directory}/{name}"))?;
        Some((name, kernel))
    })?;
    let version = &name[KERNEL.len()..];
    let initrd = INITRDS.iter().find_map(|(before, behind)| {
        let path = format!("{directory}/{before}{version}{behind}");
        volumes.regular(volume, &path)
    });
    Some(without_configuration(kernel, initrd, "the newest kernel there"))
}

/// What the links name that packages keep for the kernel that was installed last.
pub(super) fn find_links(volumes: &mut Volumes<'_>) -> Option<Boot> {
    let positions = volumes.positions();
    positions
        .flat_map(|volume| LINKS.iter().map(move |link| (volume, link)))
        .find_map(|(volume, (kernel, initrds))| {
            let kernel = volumes.regular(volume, kernel)?;
            let initrd = initrds.iter().find_map(|path| volumes.regular(volume, path));
            Some(without_configuration(kernel, initrd, "there is no other"))
        })
}

fn without_configuration(kernel: BootFile, initrd: Option<BootFile>, source: &str) -> Boot {
    Boot {
        kernel,
        initrds: initrd.into_iter().collect(),
        options: None,
        source: source.to_owned(),
        root: None,
    }
}
