//! A file with changes that stay in memory: what replaying the log would write.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::sync::Arc;

use vhd_block::units::{u64_from, usize_from};

use crate::{ImageFile, Segment};

/// The grid of the log.
pub(super) const SECTOR: usize = 4096;

/// What a range of the file reads instead.
#[derive(Clone)]
enum Patch {
    Zero,
    /// One sector.
    Data(Arc<[u8; SECTOR]>),
}

/// Ranges that do not overlap, by their starts.
#[derive(Default)]
pub(super) struct Patches {
    ranges: BTreeMap<u64, (u64, Patch)>,
}

impl Patches {
    pub(super) fn sector(&mut self, offset: u64, data: Arc<[u8; SECTOR]>) {
        self.insert(offset, offset + u64_from(SECTOR), Patch::Data(data));
    }

    /// Zeroes of whole sectors.
    pub(super) fn zeroes(&mut self, offset: u64, len: u64) {
        self.insert(offset, offset + len, Patch::Zero);
    }

    /// The later change wins. All ends are multiples of a sector, so that data is never split.
    fn insert(&mut self, start: u64, end: u64, patch: Patch) {
        if start >= end {
            return;
        }
        if let Some((&from, (to, old))) = self.ranges.range(..start).next_back()
            && *to > start
        {
            let (to, old) = (*to, old.clone());
            self.ranges.insert(from, (start, old.clone()));
            if to > end {
                self.ranges.insert(end, (to, old));
            }
        }
        while let Some((&from, (to, old))) = self.ranges.range(start..end).next() {
            let (to, old) = (*to, old.clone());
            self.ranges.remove(&from);
            if to > end {
                self.ranges.insert(end, (to, old));
            }
        }
        self.ranges.insert(start, (end, patch));
    }

    /// The changes in a range: where each begins and ends in it, and what it is.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, u64, &Patch)> {
        let before = self.ranges.range(..start).next_back();
        let before = before.filter(|(_, (to, _))| *to > start);
        before
            .into_iter()
            .chain(self.ranges.range(start..end))
            .map(move |(&from, (to, patch))| (from.max(start), (*to).min(end), from, patch))
    }
}

/// A file with the changes of its log.
pub(super) struct PatchedFile {
    file: Arc<dyn ImageFile>,
    patches: Patches,
    /// Bytes in the file as it is.
    file_len: u64,
    /// Bytes with what the log adds.
    len: u64,
}

impl PatchedFile {
    pub(super) fn new(file: Arc<dyn ImageFile>, patches: Patches, file_len: u64, len: u64) -> Self {
        Self {
            file,
            patches,
            file_len,
            len,
        }
    }

    /// Whether a range reads as the file has it; if not, how many of its bytes from the start on are alike.
    pub(super) fn untouched(&self, offset: u64, len: u64) -> (bool, u64) {
        if self.patches.ranges.is_empty() && offset.saturating_add(len) <= self.file_len {
            return (true, len);
        }
        let end = offset + len;
        match self.patches.within(offset, end).next() {
            Some((from, to, ..)) if from == offset => (false, to - offset),
            Some((from, ..)) if offset < self.file_len => (true, from.min(self.file_len) - offset),
            None if offset < self.file_len => (true, end.min(self.file_len) - offset),
            Some((from, ..)) => (false, from - offset),
            None => (false, len),
        }
    }
}

impl ImageFile for PatchedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(u64_from(buf.len()));
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let stored = usize_from(end.min(self.file_len).saturating_sub(offset));
        let (from_file, behind) = buf.split_at_mut(stored);
        if !from_file.is_empty() {
            self.file.read_exact_at(from_file, offset)?;
        }
        behind.fill(0);
        for (from, to, patch_start, patch) in self.patches.within(offset, end) {
            let part = &mut buf[usize_from(from - offset)..usize_from(to - offset)];
            match patch {
                Patch::Zero => part.fill(0),
                Patch::Data(data) => {
                    part.copy_from_slice(&data[usize_from(from - patch_start)..usize_from(to - patch_start)]);
                }
            }
        }
        Ok(())
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        let len = vhd_block::scatter::total_len(bufs.iter().map(|buf| &**buf));
        if self.untouched(offset, len) == (true, len) {
            return self.file.read_exact_vectored_at(bufs, offset);
        }
        let mut at = offset;
        for buf in bufs {
            self.read_exact_at(buf, at)?;
            at += u64_from(buf.len());
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        self.file.segment_at(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random changes, against a file that they were written to.
    #[test]
    fn changes_read_like_a_file_that_was_written() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let sectors = rng.usize(1..20);
            let stored = rng.usize(0..=sectors) * SECTOR;
            let content: Vec<u8> = (0..stored).map(|_| rng.u8(1..)).collect();
            let mut model = content.clone();
            model.resize(sectors * SECTOR, 0);
            let mut patches = Patches::default();
            for change in 0..rng.u8(0..8) {
                let at = rng.usize(0..sectors);
                if rng.bool() {
                    patches.sector(u64_from(at * SECTOR), Arc::new([change + 100; SECTOR]));
                    model[at * SECTOR..][..SECTOR].fill(change + 100);
                } else {
                    let end = rng.usize(at..=sectors);
                    patches.zeroes(u64_from(at * SECTOR), u64_from((end - at) * SECTOR));
                    model[at * SECTOR..end * SECTOR].fill(0);
                }
            }
            let len = u64_from(model.len());
            let file = PatchedFile::new(Arc::new(content.clone()), patches, u64_from(stored), len);
            for _ in 0..20 {
                let start = rng.usize(0..model.len());
                let end = rng.usize(start + 1..=model.len());
                let mut read = vec![0xEE; end - start];
                file.read_exact_at(&mut read, u64_from(start)).unwrap();
                assert!(read == model[start..end]);
                let (same, known) = file.untouched(u64_from(start), u64_from(end - start));
                assert!(known > 0 && known <= u64_from(end - start));
                if same {
                    let known = usize_from(known);
                    assert!(content[start..start + known] == model[start..start + known]);
                }
            }
            assert!(file.read_exact_at(&mut [0; 2], len - 1).is_err());
        }
    }
}
