//! The footer that a repair goes by.

use crate::format::{COOKIE, FOOTER_SIZE, Footer};

/// Bytes at the end of a file in which a footer is looked for: a copying tool adds less.
pub(super) const SEARCH: u64 = 64 << 20;

/// A footer as it stands in a file.
pub(super) type RawFooter = [u8; FOOTER_SIZE];

/// The footer to go by.
pub(super) struct Basis {
    pub(super) footer: Footer,
    /// As it is to stand in the file.
    pub(super) raw: RawFooter,
}

impl Basis {
    pub(super) fn of(raw: RawFooter) -> Option<Self> {
        let footer = Footer::decode(&raw).ok()?;
        Some(Self { footer, raw })
    }

    /// The same with changes; bytes without a field do not survive.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Footer)) {
        change(&mut self.footer);
        self.raw = self.footer.encode();
    }
}

/// Whether bytes may be a footer that was damaged: most of what all footers share is there.
pub(super) fn resembles(bytes: &RawFooter, resealed: &RawFooter) -> bool {
    let cookie = bytes.iter().zip(&COOKIE).filter(|(a, b)| a == b).count();
    cookie * 2 >= COOKIE.len() && bytes.iter().zip(resealed).filter(|(a, b)| a != b).count() <= FOOTER_SIZE / 4
}
