//! Nothing changes what other images read without being told to.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use vhd_core::chain::OpenOptions;

use crate::mounted::{Mounted, fuse};
use crate::support::{Lab, MIB};
use crate::tools::{have, run};

/// Hyper-V's layout: a base, and below it the disks of two machines, one with a snapshot.
fn forest() -> Lab {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("Snapshots/6B29FC40")).unwrap();
    fs::create_dir_all(lab.path("machine two")).unwrap();
    lab.run(&["create", "base.vhd", "--size", "8M"], 0);
    lab.write("base.vhd", 0, &[7; 4096]);
    lab.run(&["create", "one.avhd", "--parent", "base.vhd"], 0);
    lab.run(
        &["create", "Snapshots/6B29FC40/one_now.avhd", "--parent", "one.avhd"],
        0,
    );
    lab.run(&["create", "machine two/disk.vud", "--parent", "base.vhd"], 0);
    lab
}

fn code(lab: &Lab, args: &[&str]) -> String {
    let report = lab.json(args, 8);
    report["error"]["code"].as_str().unwrap().to_owned()
}

fn server_is_refused(lab: &Lab, args: &[&str]) -> String {
    let mut all = vec!["nbd", "--unix", "s.sock"];
    all.extend(args);
    let run = lab.run(&all, 8);
    let text = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    assert!(text.contains("VHD-E0207"), "{text}");
    text
}

#[test]
fn every_command_that_changes_what_is_read_refuses_with_one_code() {
    let lab = forest();
    fs::remove_file(lab.path("one.avhd")).unwrap();
    fs::remove_file(lab.path("Snapshots/6B29FC40/one_now.avhd")).unwrap();
    let content = fs::read(lab.path("base.vhd")).unwrap();
    for args in [
        &["resize", "base.vhd", "16M"][..],
        &["new-id", "base.vhd"],
        &["compact", "base.vhd", "--free-space"],
        &["compact", "base.vhd", "--free-space", "--dry-run"],
        &["convert", "other.raw", "base.vhd", "--to", "raw", "--force"],
        &["snapshot", "create", "base.vhd", "--name", "x"],
    ] {
        let args = args.to_vec();
        let run = lab.run(&args, 8);
        let text = String::from_utf8(run.get_output().stderr.clone()).unwrap();
        assert!(
            text.contains("VHD-E0207") && text.contains("disk.vud"),
            "{args:?}: {text}"
        );
        assert!(fs::read(lab.path("base.vhd")).unwrap() == content, "{args:?}");
    }
    let text = server_is_refused(&lab, &["base.vhd"]);
    assert!(
        text.contains("disk.vud") && text.contains("--ignore-children"),
        "{text}"
    );
    server_is_refused(&lab, &["--resizable", "base.vhd"]);
    assert!(fs::read(lab.path("base.vhd")).unwrap() == content);
}

#[test]
fn the_option_does_it_nevertheless() {
    let lab = forest();
    lab.run(&["compact", "base.vhd", "--free-space", "--ignore-children"], 0);
    lab.run(&["resize", "base.vhd", "16M", "--ignore-children"], 0);
    lab.run(&["new-id", "base.vhd", "--ignore-children"], 0);
    lab.run(
        &[
            "convert",
            "other.raw",
            "base.vhd",
            "--to",
            "raw",
            "--force",
            "--ignore-children",
        ],
        0,
    );
}

#[test]
fn a_repair_that_leaves_doubts_asks_too() {
    let lab = Lab::new();
    lab.run(&["create", "base.vhd", "--size", "8M"], 0);
    lab.write("base.vhd", 0, &[7; 4096]);
    lab.run(&["create", "child", "--parent", "base.vhd"], 0);
    // The entry of the one block leads nowhere: which block it was is assumed.
    lab.damage("base.vhd", 1536, &[0, 0xFF, 0xFF, 0xFF]);
    lab.run(&["repair", "base.vhd"], 4);
    let before = fs::read(lab.path("base.vhd")).unwrap();
    assert_eq!(code(&lab, &["repair", "base.vhd", "--yes"]), "VHD-E0207");
    assert!(fs::read(lab.path("base.vhd")).unwrap() == before && !lab.exists("base.vhd.undo"));
    lab.run(&["repair", "base.vhd", "--yes", "--ignore-children"], 0);
    // Nothing is in doubt where a footer is written anew: the children get their parent back.
    lab.damage("base.vhd", -512, &[0; 512]);
    fs::remove_file(lab.path("base.vhd.undo")).unwrap();
    lab.run(&["repair", "base.vhd", "--yes"], 0);
}

#[test]
fn a_reparent_by_force_asks_and_another_does_not() {
    let lab = forest();
    lab.run(&["create", "other.vhd", "--size", "8M"], 0);
    let forced = ["reparent", "one.avhd", "--parent", "other.vhd", "--force"];
    assert_eq!(code(&lab, &forced), "VHD-E0207");
    lab.run(&["reparent", "one.avhd", "--parent", "base.vhd"], 0);
    lab.run(&["reparent", "one.avhd", "--parent", "other.vhd", "--rebase"], 0);
    let all = [&forced[..], &["--ignore-children"]].concat();
    lab.run(&all, 0);
}

#[test]
fn a_merge_sees_the_children_of_both_layers_wherever_they_are() {
    let lab = forest();
    let read = |name: &str| fs::read(lab.path(name)).unwrap();
    lab.write("one.avhd", MIB, &[8; 512]);
    let before = (read("base.vhd"), read("machine two/disk.vud"));
    assert_eq!(code(&lab, &["merge", "one.avhd"]), "VHD-E0207");
    assert!(before == (read("base.vhd"), read("machine two/disk.vud")));
    let two = lab.json(&["hash", "machine two/disk.vud"], 0)["sha256"].clone();
    let one = lab.json(&["hash", "Snapshots/6B29FC40/one_now.avhd"], 0)["sha256"].clone();
    let report = lab.json(&["merge", "one.avhd", "--carry"], 0);
    assert_eq!(report["children"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["carried"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(lab.json(&["hash", "machine two/disk.vud"], 0)["sha256"], two);
    assert_eq!(lab.json(&["hash", "Snapshots/6B29FC40/one_now.avhd"], 0)["sha256"], one);
}

#[test]
fn a_tree_is_resized_with_all_its_images() {
    let lab = forest();
    let report = lab.json(&["resize", "base.vhd", "16M", "--tree"], 0);
    assert_eq!(report["files"].as_array().unwrap().len(), 4, "{report}");
    for leaf in ["Snapshots/6B29FC40/one_now.avhd", "machine two/disk.vud"] {
        assert_eq!(lab.json(&["info", leaf], 0)["virtual_size"], 16 * MIB);
    }
}

#[test]
fn a_backup_of_a_tree_is_not_in_the_way_of_its_original() {
    let lab = Lab::new();
    for name in ["live", "backup"] {
        fs::create_dir(lab.path(name)).unwrap();
    }
    lab.run(&["create", "live/base.vhd", "--size", "8M"], 0);
    lab.run(&["create", "live/middle.avhd", "--parent", "live/base.vhd"], 0);
    lab.run(&["create", "live/leaf.avhd", "--parent", "live/middle.avhd"], 0);
    for name in ["base.vhd", "middle.avhd", "leaf.avhd"] {
        fs::copy(lab.path("live").join(name), lab.path("backup").join(name)).unwrap();
    }
    let backup = fs::read(lab.path("backup/leaf.avhd")).unwrap();
    let report = lab.json(&["merge", "live/middle.avhd"], 0);
    assert_eq!(report["children"].as_array().unwrap().len(), 1, "{report}");
    assert!(fs::read(lab.path("backup/leaf.avhd")).unwrap() == backup);
}

/// Takes a snapshot, and answers which file is written to from then on.
fn taken(lab: &Lab, name: &str) -> String {
    let run = lab.run(&["snapshot", "create", "vm.vhd", "--name", name, "--json"], 0);
    let report: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    report["active"].as_str().unwrap().to_owned()
}

#[test]
fn frozen_files_are_not_written_whatever_leads_to_them() {
    let lab = Lab::new();
    lab.run(&["create", "vm.vhd", "--size", "8M"], 0);
    let [old, active] = &["one", "two"].map(|name| taken(&lab, name));
    let (old, active) = (old.as_str(), active.as_str());
    symlink("vm.vhd", lab.path("link.vhd")).unwrap();
    fs::create_dir(lab.path("other")).unwrap();
    symlink(lab.path(old), lab.path("other/old.vhd")).unwrap();
    fs::hard_link(lab.path(old), lab.path("other/hard.vhd")).unwrap();
    fs::hard_link(lab.path("vm.vhd"), lab.path("base.img")).unwrap();
    for image in [
        "vm.vhd",
        old,
        "link.vhd",
        "other/old.vhd",
        "other/hard.vhd",
        "base.img",
        "vm.vhd@one",
        "vm.vhd@two",
    ] {
        let before = fs::read(lab.path(old)).unwrap();
        let text = server_is_refused(&lab, &[image]);
        assert!(text.contains("snapshot") || text.contains("based on"), "{text}");
        if !image.contains('@') {
            lab.run(&["resize", image, "16M"], 8);
            lab.run(&["new-id", image], 8);
            lab.run(&["compact", image, "--free-space"], 8);
        }
        assert!(fs::read(lab.path(old)).unwrap() == before, "{image}");
    }
    // A manifest refers to its active leaf by identity too.
    lab.run(&["new-id", active], 8);
    assert_eq!(code(&lab, &["merge", old]), "VHD-E0207");
    // The present state is written to as ever.
    let opened = OpenOptions::new().write(true).open(&lab.path(active)).unwrap();
    opened.disk().write_at(&[1; 512], 0).unwrap();
    opened.close().unwrap();
    // Without its children a frozen leaf is frozen all the same.
    fs::rename(lab.path(active), lab.path("other/away")).unwrap();
    server_is_refused(&lab, &["other/old.vhd"]);
    // A copy is nobody's.
    fs::copy(lab.path("vm.vhd"), lab.path("other/copy.vhd")).unwrap();
}

/// The command as another user, who may not read everything.
fn as_nobody(lab: &Lab, args: &[&str]) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to change the user");
        crate::announce("NOT TESTED: files of other users, for lack of the right to become one");
        return None;
    }
    // It may be in a directory that others can't enter.
    let program = lab.path("vhd");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_vhd"), &program).unwrap();
    }
    let output = Command::new(program)
        .args(args)
        .current_dir(lab.path(""))
        .uid(65534)
        .gid(65534)
        .output();
    Some(output.unwrap())
}

#[test]
fn what_another_user_hides_makes_the_answer_unknown() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("vm/hall")).unwrap();
    lab.run(&["create", "vm/base.vhd", "--size", "8M"], 0);
    lab.run(&["create", "vm/hall/child.avhd", "--parent", "vm/base.vhd"], 0);
    let child = fs::read(lab.path("vm/hall/child.avhd")).unwrap();
    fs::remove_file(lab.path("vm/hall/child.avhd")).unwrap();
    let may = |name: &str, mode| fs::set_permissions(lab.path(name), fs::Permissions::from_mode(mode)).unwrap();
    for (name, mode) in [("", 0o777), ("vm", 0o777), ("vm/base.vhd", 0o666)] {
        may(name, mode);
    }
    let resize = ["resize", "vm/base.vhd", "16M"];
    let expect = |what: Option<&str>| {
        let Some(output) = as_nobody(&lab, &resize) else { return };
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match what {
            Some(what) => {
                assert_eq!(output.status.code(), Some(8), "{text}");
                assert!(text.contains("VHD-E0207") && text.contains(what), "{text}");
            }
            None => assert_eq!(output.status.code(), Some(0), "{text}"),
        }
    };
    // A sibling, a directory below, a file in a directory below.
    fs::write(lab.path("vm/sibling"), &child).unwrap();
    may("vm/sibling", 0o600);
    expect(Some("vm/sibling cannot be read"));
    fs::remove_file(lab.path("vm/sibling")).unwrap();
    may("vm/hall", 0o700);
    expect(Some("hall cannot be read"));
    may("vm/hall", 0o755);
    fs::write(lab.path("vm/hall/inner"), &child).unwrap();
    may("vm/hall/inner", 0o600);
    expect(Some("inner cannot be read"));
    fs::remove_file(lab.path("vm/hall/inner")).unwrap();
    // What is around belongs to others.
    fs::create_dir(lab.path("home of another")).unwrap();
    may("home of another", 0o700);
    expect(None);
}

#[test]
fn a_parent_of_another_date_is_told_with_both_dates() {
    let lab = Lab::new();
    lab.run(&["create", "base.vhd", "--size", "8M"], 0);
    let file = fs::File::options().write(true).open(lab.path("base.vhd")).unwrap();
    let at = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    file.set_modified(at(1_609_459_200)).unwrap();
    lab.run(&["create", "child.avhd", "--parent", "base.vhd"], 0);
    assert_eq!(crate::support::stderr(&lab.run(&["hash", "child.avhd"], 0)), "");
    file.set_modified(at(1_709_208_000)).unwrap();
    let run = lab.run(&["hash", "child.avhd"], 0);
    let text = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    assert!(text.contains("was modified at 2024-02-29T12:00:00Z"), "{text}");
    assert!(text.contains("child.avhd recorded 2021-01-01T00:00:00Z"), "{text}");
}

#[test]
fn what_a_guest_keeps_on_a_mounted_disk_is_none_of_this_host() {
    if !fuse() || !have(&["mkfs.ext4"], "a disk with images inside, mounted beside others") {
        return;
    }
    let lab = Lab::new();
    lab.dynamic("base.vhd", MIB);
    fs::create_dir_all(lab.path("guest/deep/down")).unwrap();
    lab.run(&["create", "guest/deep/down/child.avhd", "--parent", "base.vhd"], 0);
    let disk = lab.path("disk.raw");
    File::create(&disk).unwrap().set_len(16 * MIB).unwrap();
    let guest = lab.path("guest");
    run(
        "mkfs.ext4",
        ["-q".as_ref(), "-d".as_ref(), guest.as_os_str(), disk.as_os_str()],
    );
    lab.run(&["compact", "--free-space", "base.vhd"], 8);
    fs::remove_dir_all(guest).unwrap();
    let mounted = Mounted::new(&lab, &["disk.raw"]);
    assert!(mounted.path("files/p0/deep/down/child.avhd").is_file());
    lab.run(&["compact", "--free-space", "base.vhd"], 0);
    mounted.unmount();
}
