//! Snapshots of machines: memory and disks of one moment, gone back to and deleted in any order.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vhd_core::chain::OpenOptions;
use vhd_core::snapshot::resolve;

use crate::kills::kill_rounds;
use crate::payload::{Payload, data, has_kvm};
use crate::support::{Lab, MIB, beside_the_test, stderr, stdout};
use crate::vm::kernel;
use crate::vm_control::Running;

/// The disks of the machines here; the second one is a child.
const DISKS: [&str; 2] = ["one.vhd", "two.vhd"];
/// Memory of the machines.
const MEMORY: u64 = 16 * MIB;

/// Numbers that a guest counts to before it is killed: more than it gets to meanwhile.
const FAR: u32 = 60;

/// How many operations are done in a random order.
fn operations() -> u32 {
    let operations = std::env::var("VHD_MACHINE_SNAPSHOTS").ok();
    operations.map_or(14, |count| count.parse().expect("a number of operations"))
}

/// Where the snapshots of a machine are.
pub(crate) fn place(name: &str) -> PathBuf {
    let place = match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/var/lib/vhd/vm"),
        false => std::env::home_dir().unwrap().join(".local/state/vhd/vm"),
    };
    place.join(name)
}

/// A machine that counts in its memory and on both disks, and whose console is read all the time.
struct Counting {
    lab: Lab,
    name: String,
    running: Option<Running>,
    printed: Arc<AtomicU64>,
}

/// How far something has counted: in memory, and on each disk.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counts {
    memory: u32,
    disks: [u32; 2],
}

impl Counting {
    fn start(label: &str) -> Self {
        let lab = Lab::new();
        lab.dynamic("one.vhd", 64 * MIB);
        lab.dynamic("base.vhd", 64 * MIB);
        lab.run(&["create", "two.vhd", "--parent", "base.vhd"], 0);
        let guest = Payload::on_pci().start_disk(0).start_disk(1).print("up");
        kernel(&lab, "guest", &guest.count_on_two_disks(1));
        let (second, disks) = (format!("{},id=second", DISKS[1]), DISKS[0]);
        let args = ["--kernel", "guest", "--machine", "vhd-1", "--memory", "16M"];
        let running = Running::start(&lab, label, &[&[disks, "--disk", &second], &args[..]].concat());
        let mut counting = Self {
            name: running.name.clone(),
            lab,
            running: None,
            printed: Arc::default(),
        };
        counting.read(running);
        counting
    }

    /// Reads the console from now on: a guest whose output nobody reads stops.
    fn read(&mut self, mut running: Running) {
        let (mut console, printed) = (running.child.stdout.take().unwrap(), Arc::clone(&self.printed));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = console.read(&mut buffer) {
                printed.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        self.running = Some(running);
    }

    /// Waits until the guest has counted on.
    fn count_on(&mut self, numbers: u32) {
        let until = self.printed.load(Ordering::Relaxed) + u64::from(numbers) * 5;
        while self.printed.load(Ordering::Relaxed) < until {
            let ended = self.running.as_mut().unwrap().child.try_wait().unwrap();
            assert!(ended.is_none(), "the machine has ended: {ended:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn snapshot(&self, job: &str, rest: &[&str], code: i32) -> String {
        let args = [&["vm", "snapshot", job, &self.name], rest].concat();
        let ran = self.lab.run(&args, code);
        if code == 0 { stdout(&ran) } else { stderr(&ran) }
    }

    fn listed(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.snapshot("list", &["--json"], 0)).unwrap();
        assert_eq!(list["command"], "vm snapshot list");
        assert_eq!(list["pending"], Value::Null, "{list}");
        let snapshots = list["snapshots"].as_array().unwrap().iter();
        snapshots.map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Goes back to a snapshot of a machine that does not run: a process of its own.
    fn apply_and_run(&mut self, snapshot: &str) {
        let args = ["snapshot", "apply", &self.name, snapshot, "--discard-current"];
        let running = Running::start_command(&self.lab, &args, &[], &self.name);
        self.read(running);
        self.count_on(5);
    }

    fn kill(&mut self) {
        let mut running = self.running.take().unwrap();
        running.child.kill().unwrap();
        running.child.wait().unwrap();
    }

    /// What a snapshot has: memory and disks must be of one moment.
    fn counts(&self, snapshot: &str) -> Counts {
        let list: Value = serde_json::from_str(&self.snapshot("list", &["--json"], 0)).unwrap();
        let snapshots = list["snapshots"].as_array().unwrap();
        let found = snapshots.iter().find(|it| it["name"] == snapshot).unwrap();
        let id = found["id"].as_str().unwrap();
        let file = File::open(place(&self.name).join(format!("{id}.memory"))).unwrap();
        let memory = file.metadata().unwrap().len() - MEMORY;
        let mut counter = [0; 4];
        file.read_exact_at(&mut counter, memory + u64::from(data(0))).unwrap();
        let counts = Counts {
            memory: u32::from_le_bytes(counter),
            disks: DISKS.map(|disk| self.counted(disk, snapshot)),
        };
        agree(counts);
        counts
    }

    fn counted(&self, disk: &str, snapshot: &str) -> u32 {
        counted(&resolve(&self.lab.path(disk), snapshot).unwrap())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        // It is in no directory of the test's.
        let _ = fs::remove_dir_all(place(&self.name));
    }
}

/// The number in memory is being written: to none, to the first or to both disks.
fn agree(counts: Counts) {
    let [first, second] = counts.disks;
    let begun = counts.memory - 1..=counts.memory;
    assert!(
        begun.contains(&first) && begun.contains(&second) && second <= first,
        "{counts:?}"
    );
}

/// How far the numbers go that an image holds; behind that there are none, whatever was there in another time.
fn counted(image: &std::path::Path) -> u32 {
    let opened = OpenOptions::new().force_share(true).open(image).unwrap();
    let number = |number: u32| {
        let mut found = [0; 4];
        opened.disk().read_at(&mut found, u64::from(number) * 4096).unwrap();
        u32::from_le_bytes(found)
    };
    let count = (1..).take_while(|at| number(*at) == *at).count();
    let count = u32::try_from(count).unwrap();
    for at in count + 1..count + 200 {
        assert_eq!(number(at), 0, "{}: counted to {count}", image.display());
    }
    count
}

/// Random snapshots, applications and deletions, and what must be there after each.
#[test]
fn inv_88_disks_and_memory_agree_in_any_order() {
    if !has_kvm("snapshots of machines") {
        return;
    }
    let mut machine = Counting::start("states");
    let mut random = fastrand::Rng::with_seed(fastrand::u64(..));
    crate::announce(&format!("seed {}", random.get_seed()));
    let mut model: BTreeMap<String, Counts> = BTreeMap::new();
    let mut number = 0;
    for step in 0..operations() {
        machine.count_on(3 + random.u32(..20));
        let known = random.choice(model.keys()).cloned();
        match (random.u8(..6), known) {
            (0 | 1, _) | (_, None) => {
                number += 1;
                let name = format!("s{number}");
                let told = machine.snapshot("create", &[&name], 0);
                assert!(told.contains("2 disks") && told.contains("paused:"), "{told}");
                model.insert(name.clone(), machine.counts(&name));
            }
            (2, Some(name)) => {
                machine.snapshot("delete", &[&name], 0);
                model.remove(&name);
            }
            (3, Some(name)) => {
                number += 1;
                let first = format!("s{number}");
                machine.snapshot("apply", &[&name, "--snapshot-first", "--name", &first], 0);
                model.insert(first.clone(), machine.counts(&first));
            }
            (_, Some(name)) => {
                machine.snapshot("apply", &[&name, "--discard-current"], 0);
                // It goes on from there, with nothing of what was after it.
                machine.snapshot("create", &["probe"], 0);
                let (before, now) = (model[&name], machine.counts("probe"));
                assert!(now.memory >= before.memory, "step {step}: {before:?} {now:?}");
                machine.snapshot("delete", &["probe"], 0);
            }
        }
        assert_eq!(
            machine.listed().into_iter().collect::<std::collections::BTreeSet<_>>(),
            model.keys().cloned().collect()
        );
        for (name, counts) in &model {
            assert_eq!(machine.counts(name), *counts, "step {step}, {name}");
        }
    }
    for name in machine.listed() {
        machine.snapshot("delete", &[&name], 0);
    }
    assert!(!place(&machine.name).exists(), "nothing of it is left");
    machine.count_on(5);
    machine.lab.run(&["vm", "stop", &machine.name, "--force"], 0);
    for disk in DISKS {
        machine.lab.run(&["check", disk], 0);
        assert!(
            !machine.lab.exists(&format!("{disk}.snapshots")),
            "{:?}",
            machine.lab.names()
        );
    }
    let [first, second] = DISKS.map(|disk| counted(&machine.lab.path(disk)));
    assert!(first == second || first == second + 1, "{first} {second}");
}

#[test]
fn a_machine_that_does_not_run_goes_on_from_a_snapshot() {
    if !has_kvm("snapshots of machines that do not run") {
        return;
    }
    let mut machine = Counting::start("stopped");
    machine.count_on(10);
    machine.snapshot("create", &["early"], 0);
    let early = machine.counts("early");
    machine.count_on(10);
    // Words are needed for a guest that runs.
    let refused = machine.snapshot("apply", &["early"], 8);
    assert!(refused.starts_with("vhd: error[VHD-E0311]"), "{refused}");
    assert!(
        refused.contains("--discard-current") && refused.contains("--snapshot-first"),
        "{refused}"
    );
    machine.count_on(5);
    machine.lab.run(&["vm", "stop", &machine.name, "--force"], 0);
    drop(machine.running.take().unwrap().end());
    assert_eq!(machine.listed(), ["early"]);
    // So they are for what the disks hold.
    let refused = machine.snapshot("apply", &["early"], 8);
    assert!(refused.starts_with("vhd: error[VHD-E0311]"), "{refused}");
    let refused = machine.snapshot("apply", &["early", "--snapshot-first"], 8);
    assert!(refused.starts_with("vhd: error[VHD-E0814]"), "{refused}");
    let refused = machine.snapshot("create", &["late"], 1);
    assert!(refused.starts_with("vhd: error[VHD-E0811]"), "{refused}");
    let before = DISKS.map(|disk| machine.counted(disk, "now"));
    machine.apply_and_run("early");
    machine.snapshot("create", &["later"], 0);
    let later = machine.counts("later");
    assert!(later.memory > early.memory && early.disks[0] < before[0]);
    // What was saved may be lost with a machine that has written nothing since.
    machine.snapshot("delete", &["early"], 0);
    machine.lab.run(&["vm", "pause", &machine.name], 0);
    machine.snapshot("create", &["held"], 0);
    let info = machine.lab.run(&["vm", "info", &machine.name], 0);
    assert!(stdout(&info).contains("paused"), "it was held before");
    machine.kill();
    let args = ["snapshot", "apply", &machine.name, "held"];
    let running = Running::start_command(&machine.lab, &args, &[], &machine.name);
    machine.read(running);
    machine.count_on(5);
    machine.lab.run(&["vm", "stop", &machine.name, "--force"], 0);
    drop(machine.running.take().unwrap().end());
    // A machine that does not run deletes them too.
    machine.snapshot("delete", &["later"], 0);
    machine.snapshot("delete", &["held"], 0);
    let gone = machine.snapshot("list", &[], 1);
    assert!(gone.starts_with("vhd: error[VHD-E0811]"), "{gone}");
    for disk in DISKS {
        machine.lab.run(&["check", disk], 0);
    }
}

/// Everything that is refused leaves the machine as it was, and it runs on.
#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    if !has_kvm("snapshots of machines that are refused") {
        return;
    }
    let mut machine = Counting::start("refused");
    let refused = |machine: &Counting, job: &str, rest: &[&str], code: i32, error: &str, reason: &str| {
        let complaint = machine.snapshot(job, rest, code);
        assert!(complaint.starts_with(&format!("vhd: error[{error}]")), "{complaint}");
        assert!(
            complaint.contains(reason) && complaint.lines().count() == 1,
            "{complaint}"
        );
    };
    refused(
        &machine,
        "apply",
        &["none", "--discard-current"],
        8,
        "VHD-E0309",
        "none at all",
    );
    refused(&machine, "delete", &["none"], 8, "VHD-E0309", "none at all");
    refused(&machine, "create", &["a@b"], 8, "VHD-E0409", "a@b");
    refused(&machine, "create", &["now"], 8, "VHD-E0409", "now");
    // The second disk has a snapshot of that name: none of the first is left.
    machine.lab.run(&["snapshot", "create", DISKS[1], "--name", "taken"], 0);
    refused(&machine, "create", &["taken"], 8, "VHD-E0310", "two.vhd");
    assert!(!machine.lab.exists("one.vhd.snapshots") && !place(&machine.name).exists());
    machine.lab.run(&["snapshot", "delete", DISKS[1], "taken"], 0);
    machine.snapshot("create", &["good"], 0);
    refused(&machine, "create", &["good"], 8, "VHD-E0310", "good");
    machine.count_on(5);
    let name = machine.name.clone();
    let disks = |machine: &Counting, spec: &str| machine.lab.run(&["vm", "disk", "add", &name, spec], 0);
    machine.lab.dynamic("other.vhd", 16 * MIB);
    fs::write(machine.lab.path("raw.img"), vec![0; 1 << 20]).unwrap();
    for (spec, reason) in [
        ("other.vhd,snapshot,id=x", "temporary layer"),
        ("other.vhd,resizable,id=x", "resizable"),
        ("raw:raw.img,id=x", "raw disk"),
    ] {
        disks(&machine, spec);
        refused(&machine, "create", &["no"], 8, "VHD-E0814", reason);
        // What it has can be deleted and gone back to all the same.
        assert_eq!(machine.listed(), ["good"]);
        machine.snapshot("apply", &["good", "--discard-current"], 0);
        machine.count_on(5);
        assert!(!stdout(&machine.lab.run(&["vm", "info", &machine.name], 0)).contains("x ("));
    }
    // One that is only read is kept as it is, and must be the same then.
    disks(&machine, "other.vhd,ro,id=x");
    machine.snapshot("create", &["reads"], 0);
    machine.snapshot("apply", &["reads", "--discard-current"], 0);
    assert!(stdout(&machine.lab.run(&["vm", "info", &machine.name], 0)).contains("other.vhd"));
    machine.count_on(5);
    machine.snapshot("apply", &["good", "--discard-current"], 0);
    machine.lab.write("other.vhd", 0, b"changed");
    refused(
        &machine,
        "apply",
        &["reads", "--discard-current"],
        8,
        "VHD-E0818",
        "other.vhd",
    );
    machine.snapshot("delete", &["reads"], 0);
    machine.count_on(5);
    // Memory that was altered is found before the present state is given up.
    let memory = fs::read_dir(place(&machine.name)).unwrap();
    let memory = memory
        .map(|it| it.unwrap().path())
        .find(|path| path.extension().is_some())
        .unwrap();
    let file = File::options().read(true).write(true).open(&memory).unwrap();
    let at = file.metadata().unwrap().len() - MEMORY + u64::from(data(0));
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    refused(
        &machine,
        "apply",
        &["good", "--discard-current"],
        3,
        "VHD-E0815",
        "guest memory",
    );
    file.write_all_at(&byte, at).unwrap();
    machine.count_on(5);
    // A disk lacks its part.
    machine.lab.run(&["snapshot", "delete", DISKS[0], "good"], 0);
    refused(
        &machine,
        "apply",
        &["good", "--discard-current"],
        8,
        "VHD-E0820",
        "one.vhd",
    );
    machine.count_on(5);
    machine.snapshot("delete", &["good"], 0);
    assert!(!place(&machine.name).exists());
    machine.lab.run(&["vm", "stop", &machine.name, "--force"], 0);
    for disk in DISKS {
        machine.lab.run(&["check", disk], 0);
        assert!(!machine.lab.exists(&format!("{disk}.snapshots")));
    }
}

/// A process that is killed while it takes, deletes or goes back to a snapshot: the next command finds all of it or nothing.
#[test]
fn inv_87_a_kill_leaves_before_or_after() {
    if !has_kvm("machines that are killed in the middle of a snapshot") {
        return;
    }
    let mut machine = Counting::start("killed");
    machine.count_on(10);
    machine.snapshot("create", &["base"], 0);
    let base = machine.counts("base");
    // How long each of them takes: kills are spread over that.
    let jobs: [(&str, &[&str]); 3] = [
        ("create", &["victim"]),
        ("apply", &["base", "--discard-current"]),
        ("delete", &["victim"]),
    ];
    let durations = jobs.map(|(job, rest)| {
        machine.count_on(5);
        let begun = Instant::now();
        machine.snapshot(job, rest, 0);
        begun.elapsed()
    });
    let mut outcomes: BTreeMap<(&str, bool), u32> = BTreeMap::new();
    for round in 0..kill_rounds() as usize {
        let ((job, rest), duration) = (jobs[round % 3], durations[round % 3]);
        machine.count_on(FAR);
        if job == "delete" {
            machine.snapshot("create", &["victim"], 0);
            machine.count_on(2);
        }
        let mut command = beside_the_test();
        command.args(["vm", "snapshot", job, &machine.name]).args(rest);
        command
            .current_dir(machine.lab.path("."))
            .stderr(Stdio::null())
            .stdout(Stdio::null());
        let mut command = command.spawn().unwrap();
        thread::sleep(duration.mul_f64(fastrand::f64() * 1.1));
        machine.kill();
        command.wait().unwrap();
        // The next command.
        let listed = machine.listed();
        let is_there = listed.contains(&"victim".to_owned());
        assert!(listed.contains(&"base".to_owned()), "{job}: {listed:?}");
        assert_eq!(machine.counts("base"), base, "{job}");
        let now = DISKS.map(|disk| machine.counted(disk, "now"));
        assert!(now[0] == now[1] || now[0] == now[1] + 1, "{job}: {now:?}");
        for disk in DISKS {
            assert_eq!(
                resolve(&machine.lab.path(disk), "victim").is_ok(),
                is_there,
                "{job}: {disk}"
            );
            let names = machine.lab.run(&["snapshot", "list", disk, "--json"], 0);
            let names = stdout(&names);
            assert!(!names.contains("going back"), "{job}: {disk}: {names}");
        }
        if is_there {
            machine.counts("victim");
        }
        let files = fs::read_dir(place(&machine.name)).unwrap().count();
        assert_eq!(files, listed.len() + 1, "{job}: a file for each, and the manifest");
        let is_done = match job {
            "create" => is_there,
            "apply" => now[0] < base.disks[0] + FAR / 2,
            _ => !is_there,
        };
        *outcomes.entry((job, is_done)).or_default() += 1;
        machine.apply_and_run("base");
        if is_there {
            machine.snapshot("delete", &["victim"], 0);
        }
    }
    crate::announce(&format!("killed machines, and whether it was done then: {outcomes:?}"));
    machine.lab.run(&["vm", "stop", &machine.name, "--force"], 0);
    machine.snapshot("delete", &["base"], 0);
    DISKS.iter().for_each(|disk| drop(machine.lab.run(&["check", disk], 0)));
}
