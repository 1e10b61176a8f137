//! `vhd ls`, `cat`, `cp`: files of real file systems inside images, without a mount.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::support::{Lab, MIB, stderr, stdout};
use crate::tools::{have, run};

/// A directory of files for a file system.
fn source(lab: &Lab) {
    let root = lab.path("source");
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::write(root.join("etc/fstab"), "/dev/sda1 / ext4 defaults 0 1\n").unwrap();
    fs::write(root.join("etc/deep/er/file"), vec![7; 100_000]).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(20 * MIB).unwrap();
    sparse.write_all_at(&[9; 4096], 10 * MIB).unwrap();
    symlink("etc/fstab", root.join("link")).unwrap();
    symlink("/etc/passwd", root.join("outside")).unwrap();
    fs::set_permissions(root.join("etc/fstab"), fs::Permissions::from_mode(0o640)).unwrap();
    run(
        "touch",
        ["-d", "2020-02-03 04:05:06 UTC"]
            .map(Path::new)
            .iter()
            .chain([&root.join("etc/fstab").as_path()]),
    );
}

/// An ext4 of 64 MiB with the files, in a file.
fn ext4(lab: &Lab, name: &str) {
    let image = lab.path(name);
    fs::File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    let source = lab.path("source");
    run(
        "mkfs.ext4",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-L".as_ref(),
            "system".as_ref(),
            "-d".as_ref(),
            source.as_os_str(),
            image.as_os_str(),
        ],
    );
}

/// A dynamic image with that ext4 on the whole disk, and a child of it.
fn one_file_system(lab: &Lab) -> bool {
    if !have(&["mkfs.ext4", "touch"], "files inside images") {
        return false;
    }
    source(lab);
    ext4(lab, "disk.raw");
    lab.run(
        &["convert", "--from", "raw", "disk.raw", "disk.vhd", "--to", "dynamic"],
        0,
    );
    lab.run(&["create", "leaf.avhd", "--parent", "disk.vhd"], 0);
    true
}

/// A disk with an MBR: ext4, nothing, FAT.
fn several_file_systems(lab: &Lab) -> bool {
    if !have(
        &["mkfs.ext4", "mkfs.vfat", "mcopy", "sfdisk", "touch"],
        "partitions with files",
    ) {
        return false;
    }
    source(lab);
    ext4(lab, "one.raw");
    let fat = lab.path("three.raw");
    fs::File::create(&fat).unwrap().set_len(16 * MIB).unwrap();
    run("mkfs.vfat", ["-n".as_ref(), "DATA".as_ref(), fat.as_os_str()]);
    run(
        "mcopy",
        [
            "-i".as_ref(),
            fat.as_os_str(),
            lab.path("source/etc/fstab").as_os_str(),
            "::Table.txt".as_ref(),
        ],
    );
    let disk = fs::File::create(lab.path("disk.raw")).unwrap();
    disk.set_len(128 * MIB).unwrap();
    disk.write_all_at(&fs::read(lab.path("one.raw")).unwrap(), MIB).unwrap();
    disk.write_all_at(&fs::read(&fat).unwrap(), 80 * MIB).unwrap();
    let layout =
        "label: dos\nstart=2048,size=131072,type=83\nstart=135168,size=2048,type=83\nstart=163840,size=32768,type=c\n";
    fs::write(lab.path("layout"), layout).unwrap();
    let script = format!(
        "sfdisk -q {} < {}",
        lab.path("disk.raw").display(),
        lab.path("layout").display()
    );
    run("sh", ["-c", &script]);
    lab.run(
        &["convert", "--from", "raw", "disk.raw", "disk.vhd", "--to", "dynamic"],
        0,
    );
    true
}

#[test]
fn a_directory_is_listed() {
    let lab = Lab::new();
    if !one_file_system(&lab) {
        return;
    }
    for image in ["disk.vhd", "leaf.avhd"] {
        let listed = stdout(&lab.run(&["ls", image], 0));
        assert_eq!(listed, "empty\netc/\nlink\nlost+found/\noutside\nsparse\n");
        assert_eq!(stdout(&lab.run(&["ls", &format!("{image}:/etc")], 0)), "deep/\nfstab\n");
    }
    let long = stdout(&lab.run(&["ls", "-l", "disk.vhd:/etc"], 0));
    assert!(
        long.contains("0640") && long.contains("30 2020-02-03T04:05:06Z fstab"),
        "{long}"
    );
    let json = lab.json(&["ls", "disk.vhd:/"], 0);
    let link = json["entries"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == "link")
        .unwrap();
    assert_eq!(
        (&link["type"], &link["target"]),
        (&"symlink".into(), &"etc/fstab".into())
    );
}

#[test]
fn a_file_is_printed() {
    let lab = Lab::new();
    if !one_file_system(&lab) {
        return;
    }
    for path in ["/etc/fstab", "/link", "//etc/./deep/../fstab"] {
        let printed = stdout(&lab.run(&["cat", &format!("leaf.avhd:{path}")], 0));
        assert_eq!(printed, "/dev/sda1 / ext4 defaults 0 1\n");
    }
    let sparse = lab.run(&["cat", "disk.vhd:/sparse"], 0);
    assert_eq!(sparse.get_output().stdout, fs::read(lab.path("source/sparse")).unwrap());
}

#[test]
fn what_cannot_be_shown_is_said_with_its_code() {
    let lab = Lab::new();
    if !one_file_system(&lab) {
        return;
    }
    let told = |args: &[&str], code: i32, needle: &str| {
        let told = stderr(&lab.run(args, code));
        assert!(told.contains(needle), "{args:?}: {told}");
    };
    told(&["cat", "disk.vhd:/nothing"], 1, "VHD-E0703");
    told(&["cat", "disk.vhd:/etc"], 1, "VHD-E0704");
    told(&["cat", "disk.vhd:/etc/fstab/x"], 1, "VHD-E0704");
    // A link that leads out is followed inside: there is no /etc/passwd in this disk.
    told(&["cat", "disk.vhd:/outside"], 1, "VHD-E0703");
    told(&["ls", "--partition", "1", "disk.vhd"], 1, "there is no partition 1");
    lab.dynamic("nothing.vhd", 8 * MIB);
    told(&["ls", "nothing.vhd"], 8, "VHD-E0701");
    told(&["cat", "disk.vhd"], 2, "IMAGE:/PATH");
    told(&["ls", "missing.vhd:/etc"], 1, "VHD-E0302");
}

#[test]
fn files_are_copied_with_modes_times_and_holes() {
    let lab = Lab::new();
    if !one_file_system(&lab) {
        return;
    }
    lab.run(&["cp", "leaf.avhd:/etc/fstab", "leaf.avhd:/sparse", "."], 0);
    assert_eq!(
        fs::read(lab.path("fstab")).unwrap(),
        fs::read(lab.path("source/etc/fstab")).unwrap()
    );
    let meta = lab.path("fstab").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o640, 1_580_702_706));
    let sparse = lab.path("sparse").metadata().unwrap();
    assert_eq!(
        fs::read(lab.path("sparse")).unwrap(),
        fs::read(lab.path("source/sparse")).unwrap()
    );
    assert!(sparse.blocks() * 512 <= MIB, "{} blocks", sparse.blocks());
    // Nothing is replaced unless asked for.
    let told = stderr(&lab.run(&["cp", "disk.vhd:/etc/fstab", "."], 8));
    assert!(told.contains("VHD-E0305"), "{told}");
    fs::write(lab.path("fstab"), "mine").unwrap();
    lab.run(&["cp", "--force", "disk.vhd:/etc/fstab", "fstab"], 0);
    assert_ne!(fs::read(lab.path("fstab")).unwrap(), b"mine");
    lab.run(&["cp", "disk.vhd:/etc/fstab", "other-name"], 0);
    assert!(lab.exists("other-name"));
}

#[test]
fn a_tree_is_copied_whole() {
    let lab = Lab::new();
    if !one_file_system(&lab) {
        return;
    }
    fs::create_dir(lab.path("out")).unwrap();
    let json = lab.json(&["cp", "disk.vhd:/", "out"], 0);
    assert_eq!(
        (&json["files"], &json["symlinks"], &json["special"]),
        (&4.into(), &2.into(), &0.into())
    );
    run(
        "diff",
        [
            "-r".as_ref(),
            "--no-dereference".as_ref(),
            "-x".as_ref(),
            "lost+found".as_ref(),
            lab.path("source").as_os_str(),
            lab.path("out").as_os_str(),
        ],
    );
    assert_eq!(
        fs::read_link(lab.path("out/outside")).unwrap(),
        Path::new("/etc/passwd")
    );
}

/// A link at the destination is not followed, whatever the disk has under its name.
#[test]
fn a_copy_does_not_leave_its_destination() {
    let lab = Lab::new();
    if !one_file_system(&lab) {
        return;
    }
    fs::create_dir_all(lab.path("out")).unwrap();
    fs::create_dir_all(lab.path("elsewhere")).unwrap();
    symlink(lab.path("elsewhere"), lab.path("out/etc")).unwrap();
    lab.run(&["cp", "disk.vhd:/etc", "out"], 1);
    assert_eq!(lab.path("elsewhere").read_dir().unwrap().count(), 0);
    symlink(lab.path("elsewhere/file"), lab.path("out/fstab")).unwrap();
    lab.run(&["cp", "disk.vhd:/etc/fstab", "out"], 8);
    lab.run(&["cp", "--force", "disk.vhd:/etc/fstab", "out"], 0);
    assert!(!lab.exists("elsewhere/file") && lab.path("out/fstab").symlink_metadata().unwrap().is_file());
}

#[test]
fn paths_start_with_the_partition_where_there_are_several() {
    let lab = Lab::new();
    if !several_file_systems(&lab) {
        return;
    }
    let listed = stdout(&lab.run(&["ls", "disk.vhd"], 0));
    assert!(
        listed.contains("p1/  64.00 MiB  ext4 \"system\"") && listed.contains("p3/  16.00 MiB  FAT \"DATA\""),
        "{listed}"
    );
    assert!(listed.contains("p2/  1.00 MiB  not readable"), "{listed}");
    assert_eq!(stdout(&lab.run(&["ls", "disk.vhd:/p1/etc"], 0)), "deep/\nfstab\n");
    assert_eq!(stdout(&lab.run(&["ls", "disk.vhd:/p3"], 0)), "Table.txt\n");
    // Case is not the matter on FAT.
    let printed = stdout(&lab.run(&["cat", "disk.vhd:/p3/TABLE.TXT"], 0));
    assert_eq!(printed, "/dev/sda1 / ext4 defaults 0 1\n");
    let told = stderr(&lab.run(&["cat", "disk.vhd:/etc/fstab"], 8));
    assert!(
        told.contains("VHD-E0707") && told.contains("/p1 (ext4), /p3 (FAT)"),
        "{told}"
    );
    lab.run(&["cat", "--partition", "1", "disk.vhd:/etc/fstab"], 0);
    let told = stderr(&lab.run(&["ls", "--partition", "2", "disk.vhd"], 8));
    assert!(told.contains("VHD-E0701"), "{told}");
}

#[test]
fn snapshots_have_files_of_their_own() {
    let lab = Lab::new();
    if !one_file_system(&lab) {
        return;
    }
    fs::remove_file(lab.path("leaf.avhd")).unwrap();
    lab.run(&["snapshot", "create", "disk.vhd", "--name", "monday"], 0);
    assert_eq!(stdout(&lab.run(&["ls", "disk.vhd@monday:/etc"], 0)), "deep/\nfstab\n");
}

/// A name that a driver would never make: as a path it leads out of its directory.
#[test]
fn names_with_slashes_lead_nowhere() {
    let programs = [
        "mkfs.ext2",
        "mkfs.ext4",
        "mkfs.vfat",
        "mcopy",
        "mkfs.ntfs",
        "ntfscp",
        "mkfs.xfs",
    ];
    if !have(&programs, "hostile names in file systems") {
        return;
    }
    let lab = Lab::new();
    fs::create_dir(lab.path("source")).unwrap();
    let file = lab.path("source/evilname");
    fs::write(&file, "of the disk").unwrap();
    fs::write(
        lab.path("list"),
        format!("boot\n0 0\nd--755 0 0\nevilname ---644 0 0 {}\n$\n$\n", file.display()),
    )
    .unwrap();
    let scripts = [
        ("ext2", 8, "mkfs.ext2 -q -F -d source disk.raw"),
        ("ext4", 8, "mkfs.ext4 -q -F -O ^metadata_csum -d source disk.raw"),
        (
            "ext4 with checksums",
            8,
            "mkfs.ext4 -q -F -O metadata_csum -d source disk.raw",
        ),
        ("FAT", 8, "mkfs.vfat disk.raw && mcopy -i disk.raw source/evilname ::"),
        (
            "NTFS",
            8,
            "mkfs.ntfs -q -F -Q disk.raw && ntfscp -q disk.raw source/evilname evilname",
        ),
        ("XFS 4", 320, "mkfs.xfs -q -f -m crc=0 -p list disk.raw"),
        ("XFS 5", 320, "mkfs.xfs -q -f -p list disk.raw"),
    ];
    for (name, mib, script) in scripts {
        fs::File::create(lab.path("disk.raw"))
            .unwrap()
            .set_len(mib * MIB)
            .unwrap();
        let path = lab.path("");
        run("sh", ["-c", &format!("cd {} && {script} > log 2>&1", path.display())]);
        let changed = rename_on_disk(&lab.path("disk.raw"));
        assert!(changed > 0, "{name}");
        let image = ["--from", "raw", "disk.raw:/"];
        let listed = lab
            .vhd(&["ls", "--json", image[0], image[1], image[2]])
            .output()
            .unwrap();
        assert!(
            !String::from_utf8_lossy(&listed.stdout).contains("\"name\": \"../"),
            "{name}: {listed:?}"
        );
        if !matches!(name, "FAT" | "XFS 5") {
            let told = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(
                listed.status.code() == Some(3) && told.contains("VHD-E0702"),
                "{name}: {listed:?}"
            );
        }
        let copied = lab.vhd(&["cp", image[0], image[1], image[2], "out/copied"]);
        fs::create_dir_all(lab.path("out")).unwrap();
        { copied }.output().unwrap();
        for escaped in ["evil8", "EVIL8", "out/evil8", "out/EVIL8"] {
            assert!(!lab.exists(escaped), "{name}: {escaped}");
        }
        fs::remove_dir_all(lab.path("out")).unwrap();
    }
}

/// Gives the file another name, wherever the file system has it; how often that was.
fn rename_on_disk(image: &Path) -> usize {
    let mut bytes = fs::read(image).unwrap();
    let wide = |text: &[u8]| text.iter().flat_map(|&byte| [byte, 0]).collect::<Vec<u8>>();
    let mut changed = 0;
    for (from, to) in [(b"evilname", b"../evil8"), (b"EVILNAME", b"../EVIL8")] {
        for (from, to) in [(from.to_vec(), to.to_vec()), (wide(from), wide(to))] {
            let mut at = 0;
            // Most of it is zero: only where the first byte is, is more looked at.
            while let Some(next) = bytes[at..].iter().position(|&byte| byte == from[0]) {
                at += next;
                if bytes[at..].starts_with(&from) {
                    bytes[at..at + to.len()].copy_from_slice(&to);
                    changed += 1;
                }
                at += 1;
            }
        }
    }
    fs::write(image, bytes).unwrap();
    changed
}
