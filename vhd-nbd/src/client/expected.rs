//! What every further connection to an export must agree on.

use std::sync::atomic::{AtomicU64, Ordering};

use super::agreement::Agreement;

/// What the first connection agreed on, and every other must, with the size that the export has by now.
#[derive(Debug)]
pub(super) struct Expected {
    first: Agreement,
    /// Bytes of the export, as far as this side knows.
    size: AtomicU64,
    /// Bytes that it has instead if a resize was executed that is not answered. Without one, the same as `size`.
    wanted: AtomicU64,
}

impl Expected {
    pub(super) fn new(first: Agreement) -> Self {
        Self {
            size: AtomicU64::new(first.size),
            wanted: AtomicU64::new(first.size),
            first,
        }
    }

    pub(super) fn first(&self) -> &Agreement {
        &self.first
    }

    /// Bytes of the export.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The server is asked for a size: until it answers it may have either.
    pub(super) fn want(&self, size: u64) {
        self.wanted.store(size, Ordering::Release);
    }

    /// The server has given the export this size, or has kept to it.
    pub(super) fn settle(&self, size: u64) {
        self.size.store(size, Ordering::Release);
        self.wanted.store(size, Ordering::Release);
    }

    /// Why a new connection does not lead to the export as it was; `None` if it does.
    pub(super) fn objection(&self, found: &Agreement) -> Option<String> {
        let size = self.size();
        if ![size, self.wanted.load(Ordering::Acquire)].contains(&found.size) {
            return Some(format!("{} bytes instead of {size}", found.size));
        }
        found.differs_from(&self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ReplyStyle, TransmissionFlags};

    fn agreement(size: u64) -> Agreement {
        Agreement::new(size, TransmissionFlags::SEND_RESIZE, None, ReplyStyle::Simple, None).unwrap()
    }

    #[test]
    fn a_size_is_expected_once_it_was_asked_for() {
        let expected = Expected::new(agreement(1024));
        let accepts = |sizes: [bool; 3]| {
            let found = [1024, 2048, 4096].map(|size| expected.objection(&agreement(size)).is_none());
            assert_eq!(found, sizes);
        };
        accepts([true, false, false]);
        expected.want(2048);
        accepts([true, true, false]);
        assert_eq!(expected.size(), 1024);
        expected.settle(2048);
        accepts([false, true, false]);
        expected.want(4096);
        expected.settle(2048);
        accepts([false, true, false]);
        assert_eq!(expected.size(), 2048);
    }

    #[test]
    fn an_export_that_is_resized_no_more_is_another() {
        let expected = Expected::new(agreement(1024));
        let fixed = Agreement {
            flags: TransmissionFlags::empty(),
            ..agreement(1024)
        };
        assert_eq!(expected.objection(&fixed), Some("it can do less".to_owned()));
    }
}
