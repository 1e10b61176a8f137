//! A file that calls back before each change: to do something exactly there.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd_core::storage::{Segment, StorageFile};
use vhd_core::units::u64_from;

use crate::operation::{Operation, OperationKind, total};

/// Called before an operation that changes the file or syncs it.
pub type Hook = Box<dyn FnMut(Operation) + Send>;

/// Sets the hook of a [`HookFile`]; clones concern the same file.
#[derive(Clone, Default)]
pub struct Hooks {
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Hooks {
    /// Replaces the hook, or removes it.
    pub fn set(&self, hook: Option<Hook>) {
        *self.lock() = hook;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Hook>> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, operation: Operation) {
        // Taken out for the call, so that what the hook does to the file does not call it again.
        let Some(mut hook) = self.lock().take() else { return };
        hook(operation);
        self.lock().get_or_insert(hook);
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hooks(set: {})", self.lock().is_some())
    }
}

/// Wraps a file and calls its hook before each operation that changes or syncs it. What the hook does to the
/// disk in the file is what another thread may do at this very point: a race, the same in every run.
#[derive(Clone, Debug)]
pub struct HookFile<F> {
    file: F,
    hooks: Hooks,
}

impl<F: StorageFile> HookFile<F> {
    /// A wrapper without a hook.
    pub fn new(file: F) -> Self {
        Self {
            file,
            hooks: Hooks::default(),
        }
    }

    /// The switch, to keep while the file itself is given away.
    pub fn hooks(&self) -> Hooks {
        self.hooks.clone()
    }

    fn before(&self, kind: OperationKind, offset: u64, len: u64) -> &F {
        self.hooks.call(Operation::new(kind, offset, len));
        &self.file
    }
}

impl<F: StorageFile> StorageFile for HookFile<F> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.file.read_exact_vectored_at(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.before(OperationKind::Write, offset, u64_from(buf.len()))
            .write_all_at(buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let len = total(bufs.iter().map(|buf| buf.len()));
        self.before(OperationKind::Write, offset, len)
            .write_all_vectored_at(bufs, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.before(OperationKind::SetLen, len, 0).set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.before(OperationKind::Sync, 0, 0).sync()
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.before(OperationKind::PunchHole, offset, len)
            .punch_hole(offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.before(OperationKind::ZeroRange, offset, len)
            .zero_range(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.before(OperationKind::Allocate, offset, len).allocate(offset, len)
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        self.file.segment_at(offset)
    }

    fn share_range_from(&self, source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()> {
        self.before(OperationKind::Share, offset, len)
            .share_range_from(source, source_offset, offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash_file::CrashFile;

    #[test]
    fn the_hook_comes_first_and_may_use_the_file() {
        let file = HookFile::new(CrashFile::new());
        let inside = file.clone();
        file.hooks().set(Some(Box::new(move |operation| {
            assert_eq!(operation, Operation::new(OperationKind::Write, 0, 3));
            inside.write_all_at(b"hook", 0).unwrap();
        })));
        file.write_all_at(b"own", 0).unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"ownk");
        file.hooks().set(None);
        file.sync().unwrap();
    }
}
