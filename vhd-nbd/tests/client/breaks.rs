//! Servers that die, come back, and fall silent.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vhd_block::{BlockDevice as _, Disk};
use vhd_nbd::client::{ClientOptions, NbdDevice};
use vhd_nbd::kinds;

use crate::other_servers::{Served, writing};
use crate::support::has;

const MIB: usize = 1 << 20;

/// A file of 4 MiB of which each byte is told by its place.
fn file(dir: &Path) -> Vec<u8> {
    let bytes: Vec<u8> = (0..4 * MIB).map(|at| (at / 509).to_le_bytes()[0]).collect();
    std::fs::write(dir.join("disk.raw"), &bytes).unwrap();
    bytes
}

fn open(served: &Served, options: ClientOptions) -> (Arc<NbdDevice>, Disk) {
    let device = served.open(options).unwrap();
    (Arc::clone(&device), Disk::new(device))
}

#[test]
fn reads_go_on_after_the_server_died_ten_times() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes = file(dir.path());
    let arguments = ["--filter=delay", "file", "disk.raw", "rdelay=3ms"];
    let mut served = Served::nbdkit(dir.path(), &arguments);
    let (_device, disk) = open(&served, ClientOptions::default());
    let deadline = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        for seed in 0..4 {
            let (disk, bytes) = (&disk, &bytes);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                while Instant::now() < deadline {
                    let len = random.usize(1..MIB);
                    let at = random.usize(..bytes.len() - len);
                    let mut read = vec![0xee; len];
                    disk.read_at(&mut read, u64::try_from(at).unwrap()).unwrap();
                    assert!(read == bytes[at..at + len], "{at}+{len}");
                }
            });
        }
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(150));
            served.kill();
            thread::sleep(Duration::from_millis(50));
            served = Served::nbdkit(dir.path(), &arguments);
        }
    });
}

#[test]
fn what_was_flushed_is_no_loss_and_the_rest_is_told() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    file(dir.path());
    let arguments = ["file", "disk.raw"];
    let mut served = Served::nbdkit(dir.path(), &arguments);
    let (device, disk) = open(&served, writing());
    disk.write_at(&[1; 4096], 0).unwrap();
    disk.flush().unwrap();
    served.kill();
    served = Served::nbdkit(dir.path(), &arguments);
    // All was durable, and this is too.
    disk.write_vectored_at(&[std::io::IoSlice::new(&[2; 4096])], 4096, true)
        .unwrap();
    served.kill();
    served = Served::nbdkit(dir.path(), &arguments);
    disk.flush().unwrap();
    disk.write_at(&[3; 4096], 8192).unwrap();
    served.kill();
    let served = Served::nbdkit(dir.path(), &arguments);
    // It may be there or not: nobody can tell, and so no flush succeeds any more.
    for _ in 0..2 {
        assert_eq!(disk.flush().unwrap_err().kind(), kinds::WRITES_LOST);
        assert_eq!(disk.write_at(&[4; 512], 0).unwrap_err().kind(), kinds::WRITES_LOST);
    }
    let mut read = [0; 8192];
    disk.read_at(&mut read, 0).unwrap();
    assert!(read[..4096] == [1; 4096] && read[4096..] == [2; 4096]);
    drop((disk, device));
    let (_device, disk) = open(&served, writing());
    disk.write_at(&[5; 512], 0).unwrap();
    disk.flush().unwrap();
}

#[test]
fn a_write_that_the_dead_server_did_not_answer_is_sent_again() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = file(dir.path());
    let mut served = Served::nbdkit(dir.path(), &["--filter=delay", "file", "disk.raw", "wdelay=5"]);
    let (_device, disk) = open(&served, writing());
    thread::scope(|scope| {
        let writer = scope.spawn(|| disk.write_at(&[9; 64 << 10], 512 << 10));
        thread::sleep(Duration::from_millis(300));
        served.kill();
        thread::sleep(Duration::from_millis(300));
        served = Served::nbdkit(dir.path(), &["file", "disk.raw"]);
        writer.join().unwrap().unwrap();
    });
    disk.flush().unwrap();
    bytes[512 << 10..576 << 10].fill(9);
    assert!(std::fs::read(dir.path().join("disk.raw")).unwrap() == bytes);
}

/// The signal takes its time to reach all threads.
fn wait_until_stopped(served: &Served) {
    let tasks = format!("/proc/{}/task", served.child.id());
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_dir(&tasks).unwrap().all(is_stopped) {
        assert!(Instant::now() < deadline, "the server does not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_write_that_a_silent_server_may_still_execute_is_not() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    file(dir.path());
    let served = Served::nbdkit(dir.path(), &["file", "disk.raw"]);
    let options = ClientOptions {
        request_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_millis(500),
        reconnect: Duration::from_secs(5),
        ..writing()
    };
    let (device, disk) = open(&served, options);
    let pid = Pid::from_child(&served.child);
    kill_process(pid, Signal::STOP).unwrap();
    wait_until_stopped(&served);
    let begun = Instant::now();
    let failed = disk.write_at(&[1; 512], 0).unwrap_err();
    assert_eq!(failed.kind(), kinds::UNREACHABLE, "{failed}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    // A read is asked for again until it is answered.
    thread::scope(|scope| {
        let reader = scope.spawn(|| disk.read_at(&mut [0; 512], MIB.try_into().unwrap()));
        thread::sleep(Duration::from_millis(800));
        kill_process(pid, Signal::CONT).unwrap();
        reader.join().unwrap().unwrap();
    });
    assert_eq!(disk.flush().unwrap_err().kind(), kinds::WRITES_LOST);
    assert!(device.info().capabilities.write);
}

#[test]
fn a_server_that_stays_away_is_given_up_in_time() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    file(dir.path());
    for (reconnect, limit) in [(0, 1000), (700, 2500)] {
        let mut served = Served::nbdkit(dir.path(), &["file", "disk.raw"]);
        let options = ClientOptions {
            reconnect: Duration::from_millis(reconnect),
            ..ClientOptions::default()
        };
        let (_device, disk) = open(&served, options);
        served.kill();
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let failed = disk.read_at(&mut [0; 512], 0).unwrap_err();
                    assert_eq!(failed.kind(), kinds::UNREACHABLE, "{failed}");
                });
            }
        });
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(limit), "{took:?}");
        // It is tried anew, and the server is back.
        let _served = Served::nbdkit(dir.path(), &["file", "disk.raw"]);
        disk.read_at(&mut [0; 512], 0).unwrap();
    }
}

#[test]
fn another_disk_in_its_place_is_noticed() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::nbdkit(dir.path(), &["memory", "4M"]);
    let (_device, disk) = open(&served, ClientOptions::default());
    served.kill();
    let _served = Served::nbdkit(dir.path(), &["memory", "8M"]);
    let failed = disk.read_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(failed.kind(), kinds::SERVER_REFUSED);
    assert!(
        failed.to_string().contains("8388608 bytes instead of 4194304"),
        "{failed}"
    );
}
