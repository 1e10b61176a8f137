//! The length that a file must keep.

use std::io;

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

    /// Checks that the file is as long as it was, and notes if it is longer. `len` asks for its length.
    pub(crate) fn check(&self, len: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        // The length is asked for last: a file that grows meanwhile may be noted as longer by another check.
        let least = self.0.load(Ordering::Acquire);
        let len = len()?;
        if len < least {
            let message = format!("the file has {len} bytes and had {least}: another program has made it shorter");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.0.fetch_max(len, Ordering::Release);
        Ok(())
    }

    /// The file is made shorter by its owner.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_makes_a_file_shorter() {
        let least = LeastLen::new(1000);
        least.check(|| Ok(2000)).unwrap();
        let cut = least.check(|| Ok(1999)).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        least.forget();
        least.check(|| Ok(1999)).unwrap();
    }

    #[test]
    fn a_file_that_grows_beside_a_check_is_no_shorter_one() {
        let least = LeastLen::new(1000);
        let grows_then = || {
            least.check(|| Ok(1512)).unwrap();
            Ok(1000)
        };
        least.check(grows_then).unwrap();
        least.check(|| Ok(1511)).unwrap_err();
    }
}
