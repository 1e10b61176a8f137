//! Machines that are found, asked and controlled by other processes.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;

use rustix::process::Signal;
use serde_json::Value;

use crate::payload::{Payload, has_kvm};
use crate::support::{Lab, beside_the_test, stderr, stdout};
use crate::tools::have;
use crate::vm::{chain, kernel};
use crate::vm_snapshot::place;

/// A machine that runs beside the test, under a name that no other test has.
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) child: Child,
}

impl Running {
    /// Runs it, and waits until its guest has written `up`.
    pub(crate) fn start(lab: &Lab, label: &str, args: &[&str]) -> Self {
        let name = format!("{label}-{}", std::process::id());
        let mut running = Self::start_command(lab, &["run", "--name", &name], args, &name);
        let mut up = [0; 2];
        running.child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        assert_eq!(&up, b"up");
        running
    }

    /// Runs a command of `vhd vm` that is a machine.
    pub(crate) fn start_command(lab: &Lab, begin: &[&str], args: &[&str], name: &str) -> Self {
        let mut command = beside_the_test();
        command.arg("vm").args(begin).args(args).current_dir(lab.path("."));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            name: name.to_owned(),
            child: command.spawn().unwrap(),
        }
    }

    pub(crate) fn directory(&self) -> PathBuf {
        directory().join(&self.name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory().join("socket")
    }

    /// Waits for the end: exit code, the rest of its console, what it said.
    pub(crate) fn end(self) -> (i32, String, String) {
        let output = self.child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap_or(-1),
            text(&output.stdout),
            text(&output.stderr),
        )
    }
}

/// Where machines of this user are.
fn directory() -> PathBuf {
    let user = rustix::process::geteuid();
    let own = match user.is_root() {
        true => PathBuf::from("/run/vhd"),
        false => PathBuf::from(format!("/run/user/{}/vhd", user.as_raw())),
    };
    match own.parent().is_some_and(std::path::Path::is_dir) {
        true => own.join("vm"),
        false => std::env::temp_dir().join(format!("vhd-{}", user.as_raw())).join("vm"),
    }
}

/// A guest that writes `up` and then waits for ever.
fn waits() -> Payload {
    Payload::new().start_disk(0).print("up").spin()
}

fn listed(lab: &Lab, name: &str) -> Option<Value> {
    let list = lab.run(&["vm", "list", "--json"], 0);
    let list: Value = serde_json::from_str(&stdout(&list)).unwrap();
    assert_eq!(list["command"], "vm list");
    let machines = list["machines"].as_array().unwrap();
    machines.iter().find(|machine| machine["name"] == name).cloned()
}

fn lab() -> Lab {
    let lab = Lab::new();
    chain(&lab);
    lab
}

#[test]
fn machines_end_with_the_test_that_started_them() {
    if !has_kvm("machines whose test is gone") || !have(&["setpriv"], "machines whose test is gone") {
        return;
    }
    let lab = lab();
    kernel(&lab, "guest", &waits());
    let start = || Running::start(&lab, "orphan", &["leaf.avhd", "--kernel", "guest"]);
    let running = thread::scope(|scope| scope.spawn(start).join().unwrap());
    let output = running.child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(Signal::KILL.as_raw()));
}

#[test]
fn a_machine_is_found_held_and_stopped() {
    if !has_kvm("controlling a machine") {
        return;
    }
    let lab = lab();
    kernel(
        &lab,
        "guest",
        &Payload::new().start_disk(0).print("up").count_on_disk(0, 1),
    );
    let args = [
        "leaf.avhd",
        "--kernel",
        "guest",
        "--memory",
        "32M",
        "--events",
        "events",
    ];
    let mut running = Running::start(&lab, "held", &args);
    let name = running.name.clone();
    assert_eq!(
        fs::metadata(running.socket()).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let machine = listed(&lab, &name).unwrap();
    assert_eq!(
        (&machine["state"], &machine["memory"]),
        (&"running".into(), &(32 << 20).into())
    );
    assert!(stdout(&lab.run(&["vm", "list"], 0)).contains(&name));
    let shown = stdout(&lab.run(&["vm", "info", &name], 0));
    assert!(shown.contains("leaf.avhd") && shown.contains("mmio"), "{shown}");

    // Its name is taken, and that is said before a disk is opened.
    let refused = lab.run(&["vm", "run", "nowhere.vhd", "--kernel", "guest", "--name", &name], 7);
    assert!(
        stderr(&refused).starts_with("vhd: error[VHD-E0810]"),
        "{}",
        stderr(&refused)
    );

    lab.run(&["vm", "pause", &name], 0);
    let info: Value = serde_json::from_str(&stdout(&lab.run(&["vm", "info", &name, "--json"], 0))).unwrap();
    assert_eq!(
        (&info["state"], &info["disks"][0]["read_only"]),
        (&"paused".into(), &false.into())
    );
    // Everything that it wrote is in the pipe: a read of more waits until it goes on.
    let console = running.child.stdout.as_mut().unwrap();
    let bytes = rustix::io::ioctl_fionread(&*console).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(rustix::io::ioctl_fionread(&*console).unwrap(), bytes);
    // A guest that is held does not notice its power button.
    let refused = lab.run(&["vm", "stop", &name], 8);
    assert!(
        stderr(&refused).starts_with("vhd: error[VHD-E0814]"),
        "{}",
        stderr(&refused)
    );
    lab.run(&["vm", "resume", &name], 0);
    let mut more = vec![0; usize::try_from(bytes).unwrap() + 50];
    console.read_exact(&mut more).unwrap();
    for pair in more.windows(10).step_by(5).take(more.len() / 5 - 1) {
        let number = |at: usize| u32::from_le_bytes(pair[at..at + 4].try_into().unwrap());
        assert_eq!(number(5), number(0) + 1);
    }
    // This machine has no power button; by force it ends, and its disks are free on return.
    let refused = lab.run(&["vm", "stop", &name], 8);
    assert!(stderr(&refused).contains("no power button"), "{}", stderr(&refused));
    let place = running.directory();
    lab.run(&["vm", "stop", &name, "--force"], 0);
    lab.run(&["check", "leaf.avhd"], 0);
    assert!(listed(&lab, &name).is_none() && !place.exists());
    let (code, _, said) = running.end();
    assert!(code == 1 && said.contains("VHD-E0807"), "{code}: {said}");
    let events = fs::read_to_string(lab.path("events")).unwrap();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["started", "paused", "resumed", "ended"]);
    assert_eq!(
        (&events[3]["reason"], &events[0]["machine"]),
        (&"stopped".into(), &name.into())
    );
}

#[test]
fn a_guest_powers_off_by_its_button_or_not() {
    if !has_kvm("power buttons") {
        return;
    }
    let lab = lab();
    kernel(
        &lab,
        "polite",
        &Payload::on_pci().print("up").wait_for_port(0x62c).power_off(),
    );
    let running = Running::start(&lab, "polite", &["--kernel", "polite", "--machine", "vhd-1"]);
    lab.run(&["vm", "stop", &running.name], 0);
    assert_eq!(running.end().0, 0);
    kernel(&lab, "deaf", &Payload::on_pci().print("up").spin());
    let running = Running::start(&lab, "deaf", &["--kernel", "deaf", "--machine", "vhd-1"]);
    let refused = lab.run(&["vm", "stop", &running.name, "--timeout", "0"], 1);
    assert!(
        stderr(&refused).starts_with("vhd: error[VHD-E0813]"),
        "{}",
        stderr(&refused)
    );
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
    assert_eq!(running.end().0, 1);
}

#[test]
fn the_console_of_a_machine_is_shared() {
    if !has_kvm("consoles of machines") {
        return;
    }
    let lab = lab();
    let echoes = (0..4).fold(Payload::new().print("up"), |guest, _| guest.echo());
    kernel(&lab, "guest", &echoes.power_off());
    let running = Running::start(&lab, "console", &["--kernel", "guest"]);
    // One that only listens, and does not read.
    let mut idle = UnixStream::connect(running.socket()).unwrap();
    idle.write_all(b"{\"version\":1,\"request\":\"console\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(&idle).read_line(&mut answer).unwrap();
    assert_eq!(answer, "\"done\"\n");
    let attached = lab
        .vhd(&["vm", "console", &running.name])
        .write_stdin("a\x01x\n")
        .assert()
        .code(0);
    assert_eq!(stdout(&attached), "a\x01x\n");
    assert_eq!(running.end(), (0, "a\x01x\n".into(), String::new()));
}

#[test]
fn inv_85_what_a_killed_machine_left_is_removed() {
    if !has_kvm("machines that are killed and found") {
        return;
    }
    let lab = lab();
    kernel(&lab, "guest", &waits());
    for look in [vec!["vm", "list"], vec!["vm", "info"], vec![]] {
        let mut running = Running::start(&lab, "killed", &["leaf.avhd", "--kernel", "guest"]);
        let name = running.name.clone();
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        assert!(running.socket().exists());
        // Whoever looks removes it; so does the next machine of that name.
        match look.as_slice() {
            [] => {}
            [_, "list"] => {
                let aside = place(&name).with_file_name(format!(".{name}"));
                assert!(aside.exists(), "a machine keeps a directory for snapshots");
                assert!(listed(&lab, &name).is_none() && !running.directory().exists());
                assert!(!aside.exists());
            }
            command => {
                let refused = lab.run(&[command, &[&name]].concat(), 1);
                assert!(
                    stderr(&refused).starts_with("vhd: error[VHD-E0811]"),
                    "{}",
                    stderr(&refused)
                );
                assert!(!running.directory().exists());
            }
        }
        let again = Running::start(&lab, "killed", &["leaf.avhd", "--kernel", "guest"]);
        lab.run(&["vm", "stop", &name, "--force"], 0);
        assert_eq!(again.end().0, 1);
    }
}

#[test]
fn nonsense_on_the_socket_is_refused_and_harms_nobody() {
    if !has_kvm("requests that are none") {
        return;
    }
    let lab = lab();
    kernel(&lab, "guest", &waits());
    let running = Running::start(&lab, "nonsense", &["leaf.avhd", "--kernel", "guest"]);
    let long = vec![b'x'; 1 << 20];
    let requests: &[(&[u8], &str)] = &[
        (b"hello\n", "no request"),
        (b"\n", "no request"),
        (b"{}\n", "no request"),
        (b"{\"version\":1,\"request\":\"explode\"}\n", "no request"),
        (b"{\"version\":2,\"request\":\"pause\"}\n", "version 1"),
        (b"{\"version\":1,\"request\":\"pause\"", "no whole line"),
        (b"\xff\xfe\n", "no request"),
        (&long, "no whole line"),
    ];
    for (request, reason) in requests {
        let mut stream = UnixStream::connect(running.socket()).unwrap();
        // The end of a request that is too long is not read.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        if stream.read_to_string(&mut answer).is_ok() {
            assert!(answer.contains("VHD-E0812") && answer.contains(reason), "{answer}");
        }
    }
    // More clients than it serves: those beyond are refused, and room comes back.
    let idle: Vec<UnixStream> = (0..16)
        .map(|_| UnixStream::connect(running.socket()).unwrap())
        .collect();
    let refused = lab.run(&["vm", "pause", &running.name], 1);
    assert!(
        stderr(&refused).starts_with("vhd: error[VHD-E0812]"),
        "{}",
        stderr(&refused)
    );
    drop(idle);
    while lab
        .vhd(&["vm", "info", &running.name])
        .assert()
        .get_output()
        .status
        .code()
        != Some(0)
    {}
    assert_eq!(listed(&lab, &running.name).unwrap()["state"], "running");
    lab.run(&["vm", "stop", &running.name, "--force"], 0);
}

#[test]
fn names_that_are_none_and_machines_that_are_not_there() {
    let lab = Lab::new();
    for name in ["", "..", "a/b", "-x y", "a b"] {
        lab.run(&["vm", "info", "--", name], 2);
        lab.run(&["vm", "run", "--kernel", "k", &format!("--name={name}")], 2);
    }
    for command in ["info", "pause", "resume", "stop", "console"] {
        let refused = lab.run(&["vm", command, "no-such-machine"], 1);
        assert!(
            stderr(&refused).starts_with("vhd: error[VHD-E0811]"),
            "{}",
            stderr(&refused)
        );
    }
    let refused = lab.run(&["vm", "info", "no-such-machine", "--json"], 1);
    assert!(stdout(&refused).contains("no-such-machine"));
}
