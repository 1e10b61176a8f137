//! `vhd diff`: what it lists, reads and returns.

use std::fs;

use crate::support::{Lab, MIB, stdout};

#[test]
fn snapshots_of_one_tree() {
    let lab = Lab::new();
    lab.chain();
    lab.run(&["create", "other.avhd", "--parent", "parent.vhd"], 0);
    let same = lab.json(&["diff", "parent.vhd", "other.avhd"], 0);
    assert_eq!((&same["identical"], &same["compared_bytes"]), (&true.into(), &0.into()));
    lab.write("other.avhd", 3 * MIB, &[2; 512]);
    lab.write("other.avhd", 5 * MIB, &[3; 1024]);
    let report = lab.json(&["diff", "leaf.avhd", "other.avhd"], 5);
    assert_eq!(report["shared_layers"], 1);
    assert_eq!(report["different_bytes"], 1024);
    assert_eq!(report["compared_bytes"], 1536);
    assert_eq!(report["ranges"][0]["start"], 5 * MIB);
    assert_eq!(report["ranges"][0]["length"], 1024);
    assert!(report.get("partitions").is_none());
    let report = lab.json(&["diff", "--allocated", "leaf.avhd", "other.avhd"], 5);
    assert_eq!(
        (&report["range_count"], &report["mode"]),
        (&2.into(), &"allocated".into())
    );
    let text = stdout(&lab.run(&["diff", "leaf.avhd", "other.avhd"], 5));
    assert!(text.contains("  0x500000..0x500400  1.00 KiB\n"), "{text}");
    assert!(
        text.ends_with("in 1 range; 1 shared layer, 1.50 KiB compared\n"),
        "{text}"
    );
    assert!(stdout(&lab.run(&["diff", "leaf.avhd", "leaf.avhd"], 0)).starts_with("No difference\n"));
}

#[test]
fn partitions_are_named() {
    let lab = Lab::new();
    let mut disk = vec![0_u8; 1 << 20];
    // Two entries: sectors 8 to 15 and 16 to 31.
    for (entry, (first, count)) in [(8_u8, 8_u8), (16, 16)].into_iter().enumerate() {
        let at = 446 + entry * 16;
        disk[at + 4] = 0x83;
        disk[at + 8] = first;
        disk[at + 12] = count;
    }
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    fs::write(lab.path("a.raw"), &disk).unwrap();
    disk[15 * 512..17 * 512].fill(1);
    disk[100 * 512] = 1;
    fs::write(lab.path("b.raw"), &disk).unwrap();
    let report = lab.json(&["diff", "a.raw", "b.raw", "--partitions"], 5);
    let both = serde_json::json!(["partition 1", "partition 2"]);
    assert_eq!(report["ranges"][0]["partitions"], both);
    assert!(report["ranges"][1].get("partitions").is_none());
    assert_eq!(report["partitions"][0]["different_bytes"], 512);
    assert_eq!(report["partitions"][1]["different_bytes"], 512);
    let text = stdout(&lab.run(&["diff", "a.raw", "b.raw", "--partitions"], 5));
    assert!(text.contains("partition 1, partition 2\n"), "{text}");
}
