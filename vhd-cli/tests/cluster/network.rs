//! Networks: one for each machine, all on a bridge.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Machines with a network each, on one bridge; removed when this is dropped.
pub(crate) struct Networks {
    tag: String,
    third: u8,
    count: u8,
}

fn ip(args: &[&str]) -> bool {
    let mut command = Command::new("ip");
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

fn must(args: &[&str]) {
    assert!(ip(args), "ip {args:?}");
}

impl Networks {
    pub(crate) fn new(count: u8) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Names of interfaces have at most 15 bytes.
        let tag = format!("v{}x{number}", std::process::id() % 1_000_000);
        let third = u8::try_from((std::process::id() + number * 7) % 250).unwrap();
        let networks = Self { tag, third, count };
        let bridge = format!("{}br", networks.tag);
        must(&["link", "add", &bridge, "type", "bridge"]);
        must(&["link", "set", &bridge, "up"]);
        for index in 0..count {
            let (name, outer) = (networks.name(index), networks.outer(index));
            must(&["netns", "add", &name]);
            must(&[
                "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &name,
            ]);
            must(&["link", "set", &outer, "master", &bridge, "up"]);
            let address = format!("{}/24", networks.address(index));
            must(&["-n", &name, "addr", "add", &address, "dev", "eth0"]);
            must(&["-n", &name, "link", "set", "eth0", "up"]);
            must(&["-n", &name, "link", "set", "lo", "up"]);
        }
        networks
    }

    pub(crate) fn name(&self, index: u8) -> String {
        format!("{}n{index}", self.tag)
    }

    fn outer(&self, index: u8) -> String {
        format!("{}e{index}", self.tag)
    }

    pub(crate) fn address(&self, index: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 211, self.third, 10 + index)
    }

    /// Nothing comes to a machine or from it.
    pub(crate) fn cut(&self, index: u8) {
        must(&["link", "set", &self.outer(index), "down"]);
    }

    /// Nothing that a machine sends arrives; what others send does.
    pub(crate) fn mute(&self, index: u8) {
        for other in (0..self.count).filter(|&other| other != index) {
            let to = format!("{}/32", self.address(other));
            must(&["-n", &self.name(index), "route", "add", "blackhole", &to]);
        }
    }

    /// Everything arrives again.
    pub(crate) fn heal(&self) {
        for index in 0..self.count {
            must(&["link", "set", &self.outer(index), "up"]);
            for other in 0..self.count {
                let to = format!("{}/32", self.address(other));
                ip(&["-n", &self.name(index), "route", "del", "blackhole", &to]);
            }
        }
    }

    /// Does something in the network of a machine, in a thread of its own.
    pub(crate) fn inside<T: Send>(&self, index: u8, job: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let job = scope.spawn(|| {
                self.enter(index);
                job()
            });
            job.join().unwrap()
        })
    }

    /// Has this thread be in the network of a machine.
    pub(crate) fn enter(&self, index: u8) {
        let network = File::open(format!("/run/netns/{}", self.name(index))).unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for index in 0..self.count {
            ip(&["netns", "del", &self.name(index)]);
            ip(&["link", "del", &self.outer(index)]);
        }
        ip(&["link", "del", &format!("{}br", self.tag)]);
    }
}
