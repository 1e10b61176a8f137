//! The end of the file: where space for blocks ends, and where the footer goes.

use super::basis::{Basis, SEARCH, resembles};
use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::finding::{Certainty, RepairCode};
use crate::format::{FOOTER_SIZE, Footer, LEGACY_FOOTER_SIZE, has_footer_cookie, reseal_footer};
use crate::storage::{StorageFile as _, is_zero};
use crate::units::{u64_from, usize_from};

/// The place of the footer at the end of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// A valid footer begins here.
    Valid(u64),
    /// What is left of a footer begins here.
    Damaged(u64),
    /// The last sector is zero.
    Zero(u64),
    /// There is something else.
    None,
}

impl Tail {
    pub(super) fn of(draft: &Draft) -> Result<Self, RepairError> {
        let len = draft.len()?;
        if draft.tail_is_content && len == draft.original_len {
            return Ok(Self::None);
        }
        let (Some(at), true) = (len.checked_sub(u64_from(FOOTER_SIZE)), len.is_multiple_of(512)) else {
            return Self::legacy(draft, len);
        };
        let bytes = draft.structure::<FOOTER_SIZE>(at)?.unwrap_or([0; FOOTER_SIZE]);
        let resealed = reseal_footer(&bytes);
        let damaged = has_footer_cookie(&bytes) || resembles(&bytes, &resealed) && Footer::decode(&resealed).is_ok();
        Ok(match () {
            () if Footer::decode(&bytes).is_ok() => Self::Valid(at),
            () if is_zero(&bytes) => Self::Zero(at),
            () if damaged => Self::Damaged(at),
            () => Self::None,
        })
    }

    /// A file whose length is no multiple of a sector: one of the old kind, or not of whole sectors throughout.
    fn legacy(draft: &Draft, len: u64) -> Result<Self, RepairError> {
        for size in [FOOTER_SIZE, LEGACY_FOOTER_SIZE] {
            if let Some(at) = len.checked_sub(u64_from(size))
                && Footer::decode(&draft.read(at, u64_from(size))?).is_ok()
            {
                return Ok(Self::Valid(at));
            }
        }
        Ok(Self::None)
    }

    /// Where space for blocks ends.
    pub(super) fn space_end(self, file_len: u64) -> u64 {
        match self {
            Self::Valid(at) | Self::Damaged(at) => at,
            Self::Zero(_) | Self::None => file_len,
        }
    }

    fn place(self) -> Option<u64> {
        match self {
            Self::Valid(at) | Self::Damaged(at) | Self::Zero(at) => Some(at),
            Self::None => None,
        }
    }
}

/// Puts the footer of a fixed image directly behind its disk of `size` bytes: some programs count from the footer.
/// What is behind it is cut off, unless that is more than a copying tool adds.
pub(super) fn settle_fixed(draft: &mut Draft, basis: &Basis, size: u64) -> Result<(), RepairError> {
    let len = draft.len()?;
    let end = size + u64_from(FOOTER_SIZE);
    if len > end + SEARCH {
        return settle(draft, basis, size);
    }
    if draft.write(size, &basis.raw)? {
        let message = "the footer is written behind the disk".to_owned();
        draft.found(RepairCode::FooterWritten, Certainty::Certain, Some(size), message);
    }
    if len > end {
        let message = format!(
            "{} bytes behind the footer are cut off; the undo file keeps them",
            len - end
        );
        draft.found(RepairCode::BytesCut, Certainty::Certain, Some(end), message);
        draft.overlay.set_len(end).doing("shorten the file", end)?;
    }
    Ok(())
}

/// Puts the footer at the end of the file, behind `needed_end`, and the copy at its start.
pub(super) fn settle(draft: &mut Draft, basis: &Basis, needed_end: u64) -> Result<(), RepairError> {
    let (tail, len) = (Tail::of(draft)?, draft.len()?);
    let place = match tail.place().filter(|at| *at >= needed_end) {
        Some(at) => at,
        None => len.max(needed_end).next_multiple_of(512),
    };
    let retired = match tail {
        Tail::Valid(at) | Tail::Damaged(at) if at != place => Some(at),
        _ => None,
    };
    if let Some(at) = retired {
        draft.write(at, &vec![0; usize_from(len - at)])?;
    }
    // A footer of the old kind lacks a reserved byte; what is there of it stays.
    let is_legacy = place + u64_from(LEGACY_FOOTER_SIZE) == len;
    let size = if is_legacy { LEGACY_FOOTER_SIZE } else { FOOTER_SIZE };
    if draft.write(place, &basis.raw[..size])? {
        let message = "the footer is written at the end of the file".to_owned();
        draft.found(RepairCode::FooterWritten, Certainty::Certain, Some(place), message);
    }
    if basis.footer.disk_type.is_sparse() && draft.write(0, &basis.raw)? {
        let message = "the footer copy is written at the start of the file".to_owned();
        draft.found(RepairCode::FooterCopyWritten, Certainty::Certain, Some(0), message);
    }
    Ok(())
}
