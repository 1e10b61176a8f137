//! What a file says of its parent, without opening it as an image: most files of a directory are none.
//!
//! A differencing image has a footer at its end, a copy of it at its start and, behind that, the header with the parent's
//! identity. One that is damaged in part is a child all the same: whoever repairs it needs its parent as it was.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc;

use crate::format::{
    DiskType, DynamicHeader, FOOTER_SIZE, Footer, HEADER_SIZE, LEGACY_FOOTER_SIZE, UniqueId, has_footer_cookie,
    has_header_cookie, named_parent, reseal_footer,
};
use crate::image::{Image, OpenMode};
use crate::storage::{Access, HostFile, Sharing};
use crate::units::u64_from;

/// Bytes of the shortest file that has a header.
pub(super) const MIN_BYTES: u64 = (FOOTER_SIZE + HEADER_SIZE) as u64;

/// Where every writer puts the header.
const USUAL_HEADER: u64 = FOOTER_SIZE as u64;

/// What a file says of its parent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It has none.
    NoChild,
    /// A differencing image over one of these. If it is not `sound` the identity may be damaged.
    Child { ids: Vec<UniqueId>, sound: bool },
    /// A differencing image whose header is lost.
    Unclear,
}

/// Reads it. A pipe that has come in the place of the file does not block.
pub(super) fn read(path: &Path) -> io::Result<Claim> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() < MIN_BYTES {
        return Ok(Claim::NoChild);
    }
    match Marks::read(&file, metadata.len()) {
        // Somebody cut it off meanwhile.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Claim::Unclear),
        marks => Ok(marks?.claim()),
    }
}

/// Whether the image at `path` holds nothing of its own.
pub(super) fn is_empty(path: &Path) -> bool {
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Unlocked).ok();
    let image = file.and_then(|file| Image::open(std::sync::Arc::new(file), &OpenMode::ancestor()).ok());
    image.is_some_and(|image| image.is_differencing() && image.allocated_bytes() == 0)
}

/// The structures that tell a child.
struct Marks {
    /// Those with a cookie, as they are, and whether they are sound; the one at the end first.
    footers: Vec<([u8; FOOTER_SIZE], bool)>,
    headers: Vec<[u8; HEADER_SIZE]>,
}

impl Marks {
    fn read(file: &File, len: u64) -> io::Result<Self> {
        let mut head = [0; FOOTER_SIZE + HEADER_SIZE];
        file.read_exact_at(&mut head, 0)?;
        let mut tail = [0; FOOTER_SIZE];
        file.read_exact_at(&mut tail, len - u64_from(FOOTER_SIZE))?;
        let mut marks = Self {
            footers: Vec::new(),
            headers: Vec::new(),
        };
        // The one at the end first: where it is sound, the copy does not count.
        marks.add_footer(&tail);
        marks.add_footer(&tail[FOOTER_SIZE - LEGACY_FOOTER_SIZE..]);
        marks.add_footer(&head[..FOOTER_SIZE]);
        let header = &head[FOOTER_SIZE..];
        if !marks.footers.is_empty() || has_header_cookie(header) {
            let header: Option<[u8; HEADER_SIZE]> = header.try_into().ok();
            marks.headers.extend(header);
        }
        for at in marks.header_places(len) {
            let mut header = [0; HEADER_SIZE];
            file.read_exact_at(&mut header, at)?;
            marks.headers.push(header);
        }
        Ok(marks)
    }

    fn add_footer(&mut self, bytes: &[u8]) {
        if has_footer_cookie(bytes) {
            let mut raw = [0; FOOTER_SIZE];
            raw[..bytes.len()].copy_from_slice(bytes);
            self.footers.push((raw, Footer::decode(bytes).is_ok()));
        }
    }

    /// What the footers say, damaged ones as far as they make sense.
    fn decoded(&self) -> impl Iterator<Item = (Footer, bool)> {
        let decoded = self.footers.iter();
        decoded.filter_map(|(raw, sound)| Some((Footer::decode(&reseal_footer(raw)).ok()?, *sound)))
    }

    /// Where else there may be headers.
    fn header_places(&self, len: u64) -> Vec<u64> {
        let last = len - u64_from(HEADER_SIZE);
        let places = self.decoded().filter_map(|(footer, _)| footer.data_offset);
        let mut places: Vec<u64> = places.filter(|&at| at != USUAL_HEADER && at <= last).collect();
        places.dedup();
        places
    }

    /// Whether the file is a differencing image; `None` where its footers do not tell.
    fn is_differencing(&self) -> Option<bool> {
        let types: Vec<(DiskType, bool)> = self
            .decoded()
            .map(|(footer, sound)| (footer.disk_type, sound))
            .collect();
        match types.iter().find(|(_, sound)| *sound) {
            Some((disk_type, _)) => Some(*disk_type == DiskType::Differencing),
            None if types.is_empty() => None,
            None => Some(types.iter().any(|(disk_type, _)| *disk_type == DiskType::Differencing)),
        }
    }

    fn claim(&self) -> Claim {
        if self.headers.is_empty() {
            return Claim::NoChild;
        }
        let sound = |header: &&[u8; HEADER_SIZE]| DynamicHeader::decode(header).is_ok();
        let is_sound = self.headers.iter().any(|header| sound(&header));
        let headers = self.headers.iter().filter(|header| !is_sound || sound(header));
        let is_differencing = self.is_differencing();
        // Where no footer says that there is a header, its cookie must.
        let headers = headers.filter(|header| is_differencing.is_some() || has_header_cookie(*header));
        let ids: Vec<UniqueId> = headers.map(named_parent).collect();
        match is_differencing {
            Some(false) => Claim::NoChild,
            None if ids.iter().all(|id| id.is_nil()) => Claim::NoChild,
            Some(true) | None => Claim::Child { ids, sound: is_sound },
        }
    }
}
