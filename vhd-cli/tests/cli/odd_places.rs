//! File systems without names to spare, or of another system; files that are none; signals that end a command.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::mounts::{EXFAT, Kind, Mount, NTFS};
use crate::support::{Lab, MIB, stderr};

fn vhd(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhd"));
    command.args(args).current_dir(dir);
    command
}

/// What the command says on standard error; it must end with `code`.
fn said(dir: &Path, args: &[&str], code: i32) -> String {
    let output = vhd(dir, args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    text
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// 8 MiB of data with 8 MiB of zeroes behind.
fn source(dir: &Path) {
    let bytes: Vec<u8> = (0..8 * MIB / 8)
        .flat_map(|word: u64| (word | 1 << 60).to_le_bytes())
        .collect();
    fs::write(dir.join("a.raw"), bytes).unwrap();
    File::options()
        .write(true)
        .open(dir.join("a.raw"))
        .unwrap()
        .set_len(16 * MIB)
        .unwrap();
}

/// All that makes files, where neither nameless files nor second names are to be had.
fn everything_is_made(kind: Kind) {
    let lab = Lab::new();
    let Some(mount) = Mount::new(kind, &lab.path(""), "files without second names") else {
        return;
    };
    let dir = &mount.dir;
    source(dir);
    let steps: &[&[&str]] = &[
        &["create", "new.vhd", "--size", "16M"],
        &["create", "new-fixed.vhd", "--size", "16M", "--type", "fixed"],
        &["convert", "a.raw", "d.vhd", "--to", "dynamic"],
        &["convert", "a.raw", "f.vhd", "--to", "fixed"],
        &["convert", "a.raw", "r.raw", "--to", "raw"],
        &["convert", "a.raw", "r.raw", "--to", "raw", "--force"],
        &["create", "c.avhd", "--parent", "d.vhd"],
        &["export-delta", "c.avhd", "--since", "d.vhd", "delta.avhd"],
        &[
            "import-delta",
            "delta.avhd",
            "--onto",
            "d.vhd",
            "i.vhd",
            "--to",
            "dynamic",
        ],
        &["merge", "c.avhd", "--into", "d.vhd", "--output", "m.vhd"],
        &["snapshot", "create", "new.vhd", "--name", "one"],
        &["snapshot", "revert", "new.vhd"],
        &["resize", "new-fixed.vhd", "17M"],
        &["compact", "m.vhd"],
        &["new-id", "f.vhd"],
        &["repair", "f.vhd"],
    ];
    for step in steps {
        said(dir, step, 0);
    }
    for made in ["d.vhd", "f.vhd", "r.raw", "m.vhd", "i.vhd"] {
        said(dir, &["compare", "a.raw", made], 0);
    }
    said(dir, &["convert", "a.raw", "d.vhd", "--to", "dynamic"], 8);
    assert!(
        names(dir).iter().all(|name| !name.contains("partial")),
        "{:?}",
        names(dir)
    );
}

#[test]
fn exfat_has_no_second_names() {
    everything_is_made(EXFAT);
}

#[test]
fn ntfs_has_no_nameless_files() {
    everything_is_made(NTFS);
}

/// Of several that create the same file one succeeds, and its content is the file's.
#[test]
fn a_name_is_given_once() {
    let lab = Lab::new();
    let Some(mount) = Mount::new(EXFAT, &lab.path(""), "a race for a name") else {
        return;
    };
    for round in 0..10 {
        let name = format!("{round}.vhd");
        let children: Vec<_> = (1..=4)
            .map(|size| {
                let mut command = vhd(&mount.dir, &["create", &name, "--size", &format!("{size}M")]);
                (
                    size,
                    command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(),
                )
            })
            .collect();
        let ended = children
            .into_iter()
            .map(|(size, mut child)| (size, child.wait().unwrap().code()));
        let winners: Vec<u64> = ended
            .filter(|(_, code)| *code == Some(0))
            .map(|(size, _)| size)
            .collect();
        assert_eq!(winners.len(), 1, "{winners:?}");
        let output = vhd(&mount.dir, &["info", &name, "--json"]).output().unwrap();
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(info.to_string().contains(&(winners[0] * MIB).to_string()), "{info}");
    }
    assert!(names(&mount.dir).iter().all(|name| !name.contains("partial")));
}

/// A signal leaves no hidden file, whatever has to have a name meanwhile.
#[test]
fn a_signal_leaves_no_partial_file() {
    let lab = Lab::new();
    let Some(mount) = Mount::new(EXFAT, &lab.path(""), "signals") else {
        return;
    };
    source(&mount.dir);
    let commands: [&[&str]; 3] = [
        &["convert", "a.raw", "out.vhd", "--to", "dynamic", "--sync"],
        &["convert", "a.raw", "out.raw", "--to", "raw", "--sync"],
        &["azure", "prepare", "a.raw", "out.vhd"],
    ];
    let mut in_the_middle = 0;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for args in commands {
            for delay in [5, 15, 30, 60] {
                let mut child = vhd(&mount.dir, args)
                    .stderr(Stdio::null())
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                sleep(Duration::from_millis(delay));
                in_the_middle += u32::from(names(&mount.dir).iter().any(|name| name.contains("partial")));
                let _ = kill_process(Pid::from_child(&child), signal);
                child.wait().unwrap();
                let left = names(&mount.dir);
                assert!(
                    left.iter().all(|name| !name.contains("partial")),
                    "{args:?}, {signal:?}: {left:?}"
                );
                for name in ["out.vhd", "out.raw"] {
                    let _ = fs::remove_file(mount.dir.join(name));
                }
            }
        }
    }
    assert!(
        in_the_middle > 0,
        "no command was struck while its file had a temporary name"
    );
}

/// A signal that is ignored stays so.
#[test]
fn what_nohup_ignores_does_not_end_a_command() {
    let lab = Lab::new();
    source(&lab.path(""));
    let mut child = Command::new("nohup")
        .arg(env!("CARGO_BIN_EXE_vhd"))
        .args(["convert", "-", "out.raw", "--to", "raw", "--from", "raw"])
        .current_dir(lab.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(200));
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &[7; 4096]).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(lab.len("out.raw"), 4096);
}

/// Windows refuses a sparse file: that is said, and a file that is none can be had.
#[test]
fn sparse_images_on_ntfs_are_warned_of() {
    let lab = Lab::new();
    let Some(mount) = Mount::new(NTFS, &lab.path(""), "sparse files") else {
        return;
    };
    let dir = &mount.dir;
    let file = File::create(dir.join("a.raw")).unwrap();
    for at in (0..16 * MIB).step_by(512 << 10) {
        std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4096], at).unwrap();
    }
    drop(file);
    for to in ["dynamic", "fixed"] {
        let text = said(dir, &["convert", "a.raw", "sparse.vhd", "--to", to, "--force"], 0);
        assert!(text.contains("Windows does not attach"), "{to}: {text}");
        let text = said(
            dir,
            &[
                "convert",
                "a.raw",
                "dense.vhd",
                "--to",
                to,
                "--preallocate",
                "full",
                "--force",
            ],
            0,
        );
        assert!(!text.contains("Windows"), "{to}: {text}");
        let metadata = dir.join("dense.vhd").metadata().unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len(), "{to}: it is sparse");
        said(dir, &["compare", "a.raw", "dense.vhd"], 0);
    }
    lab.run(&["create", "here.vhd", "--size", "16M", "--type", "fixed"], 0);
}

/// Whatever stands where a file is expected, no command waits for it.
#[test]
fn no_command_waits_for_a_pipe() {
    let lab = Lab::new();
    lab.dynamic("base.vhd", 4 * MIB);
    lab.run(&["create", "child.avhd", "--parent", "base.vhd"], 0);
    let strangers = |name: &str| {
        let path = lab.path(name);
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
        path
    };
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let socket = |path: &Path| drop(UnixListener::bind(path).unwrap());
    let folder = |path: &Path| fs::create_dir(path).unwrap();
    let makers = [
        ("pipe", pipe as fn(&Path)),
        ("socket", socket as fn(&Path)),
        ("folder", folder as fn(&Path)),
    ];
    // A document beside an image is as good a place for one as the image's own name.
    let places = [
        "odd.vhd",
        "base.vhd.snapshots",
        "base.vhd.undo",
        "base.vhd.resize",
        "base.vhd.new-id",
        "base.vhd.digests",
        "child.avhd.merge",
        "child.avhd.digests",
    ];
    let commands: &[&[&str]] = &[
        &["info", "odd.vhd"],
        &["check", "odd.vhd"],
        &["convert", "odd.vhd", "out.raw", "--to", "raw"],
        &["create", "x.avhd", "--parent", "odd.vhd"],
        &["repair", "odd.vhd"],
        &["compact", "odd.vhd"],
        &["resize", "odd.vhd", "8M"],
        &["nbd", "odd.vhd", "--socket", "s"],
        &["info", "base.vhd"],
        &["check", "child.avhd"],
        &["tree", "."],
        &["snapshot", "list", "base.vhd"],
        &["repair", "base.vhd"],
        &["resize", "base.vhd", "8M", "--dry-run"],
        &["new-id", "base.vhd", "--dry-run"],
        &["verify", "child.avhd"],
        &["merge", "child.avhd", "--into", "base.vhd", "--dry-run"],
    ];
    for (kind, make) in makers {
        for place in places {
            let path = strangers(place);
            make(&path);
            for args in commands {
                let mut child = vhd(&lab.path(""), args)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                let mut patience = 600;
                while child.try_wait().unwrap().is_none() {
                    sleep(Duration::from_millis(50));
                    patience -= 1;
                    if patience == 0 {
                        child.kill().unwrap();
                        panic!("{args:?} waits for a {kind} at {place}");
                    }
                }
                let _ = fs::remove_file(lab.path("out.raw"));
            }
            strangers(place);
        }
    }
    let text = stderr(&lab.run(&["info", "base.vhd"], 0));
    assert!(text.is_empty(), "{text}");
}

/// A limit on the length of files ends no process by a signal, and is a full disk to it.
#[test]
fn a_limit_of_file_lengths_is_a_full_disk() {
    let lab = Lab::new();
    source(&lab.path(""));
    for (to, limit, fits) in [
        ("raw", 4, false),
        ("dynamic", 4, false),
        ("dynamic", 12, true),
        ("fixed", 20, true),
    ] {
        let script = format!(
            "ulimit -f $(({limit} << 11)); exec {} convert a.raw out --to {to}",
            env!("CARGO_BIN_EXE_vhd")
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(lab.path(""))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        if fits {
            assert_eq!(output.status.code(), Some(0), "{to}, {limit} MiB: {text}");
            lab.run(&["compare", "a.raw", "out"], 0);
            fs::remove_file(lab.path("out")).unwrap();
        } else {
            assert_eq!(output.status.code(), Some(1), "{to}, {limit} MiB: {text}");
            assert!(text.contains("VHD-E0303"), "{text}");
        }
    }
}
