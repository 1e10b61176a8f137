//! Coordinators are killed, stopped for longer than their lease, and moved, while a client writes to a disk of the volume and
//! reads it back: it sees no error, no place in the file is given twice, and the image is sound.
//!
//! `VHD_VOLUME_FAULTS=100 cargo test --release -p vhd-cli --test volume faults -- --nocapture` is the long run;
//! `VHD_TEST_SEED` repeats one.

use std::collections::HashMap;
use std::env;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;

use crate::support::{Machine, Process};
use crate::writer::{verify, write_and_verify};

const NODES: [&str; 3] = ["a", "b", "c"];

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// Does something to whoever coordinates, and waits until another node, or the same one again, does.
fn fault(machine: &Machine, agents: &mut HashMap<&'static str, Process>, random: &mut Rng) -> String {
    let name = machine.coordinator(|_| true);
    let node = NODES.into_iter().find(|node| *node == name).unwrap();
    let epoch = machine.status()["epoch"].as_u64().unwrap();
    let what = random.u32(..3);
    match what {
        0 => agents.remove(node).unwrap().kill(),
        1 => {
            let agent = agents.remove(node).unwrap();
            agent.signal(Signal::STOP);
            machine.coordinator(|other| other != node);
            // It was killed for its silence; if not, it wakes and finds that it is over.
            agent.signal(Signal::CONT);
            agent.kill();
        }
        _ => {
            let others: Vec<_> = NODES.into_iter().filter(|other| *other != node).collect();
            let to = others[random.usize(..others.len())];
            machine.ok(&["volume", "move", "v", "--to", to]);
        }
    }
    machine.coordinator(|_| machine.status()["epoch"].as_u64() > Some(epoch));
    agents.entry(node).or_insert_with(|| machine.agent(node));
    format!("{} of {node}", ["kill -9", "SIGSTOP", "planned move"][what as usize])
}

#[test]
fn faults_of_coordinators_are_not_seen_by_a_writer() {
    let seed = number("VHD_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let count = number("VHD_VOLUME_FAULTS").unwrap_or(9);
    println!("VHD_TEST_SEED={seed} VHD_VOLUME_FAULTS={count}");
    let mut random = Rng::with_seed(seed);
    let machine = Machine::with_volume(&NODES);
    let mut agents: HashMap<_, _> = NODES.into_iter().map(|node| (node, machine.agent(node))).collect();
    machine.coordinator(|_| true);
    let machine = machine.of_node("a");
    for disk in ["v:/disk.vhd", "v:/parent.vhd"] {
        machine.ok(&["create", disk, "2G", "--block-size", "512K"]);
    }
    machine.ok(&["create", "v:/child.avhd", "--parent", "v:/parent.vhd"]);
    for disk in ["v:/disk.vhd", "v:/child.avhd"] {
        let serving = machine.nbd("a", disk);
        let served = serving.disk();
        let (ends, longest) = (AtomicBool::new(false), AtomicU64::new(0));
        let known = thread::scope(|scope| {
            let writer = scope.spawn(|| write_and_verify(&served, seed, &ends, &longest));
            for round in 0..count.div_ceil(2) {
                let what = fault(&machine, &mut agents, &mut random);
                // Time for the write that waited to come through.
                thread::sleep(Duration::from_millis(200));
                let waited = longest.swap(0, Ordering::Relaxed);
                println!("{disk}, fault {round}: {what}, longest write {waited} ms");
            }
            ends.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        served.flush().unwrap();
        for (&piece, &count) in &known {
            verify(&served, piece, count);
        }
        println!("{disk}: {} pieces", known.len());
        drop(served);
        serving.stop();
        // Overlapping blocks, a damaged footer, a place outside the file: all would be another verdict.
        let output = machine.command(&["check", disk, "--json"]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let verdict = report["verdict"].as_str().unwrap();
        assert!(["clean", "leaks"].contains(&verdict), "VHD_TEST_SEED={seed}: {report}");
        let serving = machine.nbd("b", disk);
        let served = serving.disk();
        known.iter().for_each(|(&piece, &count)| verify(&served, piece, count));
        serving.stop();
    }
}
