//! Where two buffers differ, in sectors.

use std::ops::Range;

use crate::units::{SECTOR_SIZE, usize_from};

/// The maximal runs of sectors that differ.
pub(super) fn differing_runs(old: &[u8], new: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    if old == new {
        return runs;
    }
    let sector = usize_from(SECTOR_SIZE);
    for (index, (a, b)) in old.chunks(sector).zip(new.chunks(sector)).enumerate() {
        let at = index * sector;
        match runs.last_mut() {
            _ if a == b => {}
            Some(last) if last.end == at => last.end += a.len(),
            _ => runs.push(at..at + a.len()),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_sectors() {
        let old = vec![0; 5 * 512];
        let mut new = old.clone();
        assert!(differing_runs(&old, &new).is_empty());
        for byte in [1, 513, 2559] {
            new[byte] = 1;
        }
        assert_eq!(differing_runs(&old, &new), [0..1024, 2048..2560]);
    }
}
