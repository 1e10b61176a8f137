//! A file seen with changes that it does not have.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Segment, StorageFile, transfer};
use crate::units::{u64_from, usize_from};

/// The longest file, as on the host.
const MAX_LEN: u64 = i64::MAX.unsigned_abs();

/// A copy-on-write view of a file: what is written to it stays in memory, and the file below is only read.
///
/// Memory is taken for the bytes that are written, whatever the file's length; zeroes and
/// [copies](OverlayFile::copy_from_base) take none. [`changes`](OverlayFile::changes) lists where the view and the
/// file differ. [`StorageFile::sync`] does nothing, and ranges are never shared. The file below must not change.
pub struct OverlayFile {
    base: Arc<dyn StorageFile>,
    content: RwLock<Content>,
}

/// Where the bytes of a changed range of an [`OverlayFile`] come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverlaySource {
    /// They were written.
    Bytes(Vec<u8>),
    /// They read zero.
    Zero,
    /// They stand in the file below, beginning at this offset in bytes.
    Base(u64),
}

/// A range that reads otherwise than in the file below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayChange {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// What it holds.
    pub source: OverlaySource,
}

/// Pieces by where they start. They follow one another without a gap from 0 to the length.
#[derive(Default)]
struct Content {
    pieces: BTreeMap<u64, Piece>,
    len: u64,
}

#[derive(Clone)]
struct Piece {
    end: u64,
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// The file below, from this offset.
    Base(u64),
    /// Written bytes, from this index.
    Bytes(Arc<[u8]>, usize),
    Zero,
}

impl Source {
    /// The source of the bytes `skip` further on.
    fn later(&self, skip: u64) -> Self {
        match self {
            Self::Base(offset) => Self::Base(offset + skip),
            Self::Bytes(bytes, index) => Self::Bytes(Arc::clone(bytes), index + usize_from(skip)),
            Self::Zero => Self::Zero,
        }
    }
}

impl OverlayFile {
    /// A view of `base` as it is.
    ///
    /// # Errors
    /// The length of `base` can't be had.
    pub fn new(base: Arc<dyn StorageFile>) -> io::Result<Self> {
        let len = base.len()?;
        let mut content = Content::default();
        content.replace(0, len, Source::Base(0));
        Ok(Self {
            base,
            content: RwLock::new(content),
        })
    }

    /// The file below.
    #[must_use]
    pub fn base(&self) -> &Arc<dyn StorageFile> {
        &self.base
    }

    /// Shows `len` bytes of the file below, from `base_offset`, at `offset` too. The view grows where needed.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file below ends before the range does, `FileTooLarge`.
    pub fn copy_from_base(&self, offset: u64, base_offset: u64, len: u64) -> io::Result<()> {
        checked_end(offset, len)?;
        if checked_end(base_offset, len)? > self.base.len()? {
            return Err(transfer::end_of_file());
        }
        self.write_guard().put(offset, len, Source::Base(base_offset));
        Ok(())
    }

    /// Where the view differs from the file below (bytes that were written over equal ones included), in the order
    /// of the file. What the view is shorter by is not listed.
    #[must_use]
    pub fn changes(&self) -> Vec<OverlayChange> {
        let content = self.read_guard();
        let mut changes: Vec<OverlayChange> = Vec::new();
        for (&offset, piece) in &content.pieces {
            let len = piece.end - offset;
            let source = match &piece.source {
                Source::Base(base) if *base == offset => continue,
                Source::Base(base) => OverlaySource::Base(*base),
                Source::Zero => OverlaySource::Zero,
                Source::Bytes(bytes, index) => OverlaySource::Bytes(bytes[*index..*index + usize_from(len)].to_vec()),
            };
            changes.push(OverlayChange { offset, len, source });
        }
        changes
    }

    // A panic inside leaves pieces that are whole: none is changed half.
    fn read_guard(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_guard(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, content: &Content, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = offset
            .checked_add(u64_from(buf.len()))
            .filter(|end| *end <= content.len);
        let end = end.ok_or_else(transfer::end_of_file)?;
        let mut rest = buf;
        for (start, piece) in content.pieces_of(offset, end) {
            let (from, to) = (start.max(offset), piece.end.min(end));
            let (part, others) = rest.split_at_mut(usize_from(to - from));
            match piece.source.later(from - start) {
                Source::Base(base) => self.base.read_exact_at(part, base)?,
                Source::Bytes(bytes, index) => part.copy_from_slice(&bytes[index..index + part.len()]),
                Source::Zero => part.fill(0),
            }
            rest = others;
        }
        Ok(())
    }
}

impl Content {
    /// The pieces that have bytes of a range, in order.
    fn pieces_of(&self, offset: u64, end: u64) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self
            .pieces
            .range(..=offset)
            .next_back()
            .map_or(offset, |(start, _)| *start);
        self.pieces.range(first..end).map(|(start, piece)| (*start, piece))
    }

    /// Makes a piece start at `at`, unless that is outside the file.
    fn split(&mut self, at: u64) {
        if let Some((&start, piece)) = self.pieces.range_mut(..at).next_back()
            && piece.end > at
        {
            let later = Piece {
                end: piece.end,
                source: piece.source.later(at - start),
            };
            piece.end = at;
            self.pieces.insert(at, later);
        }
    }

    /// Gives a range, which begins inside the file or at its end, another source.
    fn replace(&mut self, start: u64, end: u64, source: Source) {
        if start >= end {
            return;
        }
        self.split(start);
        self.split(end);
        let inside: Vec<u64> = self.pieces.range(start..end).map(|(start, _)| *start).collect();
        for piece in inside {
            self.pieces.remove(&piece);
        }
        self.pieces.insert(start, Piece { end, source });
        self.len = self.len.max(end);
    }

    /// Gives a range anywhere another source; a gap before it reads zero.
    fn put(&mut self, offset: u64, len: u64, source: Source) {
        if len > 0 {
            self.replace(self.len, offset, Source::Zero);
            self.replace(offset, offset + len, source);
        }
    }
}

/// The end of a range, or `FileTooLarge`.
fn checked_end(offset: u64, len: u64) -> io::Result<u64> {
    let end = offset.checked_add(len).filter(|end| *end <= MAX_LEN);
    end.ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

impl fmt::Debug for OverlayFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = self.read_guard();
        let (len, pieces) = (content.len, content.pieces.len());
        write!(f, "OverlayFile({len} bytes in {pieces} pieces over {:?})", self.base)
    }
}

impl StorageFile for OverlayFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(&self.read_guard(), buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> io::Result<()> {
        let content = self.read_guard();
        for buf in bufs {
            self.read(&content, buf, offset)?;
            offset += u64_from(buf.len());
        }
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_vectored_at(&[IoSlice::new(buf)], offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let len = u64_from(bytes.len());
        checked_end(offset, len)?;
        self.write_guard().put(offset, len, Source::Bytes(bytes.into(), 0));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.read_guard().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        checked_end(len, 0)?;
        let mut content = self.write_guard();
        let old_len = content.len;
        content.replace(old_len, len, Source::Zero);
        content.split(len);
        content.pieces.split_off(&len);
        content.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = checked_end(offset, len)?;
        let mut content = self.write_guard();
        let end = end.min(content.len);
        content.replace(offset, end, Source::Zero);
        Ok(())
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.punch_hole(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = checked_end(offset, len)?;
        if len > 0 {
            let mut content = self.write_guard();
            let old_len = content.len;
            content.replace(old_len, end, Source::Zero);
        }
        Ok(())
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        let content = self.read_guard();
        if offset >= content.len {
            return Ok((Segment::Hole, offset));
        }
        let Some((start, piece)) = content.pieces_of(offset, offset + 1).next() else {
            return Ok((Segment::Hole, content.len));
        };
        match piece.source.later(offset - start) {
            Source::Zero => Ok((Segment::Hole, piece.end)),
            Source::Bytes(..) => Ok((Segment::Data, piece.end)),
            Source::Base(base) => {
                let (segment, end) = self.base.segment_at(base)?;
                Ok((segment, piece.end.min(offset + (end - base).max(1))))
            }
        }
    }

    fn share_range_from(&self, _: &dyn StorageFile, _: u64, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryFile;
    use proptest::prelude::*;

    fn overlay(bytes: &[u8]) -> OverlayFile {
        OverlayFile::new(Arc::new(MemoryFile::from_bytes(bytes.to_vec()))).unwrap()
    }

    fn all(file: &dyn StorageFile) -> Vec<u8> {
        let mut bytes = vec![0; usize_from(file.len().unwrap())];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Zero(u64, u64),
        Len(u64),
        Allocate(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3000_u64, prop::collection::vec(any::<u8>(), 0..700)).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            (0..3000_u64, 0..900_u64).prop_map(|(at, len)| Step::Zero(at, len)),
            (0..3000_u64).prop_map(Step::Len),
            (0..3000_u64, 0..900_u64).prop_map(|(at, len)| Step::Allocate(at, len)),
        ]
    }

    fn apply(file: &dyn StorageFile, step: &Step) {
        match step {
            Step::Write(at, bytes) => file.write_all_at(bytes, *at),
            Step::Zero(at, len) => file.punch_hole(*at, *len),
            Step::Len(len) => file.set_len(*len),
            Step::Allocate(at, len) => file.allocate(*at, *len),
        }
        .unwrap();
    }

    proptest! {
        /// It reads like a file that was changed, and the file below is not.
        #[test]
        fn it_is_a_file_like_any_other(steps in prop::collection::vec(step(), 0..40)) {
            let bytes: Vec<u8> = (0..2000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (view, model) = (overlay(&bytes), MemoryFile::from_bytes(bytes.clone()));
            for step in &steps {
                apply(&view, step);
                apply(&model, step);
                prop_assert_eq!(all(&view), model.to_vec());
                let mut at = 0;
                while at < view.len().unwrap() {
                    let (segment, end) = view.segment_at(at).unwrap();
                    prop_assert!(end > at);
                    if segment == Segment::Hole {
                        prop_assert!(model.to_vec()[usize_from(at)..usize_from(end)].iter().all(|&byte| byte == 0));
                    }
                    at = end;
                }
                prop_assert_eq!(at, view.len().unwrap());
            }
            prop_assert_eq!(all(&**view.base()), bytes.clone());
            // The list of changes is the whole difference.
            let rebuilt = MemoryFile::from_bytes(bytes.clone());
            rebuilt.set_len(view.len().unwrap()).unwrap();
            for change in view.changes() {
                let new = match change.source {
                    OverlaySource::Bytes(new) => new,
                    OverlaySource::Zero => vec![0; usize_from(change.len)],
                    OverlaySource::Base(_) => unreachable!("nothing was copied"),
                };
                rebuilt.write_all_at(&new, change.offset).unwrap();
            }
            prop_assert_eq!(rebuilt.to_vec(), model.to_vec());
        }
    }

    #[test]
    fn copies_take_no_memory_and_stay_inside_the_file() {
        let view = overlay(b"0123456789");
        view.copy_from_base(12, 2, 4).unwrap();
        assert_eq!(all(&view), b"0123456789\0\x002345");
        view.write_all_at(b"x", 13).unwrap();
        assert_eq!(all(&view), b"0123456789\0\x002x45");
        let change = |offset, len, source| OverlayChange { offset, len, source };
        let expected = [
            change(10, 2, OverlaySource::Zero),
            change(12, 1, OverlaySource::Base(2)),
            change(13, 1, OverlaySource::Bytes(b"x".to_vec())),
            change(14, 2, OverlaySource::Base(4)),
        ];
        assert_eq!(view.changes(), expected);
        let past = view.copy_from_base(0, 8, 3).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(
            view.read_exact_at(&mut [0; 2], 15).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert!(view.write_all_at(&[1], u64::MAX).is_err());
    }
}
