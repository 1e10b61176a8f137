//! An export as a disk.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhd_block::units::usize_from;
use vhd_block::{
    BlockDevice, ByteRange, Capabilities, Coalescer, DeviceError, DeviceInfo, ErrorKind, ExtentKind, ExtentVisitor,
    Gate, PHYSICAL_BLOCK, ZeroOptions, check_request, scatter,
};

use super::agreement::Agreement;
use super::call::{Bytes, Call, ServerError, Wanted};
use super::durability::Mark;
use super::extents::{Piece, StatusCache, pass, pieces};
use super::line::Target;
use super::link::Request;
use super::pool::Pool;
use super::text::appended;
use super::{ClientError, ClientOptions, NbdUri};
use crate::kinds;
use crate::protocol::{Command, CommandFlags, Errno, MetaContextId, TransmissionFlags};
use crate::tls::TlsClient;

/// Bytes; the longest range of a request without a payload. All servers know it as a number, and have it done in time.
const MAX_RANGE: u64 = 1 << 30;

/// The longest request of a kind that the server takes, as far as is known.
#[derive(Debug)]
struct Longest(AtomicU64);

impl Longest {
    fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A request of `len` bytes was too long. Returns whether there are shorter ones, in whole blocks.
    fn shorten(&self, len: u64, block: u64) -> bool {
        let half = len / 2 / block * block;
        if half == 0 {
            return false;
        }
        self.0.fetch_min(half, Ordering::Relaxed);
        true
    }
}

/// An export of an NBD server. The bytes of a last block that is not whole read zero behind the export's end.
///
/// Its size is the one of the first connection, and then that of each resize through this device. Whoever else changes it
/// makes another export of it.
#[derive(Debug)]
pub struct NbdDevice {
    pool: Pool,
    info: DeviceInfo,
    status: StatusCache,
    /// Of reads and writes, and of what has no payload.
    transfers: Longest,
    ranges: Longest,
    /// For an export whose size can be changed: requests pass it, and a resize has it to itself, because none may be on its
    /// way to what is cut off.
    gate: Option<Gate<()>>,
}

impl NbdDevice {
    /// Connects to the export.
    ///
    /// # Errors
    /// The server can't be reached, does not have the export, does not give it in the way that the URI and the options
    /// want, or does not keep to the protocol.
    pub fn open(uri: &NbdUri, options: ClientOptions) -> Result<Arc<Self>, ClientError> {
        let tls = uri.tls.as_ref().map(|tls| {
            let name = tls.hostname.as_deref().unwrap_or(uri.address.server_name());
            TlsClient::new(tls.certificates.as_deref(), name)
        });
        let write = options.write;
        let pool = Pool::open(Target {
            address: uri.address.clone(),
            export: uri.export.clone(),
            tls: tls.transpose()?,
            options,
        })?;
        let agreed = pool.agreement();
        let size = agreed.size.next_multiple_of(agreed.block.into());
        if write && agreed.can(TransmissionFlags::READ_ONLY) {
            return Err(ClientError::ReadOnly {
                address: uri.address.clone(),
                export: uri.export.clone(),
            });
        }
        if write && size != agreed.size {
            return Err(ClientError::OddSize {
                size: agreed.size,
                block: agreed.block,
            });
        }
        Ok(Arc::new(Self {
            gate: can_resize(agreed, write).then(|| Gate::new(())),
            info: info(agreed, write),
            transfers: Longest::new(agreed.maximum.into()),
            ranges: Longest::new(MAX_RANGE),
            pool,
            status: StatusCache::default(),
        }))
    }

    fn agreed(&self) -> &Agreement {
        self.pool.agreement()
    }

    fn check(&self, range: ByteRange) -> Result<(), DeviceError> {
        check_request(range.start, range.len, self.size_bytes(), self.info.logical_block_size)
    }

    fn check_write(&self, range: ByteRange) -> Result<(), DeviceError> {
        if !self.info.capabilities.write {
            return Err(DeviceError::ReadOnly);
        }
        self.check(range)?;
        self.pool.durability.check()
    }

    /// The part of a range that is in the export: the bytes of its last block may not all be.
    fn in_export(&self, range: ByteRange) -> ByteRange {
        let end = range.end().min(self.pool.expected.size());
        ByteRange::new(range.start, end.saturating_sub(range.start))
    }

    /// A failure that the server told.
    fn failed(&self, command: Command, offset: u64, error: &ServerError) -> DeviceError {
        let kind = match error.errno {
            Errno::Perm | Errno::Inval | Errno::NotSup if command == Command::Resize => kinds::RESIZE_REFUSED,
            Errno::Perm => return DeviceError::ReadOnly,
            Errno::NoSpc => ErrorKind::NoSpace,
            Errno::NotSup => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        let said = appended(&error.message);
        let (address, errno) = (&self.pool.target().address, error.errno);
        DeviceError::Remote {
            kind,
            message: format!("{address} answers {errno:?} to {command:?} at {offset:#x}{said}"),
        }
    }

    /// Has a request executed. It passes the gate, behind which the size may be another.
    fn run(
        &self,
        request: &Request<'_>,
        call: &mut Call<'_, '_>,
    ) -> Result<(Mark, Result<(), ServerError>), DeviceError> {
        let _passed = self.gate.as_ref().map(Gate::pass);
        if self.gate.is_some() {
            let size = self.pool.expected.size();
            check_request(request.offset, request.length, size, 1)?;
        }
        self.pool.run(request, call)
    }

    /// Has a range asked for in requests that the server takes. One that is too long for it is cut further, and so are
    /// all later ones. The inner error is the server's, with the offset of the request.
    fn in_requests(
        &self,
        range: ByteRange,
        longest: &Longest,
        mut ask: impl FnMut(ByteRange) -> Result<Result<(), ServerError>, DeviceError>,
    ) -> Result<Result<(), (u64, ServerError)>, DeviceError> {
        let mut at = range.start;
        while at < range.end() {
            let part = ByteRange::new(at, longest.get().min(range.end() - at));
            match ask(part)? {
                Ok(()) => at = part.end(),
                Err(error)
                    if error.errno == Errno::Overflow && longest.shorten(part.len, self.agreed().block.into()) => {}
                Err(error) => return Ok(Err((part.start, error))),
            }
        }
        Ok(Ok(()))
    }

    /// Asks the server for a size, with no other request on its way.
    fn ask_resize(&self, size: u64) -> Result<(), DeviceError> {
        let request = Request {
            command: Command::Resize,
            flags: CommandFlags::empty(),
            offset: size,
            length: 0,
            payload: None,
        };
        let expected = &self.pool.expected;
        expected.want(size);
        // Without an answer either size may be found by the next connection.
        let (_, answered) = self.pool.run(&request, &mut Call::new(Wanted::Nothing))?;
        expected.settle(if answered.is_ok() { size } else { expected.size() });
        answered.map_err(|error| self.failed(request.command, size, &error))
    }

    /// Has a change done and notes that it is not durable, unless it is with `fua`.
    fn change(&self, request: &Request<'_>) -> Result<Result<(), ServerError>, DeviceError> {
        self.pool.durability.check()?;
        self.status.changed();
        let ran = self.run(request, &mut Call::new(Wanted::Nothing));
        self.status.changed();
        let (mark, result) = ran?;
        // A change that failed may have been done in part.
        if !request.flags.contains(CommandFlags::FUA) {
            self.pool.durability.changed(mark);
        }
        Ok(result)
    }

    /// The flag that makes a change durable, where there is one.
    fn fua_flag(&self, fua: bool) -> CommandFlags {
        match fua && self.agreed().can(TransmissionFlags::SEND_FUA) {
            true => CommandFlags::FUA,
            false => CommandFlags::empty(),
        }
    }

    /// A flush after changes that should have been durable, where there was no flag to say so.
    fn flush_unless(&self, fua: bool, flag: CommandFlags) -> Result<(), DeviceError> {
        if fua && flag.is_empty() { self.flush() } else { Ok(()) }
    }

    /// Zeroes that are sent as any other bytes.
    fn write_out_zeroes(&self, range: ByteRange) -> Result<(), DeviceError> {
        let step = u64::from(self.info.preferred_transfer)
            .max(1 << 20)
            .min(self.info.maximum_transfer.into());
        let zeroes = vec![0; usize_from(step.min(range.len))];
        for part in parts(range, step) {
            let bufs = [IoSlice::new(&zeroes[..usize_from(part.len)])];
            self.write_vectored_at(&bufs, part.start, false)?;
        }
        Ok(())
    }

    /// What the export stores from `at` on, up to `end` at most.
    fn piece(&self, at: u64, end: u64) -> Result<Piece, DeviceError> {
        let everything = Piece {
            end,
            kind: ExtentKind::Data,
        };
        let Some(context) = self.agreed().allocation else {
            return Ok(everything);
        };
        if let Some(piece) = self.status.find(at) {
            return Ok(Piece {
                end: piece.end.min(end),
                ..piece
            });
        }
        let changes = self.status.changes();
        let range = ByteRange::new(at, self.size_bytes().saturating_sub(at).min(MAX_RANGE));
        let found = self.ask_status(context, range)?;
        let first = found.first().copied().unwrap_or(everything);
        self.status.keep(changes, at, found);
        Ok(Piece {
            end: first.end.min(end),
            ..first
        })
    }

    /// Asks the server what it stores of a range. Nothing, if it does not know.
    fn ask_status(&self, context: MetaContextId, range: ByteRange) -> Result<Vec<Piece>, DeviceError> {
        let inside = self.in_export(range);
        let request = Request {
            command: Command::BlockStatus,
            flags: CommandFlags::empty(),
            offset: inside.start,
            length: inside.len,
            payload: None,
        };
        let mut descriptors = Vec::new();
        let (_, answered) = self.run(&request, &mut Call::new(Wanted::Status(context, &mut descriptors)))?;
        if let Err(ServerError { errno, message }) = answered {
            // Whatever it is that the server can't say: all of it may be stored.
            tracing::debug!(?errno, message, "the server does not tell what it stores");
            return Ok(Vec::new());
        }
        if inside.len < range.len
            && let Some(last) = descriptors.last_mut()
        {
            // Behind the end of the export everything is as its last bytes are.
            last.length = last.length.saturating_add(range.len - inside.len);
        }
        // A server that ends in the first block tells less than one that knows nothing.
        Ok(pieces(&descriptors, range, self.info.logical_block_size).unwrap_or_default())
    }
}

/// The parts of a range, of `step` bytes and a last one of fewer.
fn parts(range: ByteRange, step: u64) -> impl Iterator<Item = ByteRange> {
    let starts = (0..range.len.div_ceil(step)).map(move |index| index * step);
    starts.map(move |done| ByteRange::new(range.start + done, step.min(range.len - done)))
}

/// Whether the size of the export can be changed.
fn can_resize(agreed: &Agreement, write: bool) -> bool {
    write && agreed.can(TransmissionFlags::SEND_RESIZE)
}

fn info(agreed: &Agreement, write: bool) -> DeviceInfo {
    let mut capabilities = Capabilities::of_disk(write);
    capabilities.discard &= agreed.can(TransmissionFlags::SEND_TRIM);
    capabilities.fast_zero &= agreed.can(TransmissionFlags::SEND_FAST_ZERO);
    capabilities.resize = can_resize(agreed, write);
    let mut info = DeviceInfo::new(None, agreed.preferred, capabilities);
    info.logical_block_size = agreed.block;
    info.physical_block_size = PHYSICAL_BLOCK.max(agreed.block);
    info.maximum_transfer = agreed.maximum;
    info
}

impl BlockDevice for NbdDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        let block = u64::from(self.info.logical_block_size);
        // A power of two.
        (self.pool.expected.size() + (block - 1)) & !(block - 1)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        let range = ByteRange::new(offset, len);
        self.check(range)?;
        let inside = self.in_export(range);
        let asked = self.in_requests(inside, &self.transfers, |part| {
            let request = Request {
                command: Command::Read,
                flags: CommandFlags::empty(),
                offset: part.start,
                length: part.len,
                payload: None,
            };
            let skip = usize_from(part.start - offset);
            let mut call = Call::new(Wanted::Bytes(Bytes::new(bufs, skip, part)));
            Ok(self.run(&request, &mut call)?.1)
        });
        asked?.map_err(|(at, error)| self.failed(Command::Read, at, &error))?;
        let behind = range.len - inside.len;
        let cleared: Result<(), DeviceError> =
            scatter::for_each_mut(bufs, usize_from(inside.len), usize_from(behind), |part, _| {
                part.fill(0);
                Ok(())
            });
        cleared
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        let range = ByteRange::new(offset, len);
        self.check_write(range)?;
        let flags = self.fua_flag(fua);
        let asked = self.in_requests(range, &self.transfers, |part| {
            self.change(&Request {
                command: Command::Write,
                flags,
                offset: part.start,
                length: part.len,
                payload: Some((bufs, usize_from(part.start - offset))),
            })
        });
        asked?.map_err(|(at, error)| self.failed(Command::Write, at, &error))?;
        self.flush_unless(fua, flags)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if !self.info.capabilities.write {
            return Ok(());
        }
        self.pool.durability.check()?;
        if !self.agreed().can(TransmissionFlags::SEND_FLUSH) {
            return Err(DeviceError::Unsupported("be flushed: its server does not know how"));
        }
        let request = Request {
            command: Command::Flush,
            flags: CommandFlags::empty(),
            offset: 0,
            length: 0,
            payload: None,
        };
        let (mark, answered) = self.run(&request, &mut Call::new(Wanted::Nothing))?;
        match answered {
            Ok(()) => self.pool.durability.flushed(mark),
            Err(error) => {
                // INV-05: what a failed flush could not write, a later one need not know of.
                self.pool.durability.lose();
                Err(self.failed(request.command, 0, &error))
            }
        }
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.check_write(range)?;
        let agreed = self.agreed();
        if options.fast_only && !agreed.can(TransmissionFlags::SEND_FAST_ZERO) {
            return Err(DeviceError::NotFast);
        }
        if !agreed.can(TransmissionFlags::SEND_WRITE_ZEROES) {
            self.write_out_zeroes(range)?;
            return self.flush_unless(options.fua, CommandFlags::empty());
        }
        let fua = self.fua_flag(options.fua);
        let mut flags = fua;
        flags.set(CommandFlags::NO_HOLE, !options.may_unmap);
        flags.set(CommandFlags::FAST_ZERO, options.fast_only);
        let asked = self.in_requests(range, &self.ranges, |part| {
            self.change(&Request {
                command: Command::WriteZeroes,
                flags,
                offset: part.start,
                length: part.len,
                payload: None,
            })
        });
        asked?.map_err(|(at, error)| match error.errno {
            Errno::NotSup if options.fast_only => DeviceError::NotFast,
            _ => self.failed(Command::WriteZeroes, at, &error),
        })?;
        self.flush_unless(options.fua, fua)
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.check_write(range)?;
        if !self.info.capabilities.discard {
            return Err(DeviceError::Unsupported("discard"));
        }
        let asked = self.in_requests(range, &self.ranges, |part| {
            self.change(&Request {
                command: Command::Trim,
                flags: CommandFlags::empty(),
                offset: part.start,
                length: part.len,
                payload: None,
            })
        });
        asked?.map_err(|(at, error)| self.failed(Command::Trim, at, &error))
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        self.check(range)?;
        let mut coalescer = Coalescer::new(visitor);
        let mut at = range.start;
        while at < range.end() {
            let piece = self.piece(at, range.end())?;
            if pass(&mut coalescer, at, piece).is_break() {
                return Ok(());
            }
            at = piece.end;
        }
        coalescer.finish();
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        let Some(gate) = &self.gate else {
            return Err(DeviceError::Unsupported("be resized"));
        };
        check_request(0, size, i64::MAX.unsigned_abs(), self.info.logical_block_size)?;
        self.pool.durability.check()?;
        let _alone = gate.close();
        self.status.changed();
        let resized = self.ask_resize(size);
        self.status.changed();
        resized
    }
}
