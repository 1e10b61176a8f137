//! Is it a VHD or raw? A fixed VHD has no mark at its start, so a wrong guess would cost a disk its size.

use std::path::Path;

use super::ChainError;
use crate::format::{COOKIE, FOOTER_SIZE, HEADER_SIZE, has_footer_cookie, has_header_cookie};
use crate::image::{Footers, OpenError};
use crate::storage::StorageFile;
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

/// The formats a disk image can have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the disk and nothing else.
    Raw,
    /// A virtual hard disk image.
    Vhd,
}

/// How far before the end of a file a footer is looked for that something was appended to.
const SEARCHED_TAIL: u64 = 64 << 10;

impl ImageFormat {
    /// Tells the format of a file by its content. A file with a footer at either end is a VHD, even a damaged
    /// one, and so is a file with a dynamic header alone: opening it says what is wrong. A file with a footer cookie near its end is not guessed at.
    pub fn detect(file: &dyn StorageFile, path: &Path) -> Result<Self, ChainError> {
        let read = |source| ChainError::Read {
            path: path.to_owned(),
            source,
        };
        match Footers::read(file) {
            Ok(_) | Err(OpenError::Format { .. }) => return Ok(Self::Vhd),
            Err(OpenError::Read { source, .. }) => return Err(read(source)),
            Err(_) => {}
        }
        let file_len = file.len().map_err(read)?;
        if has_header_at_usual_place(file, file_len).map_err(read)? {
            return Ok(Self::Vhd);
        }
        let searched = file_len.min(SEARCHED_TAIL);
        let start = file_len - searched;
        let mut tail = vec![0; usize_from(searched)];
        file.read_exact_at(&mut tail, start).map_err(read)?;
        let found = tail.windows(COOKIE.len()).rposition(has_footer_cookie);
        match found.map(|position| start + u64_from(position)) {
            Some(offset) => {
                let expected = file_len.saturating_sub(SECTOR_SIZE);
                Err(ChainError::Ambiguous {
                    path: path.to_owned(),
                    offset,
                    expected,
                })
            }
            None => Ok(Self::Raw),
        }
    }
}

/// Whether a dynamic header stands where every writer puts it, behind the footer copy.
fn has_header_at_usual_place(file: &dyn StorageFile, file_len: u64) -> std::io::Result<bool> {
    let mut bytes = [0; HEADER_SIZE];
    let offset = u64_from(FOOTER_SIZE);
    if file_len < offset + u64_from(HEADER_SIZE) {
        return Ok(false);
    }
    file.read_exact_at(&mut bytes, offset)?;
    Ok(has_header_cookie(&bytes))
}
