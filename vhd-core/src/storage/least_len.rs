//! The length that a file must keep.

use std::io;

use super::StorageFile;
use crate::sync::{AtomicU64, Ordering};

/// The length that a file has had while it is in use. No program that respects its lock makes it shorter; one that does
/// has taken away what was written, and a later write would only hide that.
#[derive(Debug)]
pub(crate) struct LeastLen(AtomicU64);

impl LeastLen {
    /// For a file of so many bytes.
    pub(crate) fn new(len: u64) -> Self {
        Self(AtomicU64::new(len))
    }

    /// Checks that the file is as long as it was, and notes if it is longer.
    pub(crate) fn check(&self, file: &dyn StorageFile) -> io::Result<()> {
        let (len, least) = (file.len()?, self.0.load(Ordering::Relaxed));
        if len < least {
            let message = format!("the file has {len} bytes and had {least}: another program has made it shorter");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.0.fetch_max(len, Ordering::Relaxed);
        Ok(())
    }

    /// The file is made shorter by its owner.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryFile;

    #[test]
    fn only_its_owner_makes_a_file_shorter() {
        let file = MemoryFile::from_bytes(vec![1; 1000]);
        let least = LeastLen::new(1000);
        file.set_len(2000).unwrap();
        least.check(&file).unwrap();
        file.set_len(1999).unwrap();
        assert_eq!(least.check(&file).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        least.forget();
        least.check(&file).unwrap();
    }
}
