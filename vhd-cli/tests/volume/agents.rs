//! Volumes are made and known, nodes join and leave, agents coordinate and follow.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use rustix::process::Signal;

use crate::support::{Machine, Process, wait};

/// What a command says that needs an etcd where none is.
const NO_ETCD: &str = if cfg!(feature = "etcd") {
    "VHD-E0911"
} else {
    "VHD-E0938"
};

#[test]
fn a_volume_is_made_once_and_known_by_one_name() {
    let machine = Machine::new();
    for dir in ["v", "w"] {
        fs::create_dir(machine.path(dir)).unwrap();
    }
    assert_eq!(machine.ok(&["volume", "status"]), "no volumes\n");
    machine.fails(&["volume", "status", "v"], 8, "VHD-E0915");
    machine.fails(&["volume", "add", "v"], 8, "VHD-E0904");
    machine.fails(&["volume", "init", "missing", "--name", "v"], 1, "VHD-E0302");
    let made = machine.json(&["volume", "init", "v", "--name", "v", "--json"]);
    assert_eq!((&made["version"], &made["name"]), (&1.into(), &"v".into()));
    machine.fails(&["volume", "init", "v", "--name", "u"], 8, "VHD-E0906");
    machine.fails(&["volume", "init", "w", "--name", "v"], 8, "VHD-E0916");
    // Nobody listens at port 1; a build without etcd says that it has none.
    let nobody = ["volume", "init", "w", "--name", "w", "--engine", "etcd://127.0.0.1:1"];
    machine.fails(&nobody, if cfg!(feature = "etcd") { 1 } else { 8 }, NO_ETCD);
    assert!(!machine.path("w/.csv").exists(), "it began to make a volume");
    machine.run(&["volume", "init", "w", "--name", "w", "--engine", "etcd://h"], 2);
    machine.fails(
        &["volume", "agent", "--node", "a", "--listen", "127.0.0.1:0"],
        8,
        "VHD-E0945",
    );
    machine.run(&["volume", "agent", "--node", "a", "--listen", "0.0.0.0:0"], 2);
    machine.run(&["volume", "init", "w", "--name", "a/b"], 2);
    // Known again, where it is now.
    fs::rename(machine.path("v"), machine.path("elsewhere")).unwrap();
    let status = machine.status();
    assert_eq!(status["state"], "offline");
    assert!(
        status["reason"].as_str().unwrap().contains("not a cluster volume"),
        "{status}"
    );
    machine.ok(&["volume", "add", "elsewhere"]);
    assert!(machine.status()["dir"].as_str().unwrap().ends_with("elsewhere"));
    // A machine that lost what it knew takes its volumes up again, and no others then.
    machine.ok(&["volume", "init", "w", "--name", "w"]);
    let other = Machine::with_volume(&[]);
    let foreign = other.path("v");
    let machine = machine.forgetful();
    machine.ok(&["volume", "add", "elsewhere"]);
    machine.ok(&["volume", "add", "w"]);
    machine.fails(&["volume", "add", foreign.to_str().unwrap()], 8, "VHD-E0920");
    assert_eq!(machine.status()["id"], made["id"]);
}

#[test]
fn a_damaged_format_is_told_with_its_place() {
    let machine = Machine::with_volume(&[]);
    let format = machine.path("v/.csv/format");
    let mut bytes = fs::read(&format).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&format, bytes).unwrap();
    assert!(machine.fails(&["volume", "add", "v"], 3, "VHD-E0905").contains("/v: "));
    let status = machine.status();
    assert_eq!(status["state"], "offline");
    assert!(status["reason"].as_str().unwrap().contains(".csv/format"), "{status}");
}

#[test]
fn agents_take_over_move_and_leave() {
    let machine = Machine::with_volume(&["a", "b"]);
    assert_eq!(machine.status()["state"], "offline");
    machine.fails(&["volume", "move", "v", "--to", "a"], 1, "VHD-E0917");
    machine.fails(&["volume", "move", "v", "--to", "c"], 8, "VHD-E0919");
    let a = machine.agent("a");
    machine.coordinator(|node| node == "a");
    let b = machine.agent("b");
    let status = machine.status();
    let roles: Vec<_> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["role"].clone())
        .collect();
    assert_eq!(roles, ["coordinator", "follower"]);

    let moved = machine.json(&["volume", "move", "v", "--to", "b", "--json"]);
    assert_eq!(
        (&moved["from"], &moved["to"], &moved["epoch"]),
        (&"a".into(), &"b".into(), &2.into())
    );
    machine.coordinator(|node| node == "b");
    // It is there already: nothing moves.
    assert_eq!(
        machine.json(&["volume", "move", "v", "--to", "b", "--json"])["epoch"],
        2
    );

    b.kill();
    machine.coordinator(|node| node == "a");
    assert_eq!(machine.status()["epoch"], 3);
    let b = machine.agent("b");
    a.signal(Signal::TERM);
    assert_eq!(a.end(), Some(0));
    machine.coordinator(|node| node == "b");

    let a = machine.agent("a");
    machine.ok(&["volume", "evict", "v", "b"]);
    machine.coordinator(|node| node == "a");
    machine.fails(&["volume", "evict", "v", "b"], 8, "VHD-E0919");
    machine.fails(&["volume", "leave", "v", "--node", "b"], 8, "VHD-E0919");
    machine.ok(&["volume", "leave", "v", "--node", "a"]);
    wait("nobody to coordinate", || machine.status()["state"] == "offline");
    let kinds = machine.event_kinds();
    for kind in [
        "known",
        "joined",
        "coordinates",
        "moved",
        "stepped-down",
        "evicted",
        "left",
    ] {
        assert!(kinds.iter().any(|found| found == kind), "no {kind} in {kinds:?}");
    }
    drop((a, b));
}

#[test]
fn an_agent_tells_prometheus_how_it_takes_part() {
    let machine = Machine::with_volume(&["a"]);
    // A port that is free: the agent says which one it took.
    let mut command = machine.command(&["volume", "agent", "--node", "a", "--metrics", "127.0.0.1:0"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let _agent = Process::of(child);
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line
        .strip_prefix("vhd: metrics on http://")
        .and_then(|rest| rest.strip_suffix("/metrics\n"));
    let address = address.unwrap_or_else(|| panic!("{line}"));
    machine.coordinator(|node| node == "a");
    let get = |path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    wait("the volume to be shown", || {
        get("/metrics").contains("\nvhd_volume_coordinates{volume=\"v\",node=\"a\"} 1\n")
    });
    assert!(get("/metrics").starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(get("/").starts_with("HTTP/1.1 404 "));
}

#[test]
fn a_name_is_one_agents() {
    let machine = Machine::with_volume(&["a"]);
    let agent = machine.agent("a");
    machine.fails(&["volume", "agent", "--node", "a"], 7, "VHD-E0918");
    agent.kill();
    let agent = machine.agent("a");
    machine.coordinator(|node| node == "a");
    drop(agent);
}

#[test]
fn a_silent_coordinator_is_replaced_and_a_fenced_one_is_killed() {
    let machine = Machine::with_volume(&["a", "b"]);
    let a = machine.agent("a");
    machine.coordinator(|node| node == "a");
    let b = machine.agent("b");
    a.signal(Signal::STOP);
    machine.coordinator(|node| node == "b");
    assert_eq!(a.end(), None, "it was killed");
    machine.run(&["volume", "fence", "b"], 2);
    machine.coordinator(|node| node == "b");
    machine.ok(&["volume", "fence", "b", "--confirm"]);
    assert_eq!(b.end(), None, "it was killed");
    assert_eq!(machine.status()["state"], "offline");
}
