//! What is done with each damaged image.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::common::disk::{assert_same, parent_layer, read_all};
use crate::mutations::{Expected, Mutation, Subject};
use vhd_core::ErrorKind;
use vhd_core::check::{FindingCode, check};
use vhd_core::device::{ByteRange, DeviceError, Disk, Layer, LayeredDevice, ZeroOptions};
use vhd_core::image::{Image, OpenError, OpenMode};
use vhd_core::storage::MemoryFile;
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::RecordingFile;

/// Disks up to this size are read whole.
const SMALL: u64 = 256 << 10;
/// Bytes that are read or written at each place of a larger one; no multiple of a sector.
const PROBE: usize = 700;
/// Operations on the file that no small image needs, whatever is wrong with it.
const MOST_OPERATIONS: usize = 5000;
/// A single image takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) enum Outcome {
    Opened,
    Refused,
}

/// Does everything to an image.
pub(crate) fn exercise(subject: &Subject, bytes: &[u8], expected: Expected) -> Outcome {
    let content = match read(subject, bytes) {
        Ok(content) => content,
        Err(error) => {
            assert_refusal(&error);
            assert_ne!(expected, Expected::AsBefore, "{error:?}");
            let writable = open(bytes, &OpenMode::read_write());
            assert_refusal(&writable.expect_err("refused for reading, but not for writing"));
            return Outcome::Refused;
        }
    };
    assert_ne!(expected, Expected::Refused, "the damage was not noticed");
    if expected != Expected::Anything {
        let content = content.as_ref().expect("a disk of the old size");
        assert_same(content, &subject.content, "content");
    }
    write(subject, bytes, content);
    Outcome::Opened
}

/// Memory never fails to be read: whatever is wrong is wrong with the image.
fn assert_refusal(error: &OpenError) {
    assert_ne!(error.kind(), ErrorKind::Io, "{error:?}");
    assert!(!error.to_string().is_empty());
}

/// An image and the file it is in.
type Opened = (Image, Arc<RecordingFile<MemoryFile>>);

fn open(bytes: &[u8], mode: &OpenMode) -> Result<Opened, OpenError> {
    let file = Arc::new(RecordingFile::new(MemoryFile::from_bytes(bytes.to_vec())));
    let image = Image::open(Arc::clone(&file) as _, mode)?;
    Ok((image, file))
}

fn device(subject: &Subject, image: Image) -> Arc<LayeredDevice> {
    // A mutation may have made a child of an image that needs no parent: it gets one without a byte.
    let parent = image.is_differencing().then(|| match &subject.parent {
        Some(parent) => parent_layer(parent.clone()),
        None => Layer::raw(Arc::new(MemoryFile::new())).expect("memory has a length"),
    });
    Arc::new(LayeredDevice::new(image, parent.into_iter().collect()))
}

fn assert_few_operations(file: &RecordingFile<MemoryFile>) {
    let count = file.recorder().operations().len();
    assert!(count < MOST_OPERATIONS, "{count} operations on the file");
}

/// Opens the image for reading, reads it and asks for its extents; a small disk's content is returned.
fn read(subject: &Subject, bytes: &[u8]) -> Result<Option<Vec<u8>>, OpenError> {
    let opened = open(bytes, &OpenMode::read_only());
    assert_checker_agrees(bytes, opened.as_ref().map(drop));
    let (image, file) = opened?;
    image.parent_paths().expect("memory can be read");
    let disk = Disk::new(device(subject, image));
    let content = (disk.size() <= SMALL).then(|| read_all(&disk));
    for place in places(&disk) {
        probe(&disk, place);
    }
    assert_extents(&disk);
    assert_few_operations(&file);
    Ok(content)
}

/// The checker finds a broken rule exactly if the image can't be opened.
fn assert_checker_agrees(bytes: &[u8], opened: Result<(), &OpenError>) {
    let report = check(&MemoryFile::from_bytes(bytes.to_vec())).expect("memory can be read");
    let broken = report
        .findings
        .iter()
        .find(|finding| matches!(finding.code, FindingCode::Broken(_)));
    assert_eq!(broken.is_some(), opened.is_err(), "{opened:?}, {report:?}");
}

/// Where a disk is probed: at both ends and in the middle.
fn places(disk: &Disk) -> [u64; 3] {
    let last = disk.size().saturating_sub(u64_from(PROBE));
    [0, last / 2, last]
}

fn probe(disk: &Disk, place: u64) -> Vec<u8> {
    let mut buffer = vec![0x5A; PROBE.min(usize_from(disk.size()))];
    disk.read_at(&mut buffer, place).expect("what opens can be read");
    buffer
}

/// The extents follow one another from the first byte to the last.
fn assert_extents(disk: &Disk) {
    let (mut next, mut count) = (0, 0);
    let visited = disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        assert!(
            extent.range.start == next && extent.range.len > 0,
            "{extent:?} at {next:#x}"
        );
        next = extent.range.end();
        count += 1;
        ControlFlow::Continue(())
    });
    visited.expect("what opens has extents");
    assert_eq!(next, disk.size());
    assert!(count < MOST_OPERATIONS, "{count} extents");
}

/// Opens the image for writing, writes to it and closes it; what was written is there when it is opened again, and
/// so is everything else.
fn write(subject: &Subject, bytes: &[u8], content: Option<Vec<u8>>) {
    let (image, file) = open(bytes, &OpenMode::read_write()).expect("opened for reading");
    let device = device(subject, image);
    let disk = Disk::new(Arc::clone(&device) as _);
    let mut model = Model {
        content,
        probes: Vec::new(),
    };
    for (number, place) in (1..).zip(places(&disk)) {
        let buffer = vec![number; PROBE.min(usize_from(disk.size()))];
        // Only where space for blocks would begin out of reach; nothing may be changed then.
        match disk.write_at(&buffer, place) {
            Err(DeviceError::ImageFull { .. }) => {}
            written => {
                written.expect("what opens can be written");
                model.write(place, buffer);
            }
        }
    }
    let sector = ByteRange::new(disk.size() / 1024 * 512, 512);
    if sector.end() <= disk.size() && model.content.is_some() {
        match disk.write_zeroes(sector, ZeroOptions::default()) {
            Err(DeviceError::ImageFull { .. }) => {}
            zeroed => {
                zeroed.expect("what opens can be written");
                model.write(sector.start, vec![0; 512]);
            }
        }
    }
    disk.flush().expect("memory can be written");
    model.assert_in(&disk, "while open");
    drop(disk);
    Arc::into_inner(device)
        .expect("the only handle")
        .close()
        .expect("memory can be written");
    assert_few_operations(&file);

    let again = Image::open(Arc::clone(&file) as _, &OpenMode::read_only());
    let image = again.expect("what was written to can be opened again");
    assert_eq!(
        image.footers().tail_error,
        None,
        "a file that was closed ends in a footer"
    );
    model.assert_in(&Disk::new(self::device(subject, image)), "opened again");
}

/// What a disk must read: all of a small one, what was written to a large one.
struct Model {
    content: Option<Vec<u8>>,
    probes: Vec<(u64, Vec<u8>)>,
}

impl Model {
    fn write(&mut self, place: u64, bytes: Vec<u8>) {
        if let Some(content) = &mut self.content {
            content[usize_from(place)..][..bytes.len()].copy_from_slice(&bytes);
        }
        self.probes.push((place, bytes));
    }

    fn assert_in(&self, disk: &Disk, what: &str) {
        match &self.content {
            Some(content) => assert_same(&read_all(disk), content, what),
            None => {
                for (place, bytes) in &self.probes {
                    assert_same(&probe(disk, *place), bytes, what);
                }
            }
        }
    }
}

/// Ends the process if one image takes for ever, and says which.
pub(crate) struct Watchdog {
    current: Arc<Mutex<Option<(Mutation, Instant)>>>,
}

impl Watchdog {
    pub(crate) fn start() -> Self {
        let current: Arc<Mutex<Option<(Mutation, Instant)>>> = Arc::default();
        let watched = Arc::downgrade(&current);
        std::thread::spawn(move || {
            while let Some(current) = watched.upgrade() {
                let state = *current.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((mutation, begun)) = state
                    && begun.elapsed() > PATIENCE
                {
                    eprintln!("{mutation:x?} does not end");
                    std::process::abort();
                }
                drop(current);
                std::thread::sleep(PATIENCE / 100);
            }
        });
        Self { current }
    }

    pub(crate) fn begin(&self, mutation: Mutation) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((mutation, Instant::now()));
    }
}
