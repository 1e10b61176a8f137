//! What a disk may hold after a crash, sector by sector.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use vhd_core::units::{u64_from, usize_from};

use crate::bytes::{SECTOR, identify};

type Sector = [u8; SECTOR];
static ZERO: LazyLock<Arc<Sector>> = LazyLock::new(|| Arc::new([0; SECTOR]));

/// Something that happened to one sector.
#[derive(Clone, Debug)]
enum Event {
    /// It was written.
    Set(Arc<Sector>),
    /// It was discarded: zero or as before, and the disk need not say which.
    Discard,
}

impl Event {
    /// The contents that are possible after it, where `before` were.
    fn apply(&self, before: &mut Vec<Arc<Sector>>) {
        match self {
            Self::Set(content) => *before = vec![Arc::clone(content)],
            Self::Discard => add(before, &ZERO),
        }
    }

    fn add_to(&self, all: &mut Vec<Arc<Sector>>) {
        match self {
            Self::Set(content) => add(all, content),
            Self::Discard => add(all, &ZERO),
        }
    }
}

fn add(contents: &mut Vec<Arc<Sector>>, content: &Arc<Sector>) {
    if !contents.contains(content) {
        contents.push(Arc::clone(content));
    }
}

/// A sector with more than one possible content.
#[derive(Clone, Debug)]
struct History {
    /// What was flushed: one content, or several after a discard.
    durable: Vec<Arc<Sector>>,
    /// What happened since, each with its number.
    events: Vec<(u64, Event)>,
}

impl History {
    fn allowed_after_crash(&self) -> Vec<Arc<Sector>> {
        let mut all = self.durable.clone();
        self.events.iter().for_each(|(_, event)| event.add_to(&mut all));
        all
    }

    fn allowed_now(&self) -> Vec<Arc<Sector>> {
        let mut now = self.durable.clone();
        self.events.iter().for_each(|(_, event)| event.apply(&mut now));
        now
    }

    fn settle(&mut self, mark: FlushMark) {
        let durable = self.events.iter().take_while(|(number, _)| *number <= mark.0).count();
        for (_, event) in self.events.drain(..durable) {
            event.apply(&mut self.durable);
        }
    }
}

/// A moment in the life of a [`CrashModel`]: what had been written when a flush began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "hand it to `end_flush` when the flush returned"]
pub struct FlushMark(u64);

/// For each 512-byte sector the contents that are allowed after a crash: what was flushed last, and
/// everything that was written since.
///
/// Tell it of a write *before* the disk gets it, for a crash in the middle may leave any sector of it; and of
/// a flush or a FUA write *after* it returned. A write that was under way when a flush began must not be
/// marked durable by it: with several threads, take the mark of [`begin_flush`](Self::begin_flush) only while
/// no write is between the two.
#[derive(Clone, Debug)]
pub struct CrashModel {
    flushed: Vec<u8>,
    /// The sectors whose content `flushed` does not tell.
    open: BTreeMap<u64, History>,
    clock: u64,
}

impl CrashModel {
    /// A disk of zeroes.
    ///
    /// # Panics
    /// When `size` is no multiple of 512.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self::from_bytes(vec![0; usize_from(size)])
    }

    /// A disk that durably holds `bytes`.
    ///
    /// # Panics
    /// When the length is no multiple of 512.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        assert!(bytes.len().is_multiple_of(SECTOR), "a disk is made of whole sectors");
        Self {
            flushed: bytes,
            open: BTreeMap::new(),
            clock: 0,
        }
    }

    /// `data` will be written at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (number, content) in sectors(offset, u64_from(data.len())).zip(data.as_chunks::<SECTOR>().0) {
            self.event(number, Event::Set(Arc::new(*content)));
        }
    }

    /// Zeroes will be written to the range.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) {
        sectors(offset, len).for_each(|number| self.event(number, Event::Set(Arc::clone(&ZERO))));
    }

    /// The range will be discarded: each sector reads zero or as before, also after a flush.
    pub fn discard(&mut self, offset: u64, len: u64) {
        sectors(offset, len).for_each(|number| self.event(number, Event::Discard));
    }

    /// A flush begins: it will make durable what was written up to here.
    pub fn begin_flush(&self) -> FlushMark {
        FlushMark(self.clock)
    }

    /// The flush that began at `mark` has returned.
    pub fn end_flush(&mut self, mark: FlushMark) {
        self.settle(0..u64::MAX, mark);
    }

    /// A flush has returned, and nothing was written since it began.
    pub fn flushed(&mut self) {
        self.end_flush(self.begin_flush());
    }

    /// A FUA write (or FUA zeroes) to the range has returned.
    pub fn durable(&mut self, offset: u64, len: u64) {
        self.settle(sectors(offset, len), self.begin_flush());
    }

    /// Whether a disk that reads `found` after a crash is one that may be.
    ///
    /// # Errors
    /// With the first sector that holds something else.
    pub fn check(&self, found: &[u8]) -> Result<(), Violation> {
        self.compare(found, History::allowed_after_crash)
    }

    /// Whether a disk that reads `found` without a crash, with no write under way, is one that may be.
    ///
    /// # Errors
    /// With the first sector that holds something else.
    pub fn check_now(&self, found: &[u8]) -> Result<(), Violation> {
        self.compare(found, History::allowed_now)
    }

    /// After a crash: what the disk reads now is what it durably holds.
    ///
    /// # Panics
    /// When `found` has another size.
    pub fn adopt(&mut self, found: &[u8]) {
        assert_eq!(found.len(), self.flushed.len(), "the size of the disk changed");
        self.flushed.copy_from_slice(found);
        self.open.clear();
    }

    /// The size of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64_from(self.flushed.len())
    }

    fn event(&mut self, number: u64, event: Event) {
        self.clock += 1;
        let start = usize_from(number) * SECTOR;
        let flushed = &self.flushed[start..start + SECTOR];
        let history = self.open.entry(number).or_insert_with(|| {
            let durable = vec![Arc::new(*flushed.first_chunk().expect("one sector"))];
            History {
                durable,
                events: Vec::new(),
            }
        });
        history.events.push((self.clock, event));
    }

    fn settle(&mut self, numbers: Range<u64>, mark: FlushMark) {
        let mut closed = Vec::new();
        for (&number, history) in self.open.range_mut(numbers) {
            history.settle(mark);
            if let ([content], []) = (&history.durable[..], &history.events[..]) {
                let start = usize_from(number) * SECTOR;
                self.flushed[start..start + SECTOR].copy_from_slice(&content[..]);
                closed.push(number);
            }
        }
        closed.iter().for_each(|number| drop(self.open.remove(number)));
    }

    fn compare(&self, found: &[u8], allowed: impl Fn(&History) -> Vec<Arc<Sector>>) -> Result<(), Violation> {
        if found.len() != self.flushed.len() {
            let (found, wanted) = (u64_from(found.len()), self.size());
            return Err(Violation {
                sector: None,
                found: format!("{found} bytes"),
                allowed: format!("{wanted} bytes"),
            });
        }
        let mut position = 0;
        for (&number, history) in &self.open {
            let start = usize_from(number) * SECTOR;
            self.compare_flushed(found, position..start)?;
            position = start + SECTOR;
            let (content, allowed) = (&found[start..position], allowed(history));
            if allowed.iter().all(|allowed| allowed[..] != *content) {
                return Err(Violation::new(
                    number,
                    content,
                    allowed.iter().map(|allowed| &allowed[..]),
                ));
            }
        }
        self.compare_flushed(found, position..found.len())
    }

    fn compare_flushed(&self, found: &[u8], range: Range<usize>) -> Result<(), Violation> {
        if found[range.clone()] == self.flushed[range.clone()] {
            return Ok(());
        }
        let mut starts = range.step_by(SECTOR);
        let start = starts
            .find(|&at| found[at..at + SECTOR] != self.flushed[at..at + SECTOR])
            .expect("they differ");
        let flushed = std::iter::once(&self.flushed[start..start + SECTOR]);
        Err(Violation::new(
            u64_from(start / SECTOR),
            &found[start..start + SECTOR],
            flushed,
        ))
    }
}

fn sectors(offset: u64, len: u64) -> Range<u64> {
    let sector = u64_from(SECTOR);
    assert!(
        offset.is_multiple_of(sector) && len.is_multiple_of(sector),
        "{offset:#x}+{len:#x} are no whole sectors"
    );
    offset / sector..(offset + len) / sector
}

/// A sector that holds what no crash can leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The number of the sector; `None` when the size of the disk is wrong.
    pub sector: Option<u64>,
    /// What it holds.
    pub found: String,
    /// What it may hold.
    pub allowed: String,
}

impl Violation {
    fn new<'a>(sector: u64, found: &[u8], allowed: impl Iterator<Item = &'a [u8]>) -> Self {
        let allowed: Vec<String> = allowed.map(|content| identify(content).to_string()).collect();
        Self {
            sector: Some(sector),
            found: identify(found).to_string(),
            allowed: allowed.join(" | "),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sector {
            Some(sector) => write!(f, "sector {sector} (offset {:#x}) holds ", sector * u64_from(SECTOR))?,
            None => write!(f, "the disk has ")?,
        }
        write!(f, "{}, allowed: {}", self.found, self.allowed)
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::pattern;

    const SIZE: usize = 4 * SECTOR;

    fn disk(generation: u64) -> Vec<u8> {
        pattern(0, SIZE, generation)
    }

    #[test]
    fn old_and_new_are_allowed_until_a_flush_and_new_after_it() {
        let mut model = CrashModel::from_bytes(disk(1));
        model.write(0, &disk(2)[..1024]);
        let mut torn = disk(1);
        torn[512..1024].copy_from_slice(&disk(2)[512..1024]);
        for allowed in [&disk(1), &torn] {
            model.check(allowed).unwrap();
        }
        assert_eq!(model.check(&disk(2)).unwrap_err().sector, Some(2));
        assert!(model.check_now(&torn).is_err());
        model.flushed();
        assert_eq!(model.check(&torn).unwrap_err().sector, Some(0));
        torn[..512].copy_from_slice(&disk(2)[..512]);
        model.check(&torn).unwrap();
    }

    #[test]
    fn a_write_after_the_beginning_of_a_flush_is_not_durable() {
        let mut model = CrashModel::from_bytes(disk(1));
        model.write(0, &disk(2));
        let mark = model.begin_flush();
        model.write(0, &disk(3));
        model.end_flush(mark);
        model.check(&disk(2)).unwrap();
        model.check(&disk(3)).unwrap();
        assert!(model.check(&disk(1)).is_err());
        model.durable(0, 2048);
        assert!(model.check(&disk(2)).is_err());
    }

    #[test]
    fn a_discard_stays_open_until_the_next_write() {
        let mut model = CrashModel::from_bytes(disk(1));
        model.discard(0, 512);
        model.flushed();
        let mut zeroed = disk(1);
        zeroed[..512].fill(0);
        model.check(&zeroed).unwrap();
        model.check_now(&disk(1)).unwrap();
        model.write(0, &disk(2)[..512]);
        model.flushed();
        assert!(model.check(&zeroed).is_err() && model.check(&disk(1)).is_err());
        model.write_zeroes(0, 512);
        assert!(model.check_now(&disk(1)).is_err());
        model.check(&zeroed).unwrap();
        model.adopt(&disk(7));
        model.check(&disk(7)).unwrap();
        assert!(model.check(&zeroed[..512]).is_err());
    }
}
