//! Faults of nodes, networks and etcd while clients of all machines work: nothing that was answered is lost, no place is given twice, a writer
//! sees no error, and answers have one order.

use std::env;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;

use crate::asking::{History, ask_until};
use crate::support::wait;
use crate::there;
use crate::volume_state::{check_all, check_places};
use crate::world::{NODES, World};
use crate::writer::{verify, write_and_verify};

/// How long a fault lasts: longer than the lease.
const LASTS: Duration = Duration::from_millis(3500);
const IMAGES: [&str; 3] = ["disk-a.vhd", "disk-b.vhd", "disk-c.vhd"];

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    AgentKilled,
    AgentStopped,
    MachineCut,
    MachineMute,
    EtcdLeaderKilled,
    EtcdLeaderFrozen,
    PlannedMove,
}

const FAULTS: [Fault; 7] = [
    Fault::AgentKilled,
    Fault::AgentStopped,
    Fault::MachineCut,
    Fault::MachineMute,
    Fault::EtcdLeaderKilled,
    Fault::EtcdLeaderFrozen,
    Fault::PlannedMove,
];

/// Does something to the machine of the coordinator, or to etcd's leader, and undoes it.
fn happens(world: &mut World, fault: Fault, random: &mut Rng) {
    let (node, _) = world.coordinator(random.usize(..3));
    let network = u8::try_from(node).unwrap();
    let etcd = world.etcd_leader().unwrap_or(0);
    match fault {
        Fault::AgentKilled => {
            world.agents[node].take().unwrap().kill();
            thread::sleep(LASTS);
            world.agents[node] = Some(world.machines[node].agent(NODES[node]));
        }
        Fault::AgentStopped => {
            let agent = world.agents[node].as_ref().unwrap();
            agent.signal(Signal::STOP);
            thread::sleep(LASTS);
            agent.signal(Signal::CONT);
        }
        Fault::MachineCut => {
            world.networks.cut(network);
            thread::sleep(LASTS);
            world.networks.heal();
        }
        Fault::MachineMute => {
            world.networks.mute(network);
            thread::sleep(LASTS);
            world.networks.heal();
        }
        Fault::EtcdLeaderKilled => {
            world.members[etcd].kill();
            thread::sleep(LASTS);
            world.members[etcd].start_again();
        }
        Fault::EtcdLeaderFrozen => {
            world.members[etcd].set_frozen(true);
            thread::sleep(LASTS);
            world.members[etcd].set_frozen(false);
        }
        Fault::PlannedMove => {
            let to = NODES[(node + 1) % 3];
            // After the fault before, etcd may hear of it a moment later than the volume does.
            wait("the node to be up", || is_up(&world.machines[node].status(), to));
            world.machines[node].ok(&["volume", "move", "v", "--to", to]);
        }
    }
}

fn is_up(status: &Value, name: &str) -> bool {
    let nodes = status["nodes"].as_array();
    nodes.is_some_and(|nodes| nodes.iter().any(|node| node["name"] == name && node["state"] == "up"))
}

/// The faults of a run: each once in any order, then any.
fn plan(count: usize, random: &mut Rng) -> Vec<Fault> {
    let mut plan = FAULTS.to_vec();
    random.shuffle(&mut plan);
    while plan.len() < count {
        plan.push(FAULTS[random.usize(..FAULTS.len())]);
    }
    plan.truncate(count);
    plan
}

#[test]
fn faults_of_machines_networks_and_etcd_lose_nothing() {
    if !there() {
        return;
    }
    let seed = number("VHD_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let count = number("VHD_CLUSTER_FAULTS").unwrap_or(7);
    println!("VHD_TEST_SEED={seed} VHD_CLUSTER_FAULTS={count}");
    let mut random = Rng::with_seed(seed);
    let mut world = World::with_volume();
    let history = History::default();
    let servings: Vec<_> = (0..3)
        .map(|index| {
            let disk = format!("v:/{}", IMAGES[index]);
            world.machines[index].ok(&["create", &disk, "2G", "--block-size", "512K"]);
            world.machines[index].nbd(NODES[index], &disk)
        })
        .collect();
    let disks: Vec<_> = servings.iter().map(crate::support::Serving::disk).collect();
    let (ends, longest) = (AtomicBool::new(false), AtomicU64::new(0));
    let volume = world.path("v");
    let site = std::sync::Arc::clone(&world.site);
    let known: Vec<_> = thread::scope(|scope| {
        let (history, ends, longest, site) = (&history, &ends, &longest, &site);
        let ends_with_us = EndsWithUs(ends);
        for index in 0..3 {
            scope.spawn(move || ask_until(site, index, seed + index as u64, history, ends));
        }
        let writers: Vec<_> = disks
            .iter()
            .map(|disk| scope.spawn(move || write_and_verify(disk, seed, ends, longest)))
            .collect();
        for (round, fault) in plan(usize::try_from(count).unwrap(), &mut random)
            .into_iter()
            .enumerate()
        {
            let begin = Instant::now();
            happens(&mut world, fault, &mut random);
            let healed = begin.elapsed();
            for machine in 0..3 {
                world.coordinator(machine);
            }
            // What waited comes through.
            thread::sleep(Duration::from_millis(300));
            check_places(&volume, history, &IMAGES);
            let wrong = history.violations();
            assert!(wrong.is_empty(), "VHD_TEST_SEED={seed}, after {fault:?}: {wrong:#?}");
            let (_, epoch) = world.coordinator(0);
            let waited = longest.swap(0, Ordering::Relaxed);
            println!(
                "fault {round}: {fault:?}, {} ms until all were answered again, epoch {epoch}, longest write {waited} ms, answers {:?}",
                (begin.elapsed() - healed).as_millis(),
                history.answers()
            );
        }
        drop(ends_with_us);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    for (disk, known) in disks.iter().zip(&known) {
        disk.flush().unwrap();
        known.iter().for_each(|(&piece, &count)| verify(disk, piece, count));
    }
    drop(disks);
    servings.into_iter().for_each(crate::support::Serving::stop);
    for image in IMAGES {
        let output = world.machines[0]
            .command(&["check", &format!("v:/{image}"), "--json"])
            .output();
        let report: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        let verdict = report["verdict"].as_str().unwrap();
        assert!(["clean", "leaks"].contains(&verdict), "VHD_TEST_SEED={seed}: {report}");
    }
    // Another machine reads what was written.
    let serving = world.machines[1].nbd("b", &format!("v:/{}", IMAGES[0]));
    let disk = serving.disk();
    known[0].iter().for_each(|(&piece, &count)| verify(&disk, piece, count));
    drop(disk);
    serving.stop();
    for agent in &mut world.agents {
        let agent = agent.take().unwrap();
        agent.signal(Signal::TERM);
        assert_eq!(agent.end(), Some(0));
    }
    check_all(&volume, &history, &IMAGES);
    let wrong = history.violations();
    assert!(wrong.is_empty(), "VHD_TEST_SEED={seed}: {wrong:#?}");
    println!("{:?} names and places were answered", history.answers());
}

/// Has clients end, also when the test fails: nobody waits for them for ever.
struct EndsWithUs<'e>(&'e AtomicBool);

impl Drop for EndsWithUs<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
