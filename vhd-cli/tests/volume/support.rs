//! A machine of its own: a directory for its state, volumes, agents; where a test wants it, a network of its own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use vhd_core::device::Disk;
use vhd_nbd::client::{ClientOptions, NbdDevice, NbdUri};

/// A test that waits longer than this for something waits for ever.
const FOR_EVER: Duration = Duration::from_secs(60);

/// A machine with what it knows of volumes.
pub(crate) struct Machine {
    dir: Arc<TempDir>,
    state: PathBuf,
    /// Its network namespace.
    network: Option<String>,
    /// What agents are told besides their node.
    agents: Vec<String>,
    /// The node that commands belong to.
    node: Option<&'static str>,
}

/// A process that ends with the test.
pub(crate) struct Process(Child);

impl Machine {
    pub(crate) fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::with_state(&dir, "state", &["--lease", "1"])
    }

    /// A machine that keeps what it knows in a directory of its own.
    pub(crate) fn with_state(dir: &Arc<TempDir>, state: &str, agents: &[&str]) -> Self {
        Self {
            state: dir.path().join(state),
            dir: Arc::clone(dir),
            network: None,
            agents: agents.iter().map(|&word| word.to_owned()).collect(),
            node: None,
        }
    }

    /// The same directories, on a machine that knows nothing of them.
    pub(crate) fn forgetful(mut self) -> Self {
        self.state = self.dir.path().join("other-state");
        self
    }

    /// The same machine; commands belong to this node from now on.
    pub(crate) fn of_node(mut self, node: &'static str) -> Self {
        self.node = Some(node);
        self
    }

    /// The same machine in a network namespace.
    pub(crate) fn in_network(mut self, name: &str) -> Self {
        self.network = Some(name.to_owned());
        self
    }

    /// Where it keeps what it knows.
    pub(crate) fn state(&self) -> &std::path::Path {
        &self.state
    }

    /// A machine with a volume `v`, and these nodes that take part; their agents do not run.
    pub(crate) fn with_volume(nodes: &[&str]) -> Self {
        let machine = Self::new();
        fs::create_dir(machine.path("v")).unwrap();
        machine.ok(&["volume", "init", "v", "--name", "v"]);
        for node in nodes {
            machine.ok(&["volume", "join", "v", "--node", node]);
        }
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let vhd = env!("CARGO_BIN_EXE_vhd");
        let mut command = match &self.network {
            // The same process runs the program then.
            Some(network) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", network, vhd]);
                ip
            }
            None => Command::new(vhd),
        };
        command.args(args).current_dir(self.dir.path());
        command.env("VHD_STATE_DIR", &self.state).env_remove("VHD_NODE");
        if let Some(node) = self.node {
            command.env("VHD_NODE", node);
        }
        command
    }

    /// Runs a command that ends with this exit code; what it said.
    pub(crate) fn run(&self, args: &[&str], code: i32) -> Output {
        checked(self.command(args).output().unwrap(), args, code)
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        String::from_utf8(self.run(args, 0).stdout).unwrap()
    }

    /// Runs a command that fails with this exit code and the code of the failure.
    pub(crate) fn fails(&self, args: &[&str], code: i32, failure: &str) -> String {
        let output = self.run(args, code);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("[{failure}]")), "{args:?}: {said}");
        said
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// What `vhd volume status v` says of the volume.
    pub(crate) fn status(&self) -> Value {
        self.json(&["volume", "status", "v", "--json"])["volumes"][0].clone()
    }

    /// What happened to the volume, in order.
    pub(crate) fn event_kinds(&self) -> Vec<String> {
        let report = self.json(&["volume", "events", "v", "--json"]);
        let events = report["events"].as_array().unwrap().iter();
        events
            .map(|event| event["event"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Starts the agent of a node, and waits until it runs.
    pub(crate) fn agent(&self, node: &str) -> Process {
        let mut command = self.command(&["volume", "agent", "--node", node]);
        command.args(&self.agents);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let agent = Process(child);
        let lock = self.state.join("run/agent").join(node).join("process");
        wait("the agent to run", || lock.exists());
        agent
    }

    /// Waits until a coordinator that `is_right` answers; its name.
    pub(crate) fn coordinator(&self, is_right: impl Fn(&str) -> bool) -> String {
        let mut found = String::new();
        wait("a coordinator", || {
            let status = self.status();
            let node = status["coordinator"].as_str().unwrap_or_default();
            node.clone_into(&mut found);
            status["state"] == "online" && is_right(node)
        });
        found
    }
}

/// Asserts how a process ended.
pub(crate) fn checked(output: Output, args: &[&str], code: i32) -> Output {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    output
}

impl Process {
    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; its exit code, or none if a signal ended it.
    pub(crate) fn end(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something is so.
pub(crate) fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < FOR_EVER, "waited {FOR_EVER:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A server of a disk of the volume.
pub(crate) struct Serving {
    process: Process,
    socket: PathBuf,
}

impl Machine {
    /// `vhd nbd` as a command of a node.
    pub(crate) fn nbd(&self, node: &str, disk: &str) -> Serving {
        let socket = self.path(&format!("{node}.nbd"));
        let mut command = self.command(&["nbd", "--unix", socket.to_str().unwrap(), disk]);
        command.env("VHD_NODE", node).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("vhd: listening on "), "{line}");
        // What else it says is not to fill a pipe.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::stderr()));
        Serving {
            process: Process(child),
            socket,
        }
    }
}

impl Serving {
    /// The disk, for a client that waits as long as a volume may pause.
    pub(crate) fn disk(&self) -> Disk {
        let uri: NbdUri = format!("nbd+unix:///?socket={}", self.socket.display())
            .parse()
            .unwrap();
        let options = ClientOptions {
            write: true,
            request_timeout: FOR_EVER * 2,
            ..ClientOptions::default()
        };
        Disk::new(NbdDevice::open(&uri, options).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub(crate) fn kill(self) {
        self.process.kill();
    }

    /// Has it end in order.
    pub(crate) fn stop(self) {
        self.process.signal(Signal::TERM);
        assert_eq!(self.process.end(), Some(0));
    }
}
