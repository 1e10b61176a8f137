//! How failures are told.

use std::fs;

use vhd_core::storage::{Access, HostFile, Sharing};

use crate::support::{Lab, MIB, reading_commands, stderr, stdout};

#[test]
fn a_missing_file_is_named_by_every_command() {
    let lab = Lab::new();
    for command in reading_commands("none.vhd") {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        let told = stderr(&lab.run(&args, 1));
        assert_eq!(told, "vhd: error[VHD-E0302]: none.vhd does not exist\n", "{args:?}");
    }
}

#[test]
fn an_image_in_use_is_refused_by_every_command_and_the_holder_named() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    let holder = HostFile::open(&lab.path("a.vhd"), Access::ReadWrite, Sharing::Exclusive).unwrap();
    for command in reading_commands("a.vhd") {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        let told = stderr(&lab.run(&args, 7));
        assert!(told.starts_with("vhd: error[VHD-E0304]: "), "{told}");
        assert!(told.contains(&format!("pid {}", std::process::id())), "{told}");
        if args[0] != "create" {
            let mut forced = args.clone();
            forced.push("--force-share");
            let code = lab.vhd(&forced).assert().get_output().status.code();
            assert!(matches!(code, Some(0 | 5)), "{forced:?}: {code:?}");
            let _ = fs::remove_file(lab.path("out.img"));
        }
    }
    drop(holder);
    lab.run(&["hash", "a.vhd"], 0);
}

#[test]
fn a_failure_is_one_object_with_json() {
    let lab = Lab::new();
    lab.fixed("a.vhd", MIB);
    lab.damage("a.vhd", -100, &[1]);
    for args in [
        &["info", "a.vhd"][..],
        &["map", "a.vhd"],
        &["hash", "a.vhd"],
        &["compare", "a.vhd", "other.raw"],
        &["convert", "a.vhd", "out.raw", "--to", "raw"],
        &["create", "c.avhd", "--parent", "a.vhd"],
    ] {
        let error = &lab.json(args, 3)["error"];
        assert_eq!(
            (&error["code"], &error["exit"]),
            (&"VHD-E0102".into(), &3.into()),
            "{args:?}"
        );
        assert_eq!(error["kind"], "footer-checksum");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.starts_with("a.vhd is not a usable VHD: bad footer at 0x100000: "),
            "{message}"
        );
        let told = stderr(&lab.run(args, 3));
        assert_eq!(told, format!("vhd: error[VHD-E0102]: {message}\n"));
    }
}

#[test]
fn directories_and_devices_are_no_images() {
    let lab = Lab::new();
    fs::create_dir(lab.path("dir")).unwrap();
    let told = stderr(&lab.run(&["info", "dir"], 8));
    assert!(told.contains("neither a regular file nor a block device"), "{told}");
    lab.run(&["hash", "/dev/zero"], 8);
}

#[test]
fn an_empty_file_is_no_disk() {
    let lab = Lab::new();
    fs::write(lab.path("empty"), "").unwrap();
    for command in reading_commands("empty") {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        let told = stderr(&lab.run(&args, 8));
        assert_eq!(
            told, "vhd: error[VHD-E0132]: empty is no disk: the file is empty\n",
            "{args:?}"
        );
    }
    // It is one for those who say so.
    let hash = stdout(&lab.run(&["hash", "empty", "--from", "raw"], 0));
    assert!(hash.starts_with("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  "));
    lab.run(&["convert", "empty", "out.raw", "--to", "raw", "--from", "raw"], 0);
    assert_eq!(lab.len("out.raw"), 0);
    let told = stderr(&lab.run(&["convert", "empty", "out.vhd", "--to", "fixed", "--from", "raw"], 8));
    assert!(told.contains("VHD-E0409"), "{told}");
}
