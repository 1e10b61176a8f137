//! A file that fails on demand.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd_core::storage::{Segment, StorageFile};
use vhd_core::units::{u64_from, usize_from};

use crate::operation::{Operation, OperationKind, joined, total};

/// The error number of a full file system on Linux.
const ENOSPC: i32 = 28;

/// The error to fail with (an `io::Error` can't be cloned).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// An error of this kind, without an error number.
    Kind(io::ErrorKind),
    /// The error of this number, as the operating system reports it.
    Os(i32),
}

impl FaultError {
    /// `EIO`.
    pub const EIO: Self = Self::Os(5);
    /// `ENOSPC`.
    pub const ENOSPC: Self = Self::Os(ENOSPC);

    fn error(self) -> io::Error {
        match self {
            Self::Kind(kind) => io::Error::new(kind, "injected fault"),
            Self::Os(number) => io::Error::from_raw_os_error(number),
        }
    }
}

/// One reason to fail. Build it with the constructors and change what differs.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The operations concerned; the others neither count nor fail.
    pub kinds: Vec<OperationKind>,
    /// How many of them pass first.
    pub after: u64,
    /// How many fail then; `u64::MAX` for all from there on.
    pub times: u64,
    /// What they fail with.
    pub error: FaultError,
    /// Bytes that a failing write still writes, from its start.
    pub short: u64,
}

impl Fault {
    /// The operation number `n`, from 0, among those that change or sync the file fails once with `EIO`.
    #[must_use]
    pub fn nth(n: u64) -> Self {
        Self {
            kinds: OperationKind::CHANGES.to_vec(),
            after: n,
            times: 1,
            error: FaultError::EIO,
            short: 0,
        }
    }

    /// Like [`nth`](Self::nth), but nothing works from there on: the disk is gone, reads included.
    #[must_use]
    pub fn dead_after(n: u64) -> Self {
        Self {
            kinds: OperationKind::ALL.to_vec(),
            times: u64::MAX,
            ..Self::nth(n)
        }
    }

    /// Every operation of this kind fails with `EIO`.
    #[must_use]
    pub fn every(kind: OperationKind) -> Self {
        Self {
            kinds: vec![kind],
            times: u64::MAX,
            ..Self::nth(0)
        }
    }

    /// The same with another error.
    #[must_use]
    pub fn with_error(self, error: FaultError) -> Self {
        Self { error, ..self }
    }

    /// The same with failing writes that still write their first `bytes`.
    #[must_use]
    pub fn with_short(self, bytes: u64) -> Self {
        Self { short: bytes, ..self }
    }
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<(Fault, u64)>,
    budget: Option<u64>,
    operations: u64,
    changes: u64,
    hits: u64,
}

/// Sets the faults of a [`FaultFile`] and counts; clones concern the same file.
#[derive(Clone, Debug, Default)]
pub struct FaultControl {
    state: Arc<Mutex<State>>,
}

impl FaultControl {
    /// Adds a fault; its count of operations starts now.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push((fault, 0));
    }

    /// From now on `bytes` can be written or allocated, then the file system is full: a write that goes past
    /// them writes what fits and fails with `ENOSPC`. Overwrites count too.
    pub fn limit_bytes(&self, bytes: u64) {
        self.lock().budget = Some(bytes);
    }

    /// Removes all faults and the limit; counts stay.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.budget = None;
    }

    /// All operations so far, failed ones included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The operations so far that change or sync the file: what [`Fault::nth`] counts.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// How often a fault or the limit struck.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.lock().hits
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Ok` to go on, or the error and how many bytes of a write to persist.
    fn pass(&self, operation: Operation) -> Result<(), (io::Error, u64)> {
        use OperationKind::{Allocate, Share, Write};
        let mut state = self.lock();
        state.operations += 1;
        state.changes += u64::from(operation.kind.is_change());
        let mut failure = None;
        for (fault, seen) in &mut state.faults {
            if fault.kinds.contains(&operation.kind) {
                let failing = *seen >= fault.after && *seen - fault.after < fault.times;
                *seen += 1;
                if failing && failure.is_none() {
                    failure = Some((fault.error.error(), fault.short.min(operation.len)));
                }
            }
        }
        let takes_space = matches!(operation.kind, Write | Allocate | Share);
        if let (None, true, Some(budget)) = (&failure, takes_space, &mut state.budget) {
            let fits = operation.len.min(*budget);
            *budget -= fits;
            failure = (fits < operation.len).then(|| (FaultError::ENOSPC.error(), fits));
        }
        state.hits += u64::from(failure.is_some());
        failure.map_or(Ok(()), Err)
    }
}

/// Wraps a file and fails as its [`FaultControl`] says.
///
/// A failed sync reaches the file inside not at all. Over a `CrashFile` a later sync that passes thus makes
/// everything durable, which a real system need not do: a test of INV-05 asserts that no change follows.
#[derive(Clone, Debug)]
pub struct FaultFile<F> {
    file: F,
    control: FaultControl,
}

impl<F: StorageFile> FaultFile<F> {
    /// A wrapper that never fails until told to.
    pub fn new(file: F) -> Self {
        Self {
            file,
            control: FaultControl::default(),
        }
    }

    /// A wrapper with one fault.
    pub fn with_fault(file: F, fault: Fault) -> Self {
        let file = Self::new(file);
        file.control.inject(fault);
        file
    }

    /// A wrapper that fails as an existing control says.
    pub fn with_control(file: F, control: &FaultControl) -> Self {
        Self {
            file,
            control: control.clone(),
        }
    }

    /// The switch, to keep while the file itself is given away.
    pub fn control(&self) -> FaultControl {
        self.control.clone()
    }

    /// The file inside.
    pub fn inner(&self) -> &F {
        &self.file
    }

    fn pass(&self, kind: OperationKind, offset: u64, len: u64) -> io::Result<()> {
        self.control
            .pass(Operation::new(kind, offset, len))
            .map_err(|(error, _)| error)
    }
}

impl<F: StorageFile> StorageFile for FaultFile<F> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.pass(OperationKind::Read, offset, u64_from(buf.len()))?;
        self.file.read_exact_at(buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.pass(OperationKind::Read, offset, total(bufs.iter().map(|buf| buf.len())))?;
        self.file.read_exact_vectored_at(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_vectored_at(&[IoSlice::new(buf)], offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let len = total(bufs.iter().map(|buf| buf.len()));
        match self.control.pass(Operation::new(OperationKind::Write, offset, len)) {
            Ok(()) => self.file.write_all_vectored_at(bufs, offset),
            Err((error, short)) => {
                if short > 0 {
                    self.file.write_all_at(&joined(bufs)[..usize_from(short)], offset)?;
                }
                Err(error)
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.pass(OperationKind::Len, 0, 0)?;
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pass(OperationKind::SetLen, len, 0)?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.pass(OperationKind::Sync, 0, 0)?;
        self.file.sync()
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.pass(OperationKind::PunchHole, offset, len)?;
        self.file.punch_hole(offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.pass(OperationKind::ZeroRange, offset, len)?;
        self.file.zero_range(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.pass(OperationKind::Allocate, offset, len)?;
        self.file.allocate(offset, len)
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        self.pass(OperationKind::Segment, offset, 0)?;
        self.file.segment_at(offset)
    }

    fn share_range_from(&self, source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()> {
        self.pass(OperationKind::Share, offset, len)?;
        self.file.share_range_from(source, source_offset, offset, len)
    }
}

/// Runs a workload with each of its operations failing in turn: `run(control, n)` is to build a fresh file whose
/// faults `control` holds ([`FaultFile::with_control`]), run, and check what must hold after a failure. Ends
/// with the first run that no fault struck, and answers how many were struck.
///
/// # Panics
/// When 100,000 runs do not reach the end: the workload grows with its failures.
pub fn each_operation_fails(make_fault: impl Fn(u64) -> Fault, mut run: impl FnMut(&FaultControl, u64)) -> u64 {
    for n in 0..100_000 {
        let control = FaultControl::default();
        control.inject(make_fault(n));
        run(&control, n);
        if control.hits() == 0 {
            return n;
        }
    }
    panic!("the workload has no end: a fault struck in each of 100,000 runs");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash_file::CrashFile;

    fn workload(file: &dyn StorageFile) -> io::Result<()> {
        file.write_all_at(&[1; 1024], 0)?;
        file.sync()?;
        file.set_len(4096)?;
        file.punch_hole(0, 512)
    }

    #[test]
    fn each_change_fails_once_and_then_none() {
        let runs = each_operation_fails(Fault::nth, |control, _| {
            let file = FaultFile::with_control(CrashFile::new(), control);
            assert_eq!(workload(&file).is_err(), control.hits() == 1);
        });
        assert_eq!(runs, 4);
    }

    #[test]
    fn a_full_file_system_keeps_what_fits() {
        let file = FaultFile::new(CrashFile::new());
        file.control().limit_bytes(1500);
        file.write_all_at(&[1; 1024], 0).unwrap();
        let error = file.write_all_at(&[2; 1024], 1024).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.inner().bytes().len(), 1500);
        file.control().heal();
        file.write_all_at(&[2; 1024], 1024).unwrap();
    }

    #[test]
    fn short_writes_dead_disks_and_chosen_errors() {
        let file = FaultFile::with_fault(CrashFile::new(), Fault::nth(0).with_short(100));
        assert_eq!(file.write_all_at(&[1; 512], 0).unwrap_err().raw_os_error(), Some(5));
        assert_eq!(file.len().unwrap(), 100);
        file.control()
            .inject(Fault::every(OperationKind::Sync).with_error(FaultError::Kind(io::ErrorKind::TimedOut)));
        assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(file.sync().is_err() && file.write_all_at(&[1], 0).is_ok());
        file.control().inject(Fault::dead_after(1));
        assert!(file.len().is_ok() && file.len().is_err() && file.read_exact_at(&mut [0], 0).is_err());
    }
}
