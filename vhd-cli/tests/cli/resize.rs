//! Resizing as scripts see it: reports, refusals, trees, sudden death.
//!
//! VHD_KILL_ROUNDS says how often the command is killed in each of the tests (default 12); 200 and more is the long run:
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli killed_resizes -- --nocapture`

use std::fs;
use std::time::Duration;

use crate::kill::killed;
use crate::kills::kill_rounds;
use crate::support::{Lab, MIB, stderr, stdout};

fn sha256(lab: &Lab, name: &str) -> String {
    lab.json(&["hash", name], 0)["sha256"].as_str().unwrap().to_owned()
}

fn size(lab: &Lab, name: &str) -> u64 {
    let opened = vhd_core::chain::OpenOptions::new().open(&lab.path(name)).unwrap();
    opened.disk().size()
}

/// The first bytes of a disk.
fn read(lab: &Lab, name: &str, len: u64) -> Vec<u8> {
    let opened = vhd_core::chain::OpenOptions::new().open(&lab.path(name)).unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    opened.disk().read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_disk_grows_and_shrinks() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 8 * MIB);
    lab.write("a.vhd", 7 * MIB, &[7; 4096]);
    let before = sha256(&lab, "a.vhd");
    let bytes = fs::read(lab.path("a.vhd")).unwrap();
    let planned = lab.json(&["resize", "a.vhd", "40G", "--dry-run"], 0);
    assert_eq!(
        (&planned["dry_run"], &planned["size"]),
        (&true.into(), &(40 * 1024 * MIB).into())
    );
    assert_eq!(planned["files"][0]["moved_blocks"], 1);
    assert_eq!(fs::read(lab.path("a.vhd")).unwrap(), bytes);
    let done = lab.json(&["resize", "a.vhd", "40G"], 0);
    assert_eq!(done["files"], planned["files"]);
    assert_eq!((&done["version"], &done["resumed"]), (&1.into(), &false.into()));
    lab.run(&["check", "a.vhd"], 0);
    assert_eq!(size(&lab, "a.vhd"), 40 * 1024 * MIB);
    let text = stdout(&lab.run(&["resize", "a.vhd", "40G"], 0));
    assert!(
        text.starts_with("a.vhd: the disk has 42949672960 bytes (40.00 GiB) already"),
        "{text}"
    );
    let code = |args: &[&str], exit: i32| lab.json(args, exit)["error"]["code"].as_str().unwrap().to_owned();
    assert_eq!(code(&["resize", "a.vhd", "8M"], 8), "VHD-E0409");
    assert_eq!(code(&["resize", "a.vhd", "7M", "--shrink"], 8), "VHD-E0313");
    let text = stdout(&lab.run(&["resize", "a.vhd", "8M", "--shrink"], 0));
    assert!(
        text.starts_with("a.vhd: the disk has 8388608 bytes (8.00 MiB) now"),
        "{text}"
    );
    assert_eq!(sha256(&lab, "a.vhd"), before);
    // Where the large table was is a hole that compaction closes.
    lab.run(&["check", "a.vhd"], 4);
    lab.run(&["compact", "a.vhd"], 0);
    lab.run(&["check", "a.vhd"], 0);
}

#[test]
fn what_can_not_be_resized_is_refused() {
    let lab = Lab::new();
    lab.chain();
    let code = |args: &[&str], exit: i32| lab.json(args, exit)["error"]["code"].as_str().unwrap().to_owned();
    assert_eq!(code(&["resize", "leaf.avhd", "16M"], 8), "VHD-E0314");
    assert_eq!(code(&["resize", "parent.vhd", "16M"], 8), "VHD-E0207");
    assert_eq!(code(&["resize", "parent.vhd", "8M", "--fix-gpt"], 8), "VHD-E0207");
    assert_eq!(code(&["resize", "other.raw", "16M"], 1), "VHD-E0404");
    assert_eq!(code(&["resize", "none.vhd", "16M"], 1), "VHD-E0302");
    lab.run(&["resize", "parent.vhd", "1000"], 2);
    lab.run(&["resize", "-", "16M"], 2);
    lab.run(&["resize", "parent.vhd", "16M", "--force-share"], 2);
    let message = stderr(&lab.run(&["resize", "parent.vhd", "16M"], 8));
    assert!(message.contains("leaf.avhd") && message.contains("--tree"), "{message}");
    let all = lab.json(&["resize", "leaf.avhd", "16M", "--tree"], 0);
    assert_eq!(
        (&all["files"][0]["path"], all["files"].as_array().unwrap().len()),
        (&"parent.vhd".into(), 2)
    );
    assert_eq!(
        (size(&lab, "leaf.avhd"), size(&lab, "parent.vhd")),
        (16 * MIB, 16 * MIB)
    );
    for image in ["leaf.avhd", "parent.vhd"] {
        lab.run(&["check", image], 0);
    }
    let info = lab.json(&["info", "leaf.avhd"], 0);
    assert_eq!(info["warnings"].as_array().map(Vec::len), Some(0), "{info}");
    // An image that says it belongs to the tree and is not found by it.
    fs::create_dir(lab.path("moved")).unwrap();
    fs::rename(lab.path("parent.vhd"), lab.path("moved/p.vhd")).unwrap();
    fs::copy(lab.path("leaf.avhd"), lab.path("moved/stray.avhd")).unwrap();
    assert_eq!(code(&["resize", "moved/p.vhd", "32M", "--tree"], 8), "VHD-E0314");
}

/// A tree of a fixed base and children, with something in each.
fn tree(lab: &Lab) {
    lab.fixed("base.vhd", 8 * MIB);
    lab.write("base.vhd", MIB, &[1; 4096]);
    for (child, parent) in [("a.avhd", "base.vhd"), ("b.avhd", "a.avhd"), ("c.avhd", "base.vhd")] {
        lab.run(&["create", child, "--parent", parent], 0);
        let fill = child.as_bytes()[0];
        lab.write(child, 2 * MIB, &vec![fill; 3 << 20]);
    }
}

const TREE: [&str; 4] = ["base.vhd", "a.avhd", "b.avhd", "c.avhd"];

/// Kills resizes at any time; after each, every image that opens reads the same, and the same command finishes.
fn kill_over_and_over(lab: &Lab, images: &[&str], target: &str, tree: bool) {
    let contents: Vec<Vec<u8>> = images.iter().map(|image| read(lab, image, 8 * MIB)).collect();
    let (mut sizes, mut before_the_end, mut resumed) = ([8 * MIB, 8 * 1024 * MIB], 0, 0);
    for round in 0..kill_rounds() {
        sizes.swap(0, 1);
        let wanted = sizes[0].to_string();
        let mut args = vec!["resize", target, &wanted, "--shrink"];
        if tree {
            args.push("--tree");
        }
        let delay = Duration::from_micros(u64::from(round % 40) * 1500);
        if !killed(lab, &args, delay) {
            before_the_end += 1;
        }
        for (image, content) in images.iter().zip(&contents) {
            match vhd_core::chain::OpenOptions::new().open(&lab.path(image)) {
                Ok(opened) => {
                    assert!(sizes.contains(&opened.disk().size()), "{image}");
                    drop(opened);
                    assert_eq!(&read(lab, image, 8 * MIB), content, "{image}");
                }
                Err(error) => assert!(error.to_string().contains("vhd resize"), "{error}"),
            }
        }
        let finished = lab.json(&args, 0);
        resumed += u32::from(finished["resumed"] == true);
        for (image, content) in images.iter().zip(&contents) {
            assert_eq!(size(lab, image), sizes[0], "{image}");
            assert_eq!(&read(lab, image, 8 * MIB), content, "{image}");
            let checked = lab.vhd(&["check", image]).assert().get_output().status.code();
            assert!([Some(0), Some(4)].contains(&checked), "{image}: {checked:?}");
        }
        assert!(!lab.names().iter().any(|name| name.ends_with(".resize")));
    }
    println!(
        "{target}: {} kills, {before_the_end} before the end, {resumed} resumed",
        kill_rounds()
    );
    assert!(before_the_end > 0, "nothing was killed: the test tested nothing");
}

#[test]
fn killed_resizes_of_one_image_go_on() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 8 * MIB);
    lab.write("a.vhd", MIB, &vec![5; 6 << 20]);
    kill_over_and_over(&lab, &["a.vhd"], "a.vhd", false);
    lab.fixed("b.vhd", 8 * MIB);
    lab.write("b.vhd", MIB, &vec![5; 6 << 20]);
    kill_over_and_over(&lab, &["b.vhd"], "b.vhd", false);
}

#[test]
fn killed_resizes_of_trees_go_on() {
    let lab = Lab::new();
    tree(&lab);
    kill_over_and_over(&lab, &TREE, "b.avhd", true);
}
