//! The code that ships, in a world that follows from a seed: three nodes that campaign and serve, clients on each, and faults:
//! nodes are stopped, killed, cut off from each other and from the engine, their disks stall, messages are lost and doubled, and
//! the engine elects two at once. When all is over the volume must be as the clients were told.
//!
//! `CSV_SEEDS=N` runs N seeds, `CSV_SEED=S` one of them. The decision against turmoil: docs/adr/0075.

mod history;
mod sim_engine;
mod sim_net;
mod sim_volume;
mod workload;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use csv_lock::{ClusterId, Node, NodeId, VolumeFormat, VolumeId, init_volume, newest_epoch, take_over};
use uuid::Uuid;

use crate::history::History;
use crate::sim_engine::{SimClock, SimEngine};
use crate::sim_net::SimNet;
use crate::sim_volume::{SimVolume, Weakness};
use crate::workload::Worker;
use crate::world::{Handle, Killed, MILLI, Micros, SECOND, World};

const NODES: usize = 3;
const LENGTH: Micros = 25 * SECOND;

/// Seeds in the suite.
const SEEDS: u64 = 200;

/// Seeds in which a weak file system must be found out.
const WEAK: u64 = 100;

fn seeds() -> u64 {
    std::env::var("CSV_SEEDS").map_or(SEEDS, |seeds| seeds.parse().expect("CSV_SEEDS is a number"))
}

#[test]
fn inv_91_volumes_are_whole_after_any_faults() {
    if let Ok(seed) = std::env::var("CSV_SEED") {
        let history = simulate(seed.parse().expect("CSV_SEED is a number"), Weakness::None);
        assert_eq!(history.violations, Vec::<String>::new());
        return;
    }
    let totals = Totals::default();
    let failed = run_seeds(seeds(), Weakness::None, &totals);
    println!("{totals:?}");
    assert!(
        failed.is_empty(),
        "seeds that failed (CSV_SEED=N runs one): {failed:#?}"
    );
    assert!(
        totals.answers.load(Ordering::Relaxed) > 50 * seeds(),
        "the simulation did nothing: {totals:?}"
    );
    assert!(
        totals.epochs.load(Ordering::Relaxed) > 2 * seeds(),
        "there were no takeovers: {totals:?}"
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (a, b) = (simulate(7, Weakness::None), simulate(7, Weakness::None));
    let of = |history: &History| (history.answers, history.refusals, history.unknown, history.epochs);
    assert_eq!(of(&a), of(&b));
    let ids = |history: &History| history.done.iter().map(|done| (done.end, done.id)).collect::<Vec<_>>();
    assert_eq!(ids(&a), ids(&b));
}

#[test]
fn inv_91_without_the_check_after_the_append_volumes_break() {
    must_break(Weakness::Blind);
}

#[test]
fn inv_91_on_a_file_system_with_stale_names_volumes_break() {
    must_break(Weakness::StaleNames);
}

/// A file system that lacks what the protocol relies on must be found out, or the simulation proves nothing.
fn must_break(weakness: Weakness) {
    let failed = run_seeds(WEAK, weakness, &Totals::default());
    println!(
        "{weakness:?}: {} of {WEAK} seeds, the first: {:?}",
        failed.len(),
        failed.first()
    );
    assert!(!failed.is_empty(), "{weakness:?} was not found out");
}

#[derive(Debug, Default)]
struct Totals {
    answers: AtomicU64,
    refusals: AtomicU64,
    unknown: AtomicU64,
    epochs: AtomicU64,
}

/// The seeds that failed, with what was wrong first.
fn run_seeds(count: u64, weakness: Weakness, totals: &Totals) -> Vec<(u64, String)> {
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let run = || {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return failed;
            }
            let history = simulate(seed, weakness);
            totals.answers.fetch_add(history.answers as u64, Ordering::Relaxed);
            totals.refusals.fetch_add(history.refusals as u64, Ordering::Relaxed);
            totals.unknown.fetch_add(history.unknown as u64, Ordering::Relaxed);
            totals.epochs.fetch_add(history.epochs, Ordering::Relaxed);
            if let Some(wrong) = history.violations.first() {
                eprintln!("seed {seed}: {wrong}");
                failed.push((seed, wrong.clone()));
            }
        }
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        runs.into_iter()
            .flat_map(|run| run.join().expect("the simulation ends"))
            .collect()
    })
}

fn simulate(seed: u64, weakness: Weakness) -> History {
    let (world, first) = World::new(seed, NODES);
    world.lock().fs.weakness = weakness;
    let format = VolumeFormat::new(VolumeId(Uuid::from_u128(1)), ClusterId(Uuid::from_u128(2)), "v");
    world.lock().calm = true;
    init_volume(&SimVolume(first.clone()), &format).expect("a new volume");
    world.lock().calm = false;

    let mut tasks = Vec::new();
    for node in 0..NODES {
        let served = format.clone();
        tasks.push(first.spawn(node, move |handle| {
            lives(&handle, |handle, _: Option<()>| {
                serve(handle, &served);
                None
            })
        }));
        let used = format.clone();
        tasks.push(first.spawn(node, move |handle| {
            lives(&handle, |handle, before| {
                let mut worker = Worker::new(handle.clone(), &used, node);
                let session = worker.session();
                let result = catch_unwind(AssertUnwindSafe(|| worker.run(before)));
                if let Err(payload) = result {
                    handle.world.lock().history.is_dead(&session);
                    if !payload.is::<Killed>() {
                        resume_unwind(payload);
                    }
                    return Some(session);
                }
                None
            });
        }));
    }
    faults(&first);
    let mut inner = world.lock();
    inner.calm = true;
    inner.ending = true;
    for node in 0..NODES {
        heal(&mut inner.nodes[node]);
    }
    drop(inner);
    while !first.pass(100 * MILLI).all_ended() {}
    for task in tasks {
        task.join().expect("tasks catch their panics");
    }
    check(&first, &format);
    std::mem::take(&mut world.lock().history)
}

/// Runs a task in each life of its node. What it returns it gets in the next one.
fn lives<T>(handle: &Handle, run: impl Fn(&Handle, Option<T>) -> Option<T>) {
    let mut handle = handle.clone();
    let mut before = None;
    loop {
        let given = before.take();
        match catch_unwind(AssertUnwindSafe(|| run(&handle, given))) {
            Ok(after) => before = after,
            Err(payload) if payload.is::<Killed>() => {}
            Err(payload) => {
                let text = payload.downcast_ref::<String>().cloned();
                let text = text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()));
                handle
                    .world
                    .lock()
                    .history
                    .violations
                    .push(format!("a panic: {text:?}"));
                return;
            }
        }
        if handle.world.lock().ending {
            return;
        }
        // The machine starts again. It may be killed while it does.
        loop {
            handle = handle.reborn();
            let pause = handle.world.lock().rng.u64(100 * MILLI..2 * SECOND);
            if handle.try_pass(pause).is_some() {
                break;
            }
        }
    }
}

fn serve(handle: &Handle, format: &VolumeFormat) {
    let node = Node {
        clock: SimClock(handle.clone()),
        net: SimNet(handle.clone()),
        volume: SimVolume(handle.clone()),
        engine: SimEngine(handle.clone()),
        format: format.clone(),
        node: NodeId(format!("n{}", handle.node)),
        address: format!("n{}", handle.node),
        patience: Duration::from_millis(150),
    };
    node.run(&|| handle.world.lock().ending);
}

fn heal(node: &mut world::NodeState) {
    *node = world::NodeState {
        life: node.life,
        ..world::NodeState::default()
    };
}

/// Breaks something every now and then.
fn faults(handle: &Handle) {
    loop {
        let pause = handle.world.lock().rng.u64(100 * MILLI..1500 * MILLI);
        let mut inner = handle.pass(pause);
        let now = inner.now;
        if now > LENGTH {
            return;
        }
        let node = inner.rng.usize(..NODES);
        let length = inner.rng.u64(SECOND..8 * SECOND);
        match inner.rng.u32(..5) {
            0 => inner.nodes[node].stopped_until = now + length,
            1 => inner.nodes[node].stalled_until = now + length,
            2 => inner.nodes[node].cut_off_until = now + length,
            3 => inner.nodes[node].engine_cut_off_until = now + length,
            _ => inner.kill(node),
        }
    }
}

/// The volume as a last coordinator finds it, twice.
fn check(handle: &Handle, format: &VolumeFormat) {
    let volume = SimVolume(handle.clone());
    let node = NodeId("last".into());
    let result = take_over(&volume, format, &node, 0).and_then(|coordinator| {
        let state = coordinator.state().clone();
        coordinator.close()?;
        Ok(state)
    });
    let again = take_over(&volume, format, &node, 0).map(|coordinator| coordinator.state().clone());
    let epochs = newest_epoch(&volume).unwrap_or_default().0;
    let inner = &mut *handle.world.lock();
    inner.history.epochs = epochs;
    match (result, again) {
        (Ok(state), Ok(again)) => {
            if state != again {
                inner.history.violations.push("two takeovers found two states".into());
            }
            inner.history.check(&state, &inner.fs);
        }
        (Err(error), _) | (_, Err(error)) => inner
            .history
            .violations
            .push(format!("the last takeover failed: {error}")),
    }
}
