//! What is refused between machines, and what commands of one machine do about nodes of another.

use crate::certificates;
use crate::there;
use crate::world::{NODES, World};

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn a_volume_of_several_machines_is_refused_to_strangers_and_moved_by_all() {
    if !there() {
        return;
    }
    let mut world = World::with_volume();
    // The same etcd without the flag that relaxes the check of its version: Debian's has the defect.
    std::fs::create_dir(world.path("w")).unwrap();
    let strict: Vec<String> = world.init("w", "w", "a");
    let strict: Vec<&str> = words(&strict)
        .into_iter()
        .filter(|word| *word != "--etcd-any-version")
        .collect();
    let fresh = world.fresh(0);
    let version = std::process::Command::new("etcd")
        .arg("--version")
        .output()
        .unwrap()
        .stdout;
    if String::from_utf8(version).unwrap().starts_with("etcd Version: 3.4.23") {
        fresh.fails(&strict, 8, "VHD-E0912");
    }
    assert!(!world.path("w/.csv").exists(), "it began to make a volume");
    // Certificates of another authority; one's own for another node; none.
    certificates::make(world.dir.path(), "other", "stranger", "a", world.networks.address(0));
    let mut add = vec!["volume".to_owned(), "add".to_owned(), "v".to_owned()];
    add.extend(certificates::options(world.dir.path(), "ca", "stranger"));
    fresh.fails(&words(&add), 8, "VHD-E0941");
    fresh.fails(&["volume", "add", "v", "--etcd-any-version"], 1, "VHD-E0911");
    let mut add = vec![
        "volume".to_owned(),
        "add".to_owned(),
        "v".to_owned(),
        "--etcd-any-version".to_owned(),
    ];
    add.extend(certificates::options(world.dir.path(), "ca", "b"));
    fresh.ok(&words(&add));
    let listen = format!("{}:7401", world.networks.address(0));
    fresh.fails(&["volume", "agent", "--node", "x", "--listen", &listen], 8, "VHD-E0942");
    // A machine without a part asks for a node that its certificate does not name.
    let status = fresh.status();
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("certificate is not that of node status"), "{status}");
    assert_eq!(status["votes"]["quorum"], true, "{status}");

    // The others: b and c.
    let machine = &world.machines[1];
    let (node, epoch) = world.coordinator(1);
    let to = NODES[if node == 1 { 2 } else { 1 }];
    let moved = machine.json(&["volume", "move", "v", "--to", to, "--json"]);
    assert_eq!(
        (&moved["to"], moved["epoch"].as_u64()),
        (&to.into(), Some(epoch + 1)),
        "{moved}"
    );
    machine.fails(&["volume", "move", "v", "--to", "x"], 8, "VHD-E0919");
    // A disk that b writes: c hears who, also after b's process was killed, until somebody says that b is gone.
    let site = std::sync::Arc::clone(&world.site);
    let (b, c) = (&site.machines[1], &site.machines[2]);
    b.ok(&["create", "v:/disk.vhd", "64M"]);
    let serving = b.nbd("b", "v:/disk.vhd");
    let refused = ["nbd", "--unix", "c.nbd", "v:/disk.vhd"];
    assert!(c.fails(&refused, 7, "VHD-E0924").contains("by b (session"));
    c.fails(&["volume", "evict", "v", "b"], 7, "VHD-E0935");
    serving.kill();
    assert!(c.fails(&refused, 7, "VHD-E0924").contains("by b (session"));
    // The machine itself knows that its process has ended.
    b.nbd("b", "v:/disk.vhd").stop();
    b.nbd("b", "v:/disk.vhd").kill();
    world.agents[1].take().unwrap().kill();
    let fenced = c.json(&["volume", "fence", "b", "--confirm", "--json"]);
    assert_eq!(fenced["freed"][0]["disk"], "disk.vhd", "{fenced}");
    c.nbd("c", "v:/disk.vhd").stop();
    // One that is evicted from another machine stops, and stays away.
    c.ok(&["volume", "evict", "v", "a"]);
    world.coordinator(1);
    c.fails(&["volume", "move", "v", "--to", "a"], 8, "VHD-E0919");
    let kinds = c.event_kinds();
    for kind in [
        "known",
        "joined",
        "coordinates",
        "moved",
        "stepped-down",
        "fenced",
        "evicted",
    ] {
        assert!(kinds.iter().any(|found| found == kind), "no {kind} in {kinds:?}");
    }
}
