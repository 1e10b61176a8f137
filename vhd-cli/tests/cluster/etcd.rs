//! Members of etcd, each on a disk of its own that can be frozen.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::Process;

const METRICS: u16 = 2381;

/// A member of etcd.
pub(crate) struct Member {
    command: Vec<String>,
    disk: Disk,
    process: Option<Process>,
}

/// A file system in a file, mounted while this exists.
struct Disk {
    dir: PathBuf,
}

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

impl Disk {
    fn new(dir: PathBuf) -> Self {
        let image = dir.with_extension("img");
        fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let image = image.to_str().unwrap();
        assert!(run("mkfs.ext4", &["-q", "-F", image]));
        fs::create_dir(&dir).unwrap();
        assert!(run("mount", &["-o", "loop", image, dir.to_str().unwrap()]));
        Self { dir }
    }

    fn set_frozen(&self, frozen: bool) -> bool {
        let option = if frozen { "--freeze" } else { "--unfreeze" };
        run("fsfreeze", &[option, self.dir.to_str().unwrap()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.set_frozen(false);
        if !run("umount", &[self.dir.to_str().unwrap()]) {
            run("umount", &["-l", self.dir.to_str().unwrap()]);
        }
    }
}

impl Member {
    /// A member that is started. Clients need a certificate of the authority.
    pub(crate) fn start(dir: &Path, network: &str, name: &str, address: Ipv4Addr, cluster: &str) -> Self {
        let disk = Disk::new(dir.join(format!("etcd-{name}")));
        let file = |name: String| dir.join(name).to_str().unwrap().to_owned();
        let data = disk.dir.join("data").to_str().unwrap().to_owned();
        let client = format!("https://{address}:2379");
        let peer = format!("http://{address}:2380");
        let command = format!(
            "netns exec {network} etcd --name {name} --listen-client-urls {client} --advertise-client-urls {client} \
             --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster {cluster} \
             --listen-metrics-urls http://127.0.0.1:{METRICS} --client-cert-auth"
        );
        let mut command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        let options = [
            ("--data-dir", data),
            ("--cert-file", file(format!("{name}.pem"))),
            ("--key-file", file(format!("{name}.key"))),
            ("--trusted-ca-file", file("ca.pem".into())),
        ];
        command.extend(
            options
                .into_iter()
                .flat_map(|(option, value)| [option.to_owned(), value]),
        );
        let mut member = Self {
            command,
            disk,
            process: None,
        };
        member.start_again();
        member
    }

    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new("ip");
        command.args(&self.command).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process::of(command.spawn().unwrap()));
    }

    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Nothing can be written to its disk, or again.
    pub(crate) fn set_frozen(&self, frozen: bool) {
        assert!(
            self.disk.set_frozen(frozen),
            "the disk of a member of etcd is frozen and thawed"
        );
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.disk.set_frozen(false);
        self.process = None;
    }
}

/// Whether the member of this network leads; for a thread inside it.
pub(crate) fn leads() -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], METRICS));
    let limit = Duration::from_secs(1);
    let Ok(mut stream) = TcpStream::connect_timeout(&address, limit) else {
        return false;
    };
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut text = String::new();
    let asked = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
    asked.is_ok() && stream.read_to_string(&mut text).is_ok() && text.contains("\netcd_server_is_leader 1\n")
}
