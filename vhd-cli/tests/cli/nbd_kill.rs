//! A server that is killed while several clients write, and one of them resizes: what was flushed, on whichever
//! connection, or written with FUA, is there, the disk has the size from before or after the last resize, and the image is
//! sound.
//!
//! VHD_KILL_ROUNDS says how often (default 12); 200 and more is the long run:
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-cli --test cli killed_server -- --nocapture`

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;
use vhd_core::chain::OpenOptions;
use vhd_nbd::protocol::{
    Command, CommandFlags, Errno, ExportNameReply, Greeting, HeaderStyle, OptionRequest, RequestHeader,
    TransmissionFlags,
};

use crate::announce;
use crate::kills::kill_rounds;
use crate::nbd::Serving;
use crate::support::{Lab, MIB};

/// The disk is an array of cells. Each sector of a cell holds, over and over, the number of the cell and that of the
/// write that it comes from; the numbers of the writes to a cell ascend.
pub(crate) const CELLS: u64 = 4096;
pub(crate) const CELL: usize = 4096;
pub(crate) const STRIDE: u64 = 64 << 10;
pub(crate) const SECTOR: usize = 512;
pub(crate) const CLIENTS: u64 = 4;
/// Requests that a client sends before it waits for the replies.
const BATCH: u64 = 16;
/// The image is made anew after so many rounds: where all blocks have space none is allocated any more.
const ROUNDS_OF_AN_IMAGE: u32 = 8;
const FLUSH: u64 = u64::MAX;

/// What is known of the cells.
pub(crate) struct Cells {
    /// The write that was sent last.
    sent: Vec<AtomicU64>,
    /// The newest write that was answered.
    answered: Vec<AtomicU64>,
    /// The newest write that must survive.
    kept: Vec<AtomicU64>,
}

impl Cells {
    /// All cells hold the write of this number; 0: zeroes.
    pub(crate) fn new(number: u64) -> Self {
        let all = || (0..CELLS).map(|_| AtomicU64::new(number)).collect();
        Self {
            sent: all(),
            answered: all(),
            kept: all(),
        }
    }

    /// The writes that were answered by now at least.
    pub(crate) fn answered(&self) -> Vec<u64> {
        self.answered
            .iter()
            .map(|number| number.load(Ordering::SeqCst))
            .collect()
    }

    /// The writes that were sent by now at most.
    pub(crate) fn sent(&self) -> Vec<u64> {
        self.sent.iter().map(|number| number.load(Ordering::SeqCst)).collect()
    }

    /// The writes that were flushed by now at least.
    pub(crate) fn kept(&self) -> Vec<u64> {
        self.kept.iter().map(|number| number.load(Ordering::SeqCst)).collect()
    }

    fn keep(&self, cell: u64, number: u64) {
        self.kept[index(cell)].fetch_max(number, Ordering::SeqCst);
    }
}

fn index(cell: u64) -> usize {
    usize::try_from(cell).unwrap()
}

pub(crate) fn content(cell: u64, number: u64) -> Vec<u8> {
    let pair = [cell.to_le_bytes(), number.to_le_bytes()].concat();
    pair.repeat(CELL / pair.len())
}

/// A disk that is served and killed.
#[derive(Clone, Copy)]
struct Subject {
    what: &'static str,
    image: &'static str,
    /// Makes an image of which each cell holds the write of the number that it returns.
    make: fn(&Lab) -> u64,
    /// It is resized too.
    resizing: bool,
}

/// The sizes of a disk.
struct Sizes {
    /// The one that was asked for last.
    sent: AtomicU64,
    /// The last one that was answered.
    answered: AtomicU64,
}

impl Sizes {
    fn new() -> Self {
        let size = || AtomicU64::new(CELLS * STRIDE);
        Self {
            sent: size(),
            answered: size(),
        }
    }
}

/// Resizes the disk until the server is gone, never to less than the cells take.
fn resize_on(mut stream: UnixStream, sizes: &Sizes, rng: &mut Rng) -> io::Result<()> {
    let agreed = negotiate(&mut stream)?;
    assert!(agreed.flags.contains(TransmissionFlags::SEND_RESIZE));
    loop {
        let more = rng.u64(..=64) * if rng.bool() { 1 } else { 1024 };
        let size = CELLS * STRIDE + more * MIB;
        sizes.sent.store(size, Ordering::SeqCst);
        let header = RequestHeader {
            flags: CommandFlags::empty(),
            command: Command::Resize,
            cookie: size,
            offset: size,
            length: 0,
        };
        let mut bytes = Vec::new();
        header.encode(HeaderStyle::Compact, &mut bytes);
        stream.write_all(&bytes)?;
        assert_eq!(reply(&mut stream)?, size);
        sizes.answered.store(size, Ordering::SeqCst);
    }
}

fn negotiate(stream: &mut UnixStream) -> io::Result<ExportNameReply> {
    stream.read_exact(&mut [0; Greeting::SIZE])?;
    let mut bytes = 3u32.to_be_bytes().to_vec();
    OptionRequest::ExportName(String::new()).encode(&mut bytes);
    stream.write_all(&bytes)?;
    let mut agreed = [0; ExportNameReply::SIZE];
    stream.read_exact(&mut agreed)?;
    Ok(ExportNameReply::decode(&agreed).unwrap())
}

/// The cookie of a reply that says that all is well.
fn reply(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes)?;
    let error = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
    if error == Errno::Shutdown.number() {
        // It was told to stop in order, and not killed yet.
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    assert_eq!(error, 0, "a request failed");
    Ok(u64::from_be_bytes(bytes[8..].try_into().unwrap()))
}

/// A client that writes to its own cells until the server is gone. The first of them flushes, for all.
struct Writer<'a> {
    stream: UnixStream,
    cells: &'a Cells,
    client: u64,
    rng: Rng,
}

/// Writes to a client's cells of the default export until the server is gone.
pub(crate) fn write_on(stream: UnixStream, cells: &Cells, client: u64, rng: Rng) {
    let mut writer = Writer {
        stream,
        cells,
        client,
        rng,
    };
    // It ends with the server.
    let _ = writer.run();
}

impl Writer<'_> {
    fn run(&mut self) -> io::Result<()> {
        negotiate(&mut self.stream)?;
        loop {
            self.batch()?;
            if self.client == 0 {
                self.flush()?;
            }
        }
    }

    /// Writes to different cells, and takes the replies in whatever order they come.
    fn batch(&mut self) -> io::Result<()> {
        let (start, fua) = (self.rng.u64(..), self.rng.u64(..BATCH * 4));
        let mut bytes = Vec::new();
        for number in 0..BATCH {
            let cell = start.wrapping_add(number * 37) % (CELLS / CLIENTS) * CLIENTS + self.client;
            let write = self.cells.sent[index(cell)].fetch_add(1, Ordering::SeqCst) + 1;
            let flags = if number == fua {
                CommandFlags::FUA
            } else {
                CommandFlags::empty()
            };
            let header = RequestHeader {
                flags,
                command: Command::Write,
                // Says everything that the reply is to tell.
                cookie: write << 32 | cell << 1 | u64::from(number == fua),
                offset: cell * STRIDE,
                length: CELL as u64,
            };
            header.encode(HeaderStyle::Compact, &mut bytes);
            bytes.extend(content(cell, write));
        }
        self.stream.write_all(&bytes)?;
        for _ in 0..BATCH {
            let cookie = reply(&mut self.stream)?;
            let (write, cell) = (cookie >> 32, (cookie & 0xffff_ffff) >> 1);
            self.cells.answered[index(cell)].fetch_max(write, Ordering::SeqCst);
            if cookie & 1 == 1 {
                self.cells.keep(cell, write);
            }
        }
        Ok(())
    }

    /// What was answered before a flush, on any connection, survives.
    fn flush(&mut self) -> io::Result<()> {
        let answered = self.cells.answered();
        let header = RequestHeader {
            flags: CommandFlags::empty(),
            command: Command::Flush,
            cookie: FLUSH,
            offset: 0,
            length: 0,
        };
        let mut bytes = Vec::new();
        header.encode(HeaderStyle::Compact, &mut bytes);
        self.stream.write_all(&bytes)?;
        assert_eq!(reply(&mut self.stream)?, FLUSH);
        for (cell, number) in (0..).zip(answered) {
            self.cells.keep(cell, number);
        }
        Ok(())
    }
}

/// Serves the image, lets clients write to it, and kills the server; sometimes while it is about to stop in order.
fn serve_and_kill(lab: &Lab, subject: Subject, cells: &Cells, sizes: &Sizes, rng: &mut Rng) {
    let mut args = vec!["--unix", "s.sock", subject.image];
    args.extend(subject.resizing.then_some("--resizable"));
    if subject.image.ends_with(".raw") {
        args.extend(["--from", "raw"]);
    }
    let mut serving = Serving::start(lab, &args);
    thread::scope(|scope| {
        if subject.resizing {
            let stream = UnixStream::connect(lab.path("s.sock")).unwrap();
            let mut rng = rng.fork();
            // It ends with the server.
            scope.spawn(move || resize_on(stream, sizes, &mut rng).unwrap_err());
        }
        for client in 0..CLIENTS {
            let stream = UnixStream::connect(lab.path("s.sock")).unwrap();
            let rng = rng.fork();
            scope.spawn(move || write_on(stream, cells, client, rng));
        }
        // A resize takes its time, on a busy machine above all.
        let longest = if subject.resizing { 250 } else { 60 };
        thread::sleep(Duration::from_millis(rng.u64(3..longest)));
        if rng.u8(..4) == 0 {
            serving.signal(Signal::TERM);
            thread::sleep(Duration::from_micros(rng.u64(..8000)));
        }
        serving.kill();
    });
}

/// Each sector holds a write that is not older than what was kept, and not newer than what was sent. What is there now
/// stays.
pub(crate) fn verify(lab: &Lab, image: &str, cells: &Cells) {
    let opened = OpenOptions::new().open(&lab.path(image)).unwrap();
    let mut found = vec![0; CELL];
    for cell in 0..CELLS {
        let load = |list: &[AtomicU64]| list[index(cell)].load(Ordering::SeqCst);
        let (kept, sent) = (load(&cells.kept), load(&cells.sent));
        opened.disk().read_at(&mut found, cell * STRIDE).unwrap();
        let mut oldest = u64::MAX;
        for sector in found.chunks(SECTOR) {
            let number = u64::from_le_bytes(sector[8..16].try_into().unwrap());
            let expected = if number == 0 {
                vec![0; CELL]
            } else {
                content(cell, number)
            };
            assert_eq!(sector, &expected[..SECTOR], "cell {cell}");
            assert!(
                (kept..=sent).contains(&number),
                "cell {cell}: {number}, not {kept} to {sent}"
            );
            oldest = oldest.min(number);
        }
        cells.keep(cell, oldest);
        // What was answered and not flushed may be lost; a later flush does not bring it back.
        cells.answered[index(cell)].store(oldest, Ordering::SeqCst);
    }
}

/// The disk has the size from before the last resize or the one from after it. In the middle of one, or before it, the
/// same resize goes on; whether in the middle.
fn verify_size(lab: &Lab, image: &str, sizes: &Sizes) -> bool {
    let (sent, answered) = (sizes.sent.load(Ordering::SeqCst), sizes.answered.load(Ordering::SeqCst));
    let unfinished = lab.exists(&format!("{image}.resize"));
    let size_of_disk = || {
        OpenOptions::new()
            .open(&lab.path(image))
            .map(|opened| opened.disk().size())
    };
    match size_of_disk() {
        Ok(size) => assert!([sent, answered].contains(&size), "{size}, not {sent} or {answered}"),
        Err(error) => assert!(unfinished && error.to_string().contains("vhd resize"), "{error}"),
    }
    if !image.ends_with(".raw") && sent != answered {
        lab.run(&["resize", image, &sent.to_string(), "--shrink"], 0);
    }
    let opened = OpenOptions::new().open(&lab.path(image)).unwrap();
    let size = opened.disk().size();
    // What is new reads zero, to the end.
    let len = (size - CELLS * STRIDE).min(4 * MIB);
    let mut behind = vec![0xEE; usize::try_from(len).unwrap()];
    opened.disk().read_at(&mut behind, size - len).unwrap();
    assert!(behind.iter().all(|&byte| byte == 0));
    assert!(!lab.exists(&format!("{image}.resize")));
    sizes.sent.store(size, Ordering::SeqCst);
    sizes.answered.store(size, Ordering::SeqCst);
    unfinished
}

/// Whether the image has leaks, and nothing worse. Between the two footers of a new size the next writer restores one.
fn has_leaks(lab: &Lab, subject: Subject) -> bool {
    let image = subject.image;
    if image.ends_with(".raw") {
        return false;
    }
    let check = || -> serde_json::Value {
        let checked = lab.vhd(&["check", image, "--json"]).output().unwrap();
        serde_json::from_slice(&checked.stdout).unwrap()
    };
    let mut report = check();
    let findings = report["findings"].as_array().unwrap();
    let mut bad = findings.iter().filter(|finding| finding["severity"] == "repairable");
    if subject.resizing && report["verdict"] == "repairable" && bad.all(|finding| finding["code"] == "footers-differ") {
        let opened = OpenOptions::new().write(true).open(&lab.path(image)).unwrap();
        opened.close().unwrap();
        report = check();
    }
    match report["verdict"].as_str() {
        Some("clean") => false,
        Some("leaks") => true,
        _ => panic!("{report}"),
    }
}

fn kill_again_and_again(subject: Subject) {
    let Subject { what, image, .. } = subject;
    let seed = vhd_testkit::rng::seed(0xDEAD);
    println!("{}={seed:#x}", vhd_testkit::rng::SEED_VARIABLE);
    let mut rng = vhd_testkit::rng::rng(seed);
    let (mut kept, mut with_leaks, mut resizes, mut unfinished) = (0, 0, 0, 0);
    let (mut lab, mut cells, mut sizes) = (Lab::new(), Cells::new(0), Sizes::new());
    for round in 0..kill_rounds() {
        if round % ROUNDS_OF_AN_IMAGE == 0 {
            lab = Lab::new();
            cells = Cells::new((subject.make)(&lab));
            sizes = Sizes::new();
        }
        let before: Vec<u64> = cells.kept.iter().map(|number| number.load(Ordering::SeqCst)).collect();
        let size = sizes.answered.load(Ordering::SeqCst);
        serve_and_kill(&lab, subject, &cells, &sizes, &mut rng);
        resizes += u32::from(sizes.answered.load(Ordering::SeqCst) != size);
        let changed = |(now, before): (&AtomicU64, &u64)| now.load(Ordering::SeqCst) > *before;
        kept += cells.kept.iter().zip(&before).filter(|pair| changed(*pair)).count();
        unfinished += u32::from(verify_size(&lab, image, &sizes));
        with_leaks += u32::from(has_leaks(&lab, subject));
        verify(&lab, image, &cells);
    }
    announce(&format!(
        "vhd nbd of a {what} image: {} kills, after {with_leaks} of them leaks, {kept} cells with flushed writes, {resizes} \
         with resizes, {unfinished} in the middle of one that had to be finished",
        kill_rounds()
    ));
    assert_eq!(resizes > 0, subject.resizing, "the test tested nothing");
    assert!(kept > 0, "nothing was flushed: the test tested nothing");
}

#[test]
fn a_killed_server_of_a_dynamic_image() {
    kill_again_and_again(DYNAMIC);
}

#[test]
fn a_killed_server_of_a_fixed_image() {
    kill_again_and_again(FIXED);
}

#[test]
fn a_killed_server_of_a_dynamic_image_that_is_resized() {
    kill_again_and_again(Subject {
        resizing: true,
        ..DYNAMIC
    });
}

#[test]
fn a_killed_server_of_a_fixed_image_that_is_resized() {
    kill_again_and_again(Subject {
        resizing: true,
        ..FIXED
    });
}

#[test]
fn a_killed_server_of_a_raw_file_that_is_resized() {
    kill_again_and_again(Subject {
        what: "raw",
        image: "disk.raw",
        make: |lab| {
            let file = std::fs::File::create(lab.path("disk.raw")).unwrap();
            file.set_len(CELLS * STRIDE).unwrap();
            0
        },
        resizing: true,
    });
}

#[test]
fn a_killed_server_of_a_differencing_image() {
    kill_again_and_again(Subject {
        what: "differencing",
        image: "child.avhd",
        make: |lab| {
            create_dynamic(lab, "parent.vhd");
            let opened = OpenOptions::new()
                .write(true)
                .ignore_children(true)
                .open(&lab.path("parent.vhd"))
                .unwrap();
            for cell in 0..CELLS {
                opened.disk().write_at(&content(cell, 1), cell * STRIDE).unwrap();
            }
            opened.close().unwrap();
            lab.run(&["create", "child.avhd", "--parent", "parent.vhd"], 0);
            1
        },
        resizing: false,
    });
}

const DYNAMIC: Subject = Subject {
    what: "dynamic",
    image: "disk.vhd",
    make: |lab| {
        create_dynamic(lab, "disk.vhd");
        0
    },
    resizing: false,
};

const FIXED: Subject = Subject {
    what: "fixed",
    image: "disk.vhd",
    make: |lab| {
        lab.fixed("disk.vhd", CELLS * STRIDE);
        0
    },
    resizing: false,
};

/// With blocks of the smallest size: so many more are allocated.
pub(crate) fn create_dynamic(lab: &Lab, name: &str) {
    let size = (CELLS * STRIDE / MIB).to_string() + "M";
    lab.run(&["create", name, "--size", &size, "--block-size", "512K"], 0);
}
