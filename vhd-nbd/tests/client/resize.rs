//! The client and exports whose size changes: by its own wish, while connections break, and behind its back.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use vhd_block::ErrorKind;
use vhd_block::{BlockDevice as _, ByteRange, Disk, ZeroOptions};
use vhd_nbd::client::{ClientOptions, NbdDevice};
use vhd_nbd::kinds;
use vhd_nbd::protocol::{Command, Errno, SimpleReply, TransmissionFlags};
use vhd_nbd::server::ServerOptions;

use crate::conformance::{Servers, suite};
use crate::hostile::{FLAGS, Hostile, SIZE, negotiate_export, request, send};
use crate::other_servers::writing;
use crate::support::{Running, create, resizable, resizable_exports};

#[test]
fn the_contract_is_kept_by_an_export_that_can_be_resized() {
    let servers = Servers::default();
    suite().run(&|size, content| servers.resizable(size, content));
}

#[test]
fn an_export_is_resized_while_threads_use_it() {
    const PART: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    create(&path, 4 * PART);
    let served = resizable(&path);
    let running = Running::start(dir.path(), resizable_exports(&served), ServerOptions::default());
    let device = NbdDevice::open(&running.uri("disk").parse().unwrap(), writing()).unwrap();
    let disk = Disk::new(device);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for part in 0..4 {
            let (disk, stop) = (&disk, &stop);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(part);
                let mut model = vec![0; 1 << 20];
                while !stop.load(Ordering::Relaxed) {
                    let at = random.usize(..model.len() - 10_000);
                    let place = part * PART + u64::try_from(at).unwrap();
                    if random.bool() {
                        let fill = random.u8(..);
                        disk.write_at(&[fill; 10_000], place).unwrap();
                        model[at..at + 10_000].fill(fill);
                    } else {
                        let mut read = [0; 10_000];
                        disk.read_at(&mut read, place).unwrap();
                        assert!(read == model[at..at + 10_000]);
                    }
                }
            });
        }
        for round in 1..=30 {
            let size = (4 + round) * PART + 512 * round;
            disk.resize(size).unwrap();
            assert_eq!(disk.size(), size);
            disk.write_at(&[1; 512], size - 512).unwrap();
            let refused = disk.resize(4 * PART).unwrap_err();
            assert_eq!(refused.kind(), kinds::RESIZE_REFUSED);
            assert!(refused.to_string().contains("answers Perm to Resize"), "{refused}");
            let end = ByteRange::new(size - 512, 512);
            disk.write_zeroes(end, ZeroOptions::default()).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    disk.flush().unwrap();
    // A smaller size, and the same again after the server was started anew.
    disk.resize(4 * PART).unwrap();
    drop(running);
    served.close().unwrap();
    let served = resizable(&path);
    let running = Running::start(dir.path(), resizable_exports(&served), ServerOptions::default());
    disk.read_at(&mut [0; 512], 4 * PART - 512).unwrap();
    assert_eq!(
        disk.read_at(&mut [0; 512], 4 * PART).unwrap_err().kind(),
        ErrorKind::OutOfRange
    );
    // The size was changed by another client meanwhile: it is another export now.
    drop(running);
    Disk::new(Arc::clone(&served) as _).resize(5 * PART).unwrap();
    let _running = Running::start(dir.path(), resizable_exports(&served), ServerOptions::default());
    let changed = disk.read_at(&mut [0; 512], 0).unwrap_err();
    assert!(
        changed.to_string().contains("5242880 bytes instead of 4194304"),
        "{changed}"
    );
}

#[test]
fn what_can_not_be_resized_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    create(&path, 1 << 20);
    let served = resizable(&path);
    let running = Running::start(dir.path(), resizable_exports(&served), ServerOptions::default());
    let reading = NbdDevice::open(&running.uri("frozen").parse().unwrap(), ClientOptions::default()).unwrap();
    assert!(!reading.info().capabilities.resize);
    assert_eq!(reading.resize(2 << 20).unwrap_err().kind(), ErrorKind::Unsupported);
    let device = NbdDevice::open(&running.uri("disk").parse().unwrap(), writing()).unwrap();
    assert!(device.info().capabilities.resize);
    assert_eq!(device.resize((1 << 20) + 1).unwrap_err().kind(), ErrorKind::Misaligned);
    assert_eq!(device.resize(1 << 60).unwrap_err().kind(), kinds::RESIZE_REFUSED);
    assert_eq!(device.size_bytes(), 1 << 20);
}

/// What a server does with the resize of each connection in turn.
#[derive(Clone, Copy)]
enum Step {
    /// Has this size; ends the connection when it is asked for a resize.
    Dies(u64),
    /// Has this size, and does not answer.
    Silent(u64),
    /// Has this size, and answers.
    Answers(u64, Option<Errno>),
}

/// A server of which each connection goes through one of the steps. It notes the sizes that it was asked for.
fn stepping(steps: &'static [Step]) -> (Hostile, Arc<Mutex<Vec<u64>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (noted, count) = (Arc::clone(&asked), AtomicUsize::new(0));
    let hostile = Hostile::start(move |mut stream| {
        let step = *steps.get(count.fetch_add(1, Ordering::SeqCst))?;
        let (Step::Dies(size) | Step::Silent(size) | Step::Answers(size, _)) = step;
        negotiate_export(&mut stream, size, FLAGS | TransmissionFlags::SEND_RESIZE)?;
        loop {
            let request = request(&mut stream)?;
            assert_eq!((request.command, request.length), (Command::Resize, 0));
            noted.lock().unwrap().push(request.offset);
            let error = match step {
                Step::Dies(_) => return Some(()),
                Step::Silent(_) => continue,
                Step::Answers(_, error) => error,
            };
            let cookie = request.cookie;
            send(&mut stream, &SimpleReply { error, cookie }.to_bytes())?;
        }
    });
    (hostile, asked)
}

#[test]
fn a_resize_without_an_answer_is_asked_for_again() {
    // Executed, and then dead; dead before; executed by a third.
    let (server, asked) = stepping(&[
        Step::Dies(SIZE),
        Step::Dies(2 * SIZE),
        Step::Dies(SIZE),
        Step::Answers(2 * SIZE, None),
    ]);
    let device = server.open_with(Duration::from_secs(5)).unwrap();
    device.resize(2 * SIZE).unwrap();
    assert_eq!(device.size_bytes(), 2 * SIZE);
    assert_eq!(*asked.lock().unwrap(), [2 * SIZE; 4]);
}

#[test]
fn after_a_resize_without_an_end_nothing_is_written() {
    let (server, asked) = stepping(&[Step::Silent(SIZE), Step::Answers(2 * SIZE, None)]);
    let device = server.open_with(Duration::from_secs(5)).unwrap();
    // The server may do it at any time: then what is written now could be cut off.
    assert_eq!(device.resize(2 * SIZE).unwrap_err().kind(), kinds::UNREACHABLE);
    assert_eq!(device.size_bytes(), SIZE);
    let disk = Disk::new(device);
    assert_eq!(disk.write_at(&[1; 512], 0).unwrap_err().kind(), kinds::WRITES_LOST);
    assert_eq!(disk.resize(2 * SIZE).unwrap_err().kind(), kinds::WRITES_LOST);
    assert_eq!(*asked.lock().unwrap(), [2 * SIZE]);
}

#[test]
fn no_request_is_on_its_way_when_a_size_is_asked_for() {
    /// How long a request that must not come is waited for.
    const QUIET: Duration = Duration::from_millis(200);
    let (reading, began) = mpsc::channel();
    let server = Hostile::start(move |mut stream| {
        negotiate_export(&mut stream, SIZE, FLAGS | TransmissionFlags::SEND_RESIZE)?;
        let first = request(&mut stream)?;
        assert_eq!(first.command, Command::Write);
        stream.read_exact(&mut vec![0; first.length.try_into().ok()?]).ok()?;
        reading.send(()).ok()?;
        stream.set_read_timeout(Some(QUIET)).ok()?;
        let early = request(&mut stream);
        stream.set_read_timeout(None).ok()?;
        // An error of the wrong kind tells the test.
        let error = early.map(|_| Errno::Perm);
        let cookie = first.cookie;
        send(&mut stream, &SimpleReply { error, cookie }.to_bytes())?;
        let second = request(&mut stream)?;
        let error = (second.command != Command::Resize).then_some(Errno::Perm);
        let cookie = second.cookie;
        send(&mut stream, &SimpleReply { error, cookie }.to_bytes())
    });
    let device = server.open_with(Duration::ZERO).unwrap();
    let disk = Disk::new(device);
    thread::scope(|scope| {
        let writer = scope.spawn(|| disk.write_at(&[1; 512], 0));
        began.recv().unwrap();
        disk.resize(2 * SIZE).unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(disk.size(), 2 * SIZE);
}

#[test]
fn a_third_size_is_another_export() {
    let (server, _) = stepping(&[Step::Dies(SIZE), Step::Answers(3 * SIZE, None)]);
    let device = server.open_with(Duration::from_secs(5)).unwrap();
    let changed = device.resize(2 * SIZE).unwrap_err();
    assert!(changed.to_string().contains("bytes instead of"), "{changed}");
    assert_eq!(device.size_bytes(), SIZE);
}

#[test]
fn a_refused_size_is_not_expected() {
    let (server, _) = stepping(&[Step::Answers(SIZE, Some(Errno::NoSpc)), Step::Answers(2 * SIZE, None)]);
    let device = server.open_with(Duration::from_secs(5)).unwrap();
    assert_eq!(device.resize(2 * SIZE).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(device.size_bytes(), SIZE);
}
