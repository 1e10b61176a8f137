//! What a worker does: one request that may take long, or a flush for many.

use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use vhd_block::units::u64_from;
use vhd_block::{ByteRange, DeviceError, Disk, ExtentKind, ZeroOptions};

use super::export::Context;
use super::outbox::Outbox;
use super::read::Reads;
use super::rules::Refusal;
use super::session::Session;
use super::stats::Tally;
use crate::protocol::{
    Chunk, Command, CommandFlags, Descriptor, HeaderStyle, MAX_DESCRIPTORS, MetaContextId, RequestHeader,
};

/// Bytes that CACHE reads at once.
const CACHE_PIECE: usize = 256 << 10;

/// A request that has been checked, and what of its payload is of interest.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: RequestHeader,
    /// BLOCK_STATUS: the contexts that are asked about.
    pub(super) contexts: Vec<(MetaContextId, Context)>,
    /// When the request was received.
    pub(super) since: Instant,
}

impl Job {
    /// Whether all that is left to do is a flush: that of FLUSH, or of a write with FUA whose data is written. One
    /// flush serves any number of them.
    pub(super) fn is_flush(&self) -> bool {
        matches!(self.request.command, Command::Flush | Command::Write)
    }
}

/// Executes jobs for one worker.
pub(super) struct Executor<'a> {
    session: &'a Session<'a>,
    outbox: Outbox<'a>,
    reads: Reads<'a>,
}

impl<'a> Executor<'a> {
    pub(super) fn new(session: &'a Session<'a>) -> Self {
        Self {
            session,
            outbox: Outbox::for_data(session.transport, session.style),
            reads: Reads::new(session.export.disk()),
        }
    }

    /// Executes jobs and replies. More than one are flushes.
    pub(super) fn execute(&mut self, jobs: &[Job]) -> io::Result<()> {
        let mut tally = Tally::default();
        match jobs {
            [job] if !job.is_flush() => {
                let succeeded = self.execute_one(job)?;
                tally.count(job.request.command, job.request.length, succeeded);
            }
            flushes => {
                let flushed = self.session.export.disk().flush();
                for job in flushes {
                    self.reply(&job.request, &flushed)?;
                    tally.count(job.request.command, job.request.length, flushed.is_ok());
                }
            }
        }
        self.outbox.send()?;
        if let Some(first) = jobs.first() {
            self.session.stats.add(&mut tally, first.since.elapsed());
        }
        Ok(())
    }

    fn execute_one(&mut self, job: &Job) -> io::Result<bool> {
        let request = &job.request;
        let range = ByteRange::new(request.offset, request.length);
        let result = match request.command {
            Command::Read => return self.reads.execute(request, &mut self.outbox),
            Command::BlockStatus => return self.status(job),
            Command::WriteZeroes => self.zero(request, range),
            Command::Trim => self.trim(request, range),
            Command::Cache => self.cache(range),
            Command::Resize => self.session.export.resize(request.offset),
            command => unreachable!("{command:?} is executed where it is received"),
        };
        self.reply(request, &result)?;
        Ok(result.is_ok())
    }

    fn reply(&mut self, request: &RequestHeader, result: &Result<(), DeviceError>) -> io::Result<()> {
        match result {
            Ok(()) => self.outbox.done(request),
            Err(error) => {
                let Refusal { errno, message } = Refusal::from_device(error);
                self.outbox.error(request, errno, message, None)
            }
        }
    }

    fn zero(&self, request: &RequestHeader, range: ByteRange) -> Result<(), DeviceError> {
        let options = ZeroOptions {
            may_unmap: !request.flags.contains(CommandFlags::NO_HOLE),
            fast_only: request.flags.contains(CommandFlags::FAST_ZERO),
            fua: request.flags.contains(CommandFlags::FUA),
        };
        self.session.export.disk().write_zeroes(range, options)
    }

    fn trim(&self, request: &RequestHeader, range: ByteRange) -> Result<(), DeviceError> {
        let disk = self.session.export.disk();
        disk.discard(range)?;
        if request.flags.contains(CommandFlags::FUA) {
            disk.flush()
        } else {
            Ok(())
        }
    }

    /// Reads what is stored of the range, so that the system has it in memory. A range may be as long as the disk, and
    /// mostly nothing.
    fn cache(&self, range: ByteRange) -> Result<(), DeviceError> {
        let disk = self.session.export.disk();
        let mut buffer = vec![0; CACHE_PIECE];
        let mut rest = range;
        while rest.len > 0
            && let Some(stored) = first_stored(disk, rest)?
        {
            let mut at = stored.start;
            while at < stored.end() {
                if self.session.is_stopping() {
                    return Ok(());
                }
                let left = usize::try_from(stored.end() - at).unwrap_or(usize::MAX);
                let piece = &mut buffer[..left.min(CACHE_PIECE)];
                disk.read_at(piece, at)?;
                at += u64_from(piece.len());
            }
            rest = ByteRange::new(at, range.end() - at);
        }
        Ok(())
    }

    fn status(&mut self, job: &Job) -> io::Result<bool> {
        let mut chunks = Vec::new();
        for (id, context) in &job.contexts {
            match self.descriptors(&job.request, *context) {
                Ok(descriptors) => chunks.push((*id, descriptors)),
                Err(error) => {
                    self.reply(&job.request, &Err(error))?;
                    return Ok(false);
                }
            }
        }
        let count = chunks.len();
        for (number, (context, descriptors)) in (1..).zip(chunks) {
            let chunk = Chunk::BlockStatus { context, descriptors };
            self.outbox.chunk(&job.request, number == count, &chunk)?;
        }
        Ok(true)
    }

    /// The extents of a range in a context, from its start, as many as a chunk may have.
    fn descriptors(&self, request: &RequestHeader, context: Context) -> Result<Vec<Descriptor>, DeviceError> {
        let range = ByteRange::new(request.offset, request.length);
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let mut list = DescriptorList::new(range, self.outbox.style().header_style(), one);
        self.session
            .export
            .status(context, range, &mut |part, status| list.push(part, status))?;
        Ok(list.finish())
    }
}

/// The first part of a range that is stored as bytes.
fn first_stored(disk: &Disk, range: ByteRange) -> Result<Option<ByteRange>, DeviceError> {
    let mut found = None;
    disk.extents(range, &mut |extent| {
        if extent.kind != ExtentKind::Data {
            return ControlFlow::Continue(());
        }
        let start = extent.range.start.max(range.start);
        found = Some(ByteRange::new(start, extent.range.end().min(range.end()) - start));
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Extents that are joined where neighbours have one status, and cut to a range.
struct DescriptorList {
    range: ByteRange,
    longest: u64,
    limit: usize,
    list: Vec<Descriptor>,
}

impl DescriptorList {
    fn new(range: ByteRange, style: HeaderStyle, one: bool) -> Self {
        Self {
            range,
            longest: match style {
                // A multiple of every block size here.
                HeaderStyle::Compact => u64::from(u32::MAX) & !0xfff,
                HeaderStyle::Extended => u64::MAX,
            },
            limit: if one { 1 } else { MAX_DESCRIPTORS },
            list: Vec::new(),
        }
    }

    fn push(&mut self, part: ByteRange, status: u32) -> ControlFlow<()> {
        let start = part.start.max(self.range.start);
        let length = part.end().min(self.range.end()).saturating_sub(start);
        let status = u64::from(status);
        let full = self.list.len() == self.limit;
        let last = self.list.last_mut();
        match last.filter(|last| last.status == status && last.length + length <= self.longest) {
            Some(last) => last.length += length,
            None if length == 0 => {}
            None if full => return ControlFlow::Break(()),
            None => self.list.push(Descriptor {
                length: length.min(self.longest),
                status,
            }),
        }
        if length > self.longest {
            // What comes behind an extent that was cut would be in the wrong place.
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn finish(self) -> Vec<Descriptor> {
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(range: ByteRange, style: HeaderStyle, one: bool, parts: &[(u64, u64, u32)]) -> Vec<(u64, u64)> {
        let mut list = DescriptorList::new(range, style, one);
        for &(start, len, status) in parts {
            if list.push(ByteRange::new(start, len), status).is_break() {
                break;
            }
        }
        list.finish().iter().map(|part| (part.length, part.status)).collect()
    }

    #[test]
    fn neighbours_are_joined_and_edges_cut() {
        let range = ByteRange::new(100, 5000);
        let parts = [(0, 512, 3), (512, 512, 3), (1024, 1024, 0), (2048, 4096, 3)];
        assert_eq!(
            list(range, HeaderStyle::Compact, false, &parts),
            [(924, 3), (1024, 0), (3052, 3)]
        );
        assert_eq!(list(range, HeaderStyle::Compact, true, &parts), [(924, 3)]);
    }

    #[test]
    fn extents_longer_than_a_field_are_cut() {
        let range = ByteRange::new(0, 1 << 33);
        let parts = [(0, 5 << 30, 3), (5 << 30, 3 << 30, 0)];
        assert_eq!(list(range, HeaderStyle::Compact, false, &parts), [(0xffff_f000, 3)]);
        assert_eq!(
            list(range, HeaderStyle::Extended, false, &parts),
            [(5 << 30, 3), (3 << 30, 0)]
        );
    }
}
