//! What a worker does: one request that may take long, or a flush for many.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use vhd_block::units::u64_from;
use vhd_block::{ByteRange, DeviceError, Disk, ExtentKind, ZeroOptions};

use super::budget::PIECE;
use super::control::Verdict;
use super::export::Context;
use super::outbox::Outbox;
use super::read::Reads;
use super::rules::Refusal;
use super::session::Session;
use super::stats::Tally;
use crate::protocol::{Chunk, Command, CommandFlags, Descriptor, Errno, HeaderStyle, MetaContextId, RequestHeader};

/// Extents in a reply, per context: so many that they and their encoding take two pieces of memory. The client asks again
/// behind them.
const MAX_EXTENTS: usize = PIECE / size_of::<Descriptor>();

/// Bytes that are zeroed before it is asked again whether anybody waits for it.
const ZERO_STEP: u64 = 64 << 20;

/// The contexts of a session, or some of them.
pub(super) type Contexts = Arc<[(MetaContextId, Context)]>;

/// A request that has been checked, and what of its payload is of interest.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: RequestHeader,
    /// BLOCK_STATUS: the contexts that are asked about.
    pub(super) contexts: Contexts,
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

/// What becomes of a job that was begun.
enum Failure {
    Refused(Refusal),
    /// Nobody waits for it any more.
    Dropped,
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::Refused(Refusal::from_device(&error))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<'a> Executor<'a> {
    pub(super) fn new(session: &'a Session<'a>) -> io::Result<Self> {
        Ok(Self {
            session,
            outbox: Outbox::of_worker(&session.control.transport, session.style, session.budget)?,
            reads: Reads::new(session),
        })
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
                    let result = flushed
                        .as_ref()
                        .map_err(|error| Failure::from(Refusal::from_device(error)));
                    self.reply(&job.request, result.copied())?;
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
        let result = match (self.go_on(request.command), request.command) {
            (Err(failure), _) => Err(failure),
            (Ok(()), Command::Read) => return self.reads.execute(request, &mut self.outbox),
            (Ok(()), Command::BlockStatus) => return self.status(job),
            (Ok(()), Command::WriteZeroes) => self.zero(request, range),
            (Ok(()), Command::Trim) => self.trim(request, range),
            (Ok(()), Command::Cache) => self.cache(range),
            (Ok(()), Command::Resize) => self.session.export.resize(request.offset).map_err(Failure::from),
            (Ok(()), command) => unreachable!("{command:?} is executed where it is received"),
        };
        let succeeded = result.is_ok();
        self.reply(request, result)?;
        Ok(succeeded)
    }

    /// Whether there is somebody for whom a job is executed, or goes on.
    fn go_on(&self, command: Command) -> Result<(), Failure> {
        match self.session.control.verdict(command) {
            Verdict::Execute => Ok(()),
            Verdict::Drop => Err(Failure::Dropped),
            Verdict::Refuse => Err(Refusal::stopping().into()),
        }
    }

    fn reply(&mut self, request: &RequestHeader, result: Result<(), Failure>) -> io::Result<()> {
        match result {
            Ok(()) => self.outbox.done(request),
            Err(Failure::Refused(Refusal { errno, message })) => self.outbox.error(request, errno, message, None),
            Err(Failure::Dropped) => Ok(()),
        }
    }

    fn zero(&self, request: &RequestHeader, range: ByteRange) -> Result<(), Failure> {
        let options = ZeroOptions {
            may_unmap: !request.flags.contains(CommandFlags::NO_HOLE),
            fast_only: request.flags.contains(CommandFlags::FAST_ZERO),
            fua: false,
        };
        let disk = self.session.export.disk();
        if options.fast_only {
            // All of it or nothing.
            disk.write_zeroes(range, options)?;
        } else {
            self.in_steps(request.command, range, |step| disk.write_zeroes(step, options))?;
        }
        self.flush_if_asked(request)
    }

    fn trim(&self, request: &RequestHeader, range: ByteRange) -> Result<(), Failure> {
        let disk = self.session.export.disk();
        self.in_steps(request.command, range, |step| disk.discard(step))?;
        self.flush_if_asked(request)
    }

    /// Changes a range step by step, as long as there is somebody for whom.
    fn in_steps(
        &self,
        command: Command,
        range: ByteRange,
        change: impl Fn(ByteRange) -> Result<(), DeviceError>,
    ) -> Result<(), Failure> {
        let mut at = range.start;
        while at < range.end() {
            self.go_on(command)?;
            // Steps end on borders of blocks, wherever the range begins.
            let len = (ZERO_STEP - at % ZERO_STEP).min(range.end() - at);
            change(ByteRange::new(at, len))?;
            at += len;
        }
        Ok(())
    }

    fn flush_if_asked(&self, request: &RequestHeader) -> Result<(), Failure> {
        if request.flags.contains(CommandFlags::FUA) {
            self.session.export.disk().flush()?;
        }
        Ok(())
    }

    /// Reads what is stored of the range, so that the system has it in memory. A range may be as long as the disk, and
    /// mostly nothing.
    fn cache(&self, range: ByteRange) -> Result<(), Failure> {
        let disk = self.session.export.disk();
        let mut pieces = self.session.take_pieces(PIECE)?;
        let buffer = &mut pieces[0];
        let mut rest = range;
        while rest.len > 0
            && let Some(stored) = first_stored(disk, rest)?
        {
            let mut at = stored.start;
            while at < stored.end() {
                self.go_on(Command::Cache)?;
                let left = usize::try_from(stored.end() - at).unwrap_or(usize::MAX);
                let piece = &mut buffer[..left.min(PIECE)];
                disk.read_at(piece, at)?;
                at += u64_from(piece.len());
            }
            rest = ByteRange::new(at, range.end() - at);
        }
        Ok(())
    }

    fn status(&mut self, job: &Job) -> io::Result<bool> {
        let request = &job.request;
        // For the extents, and for the message that they become.
        let _memory = match self.session.take(2 * PIECE) {
            Ok(memory) => memory,
            Err(refusal) => return self.reply(request, Err(refusal.into())).map(|()| false),
        };
        let count = job.contexts.len();
        for (number, (context, kind)) in (1..).zip(job.contexts.iter()) {
            match self.descriptors(request, *kind) {
                Ok(descriptors) => {
                    let context = *context;
                    let chunk = Chunk::BlockStatus { context, descriptors };
                    self.outbox.chunk(request, number == count, &chunk)?;
                }
                Err(failure) => return self.reply(request, Err(failure)).map(|()| false),
            }
        }
        Ok(true)
    }

    /// The extents of a range in a context, from its start, as many as a reply may have.
    fn descriptors(&self, request: &RequestHeader, context: Context) -> Result<Vec<Descriptor>, Failure> {
        let range = ByteRange::new(request.offset, request.length);
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let mut list = DescriptorList::new(range, self.outbox.style().header_style(), one);
        self.session.export.status(context, range, &mut |part, status| {
            if self.go_on(Command::BlockStatus).is_err() {
                return ControlFlow::Break(());
            }
            list.push(part, status)
        })?;
        self.go_on(Command::BlockStatus)?;
        Ok(list.finish()?)
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
    no_memory: bool,
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
            limit: if one { 1 } else { MAX_EXTENTS },
            list: Vec::new(),
            no_memory: false,
        }
    }

    fn push(&mut self, part: ByteRange, status: u32) -> ControlFlow<()> {
        let start = part.start.max(self.range.start);
        let length = part.end().min(self.range.end()).saturating_sub(start);
        let status = u64::from(status);
        let joined = |last: &&mut Descriptor| last.status == status && last.length + length <= self.longest;
        if let Some(last) = self.list.last_mut().filter(joined) {
            last.length += length;
        } else if length > 0 {
            self.no_memory = self.list.try_reserve(1).is_err();
            if self.no_memory || self.list.len() == self.limit {
                return ControlFlow::Break(());
            }
            self.list.push(Descriptor {
                length: length.min(self.longest),
                status,
            });
        }
        if length > self.longest {
            // What comes behind an extent that was cut would be in the wrong place.
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn finish(self) -> Result<Vec<Descriptor>, Refusal> {
        match self.no_memory {
            false => Ok(self.list),
            true => Err(Refusal::new(Errno::NoMem, "no memory for a list of extents")),
        }
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
        list.finish()
            .unwrap()
            .iter()
            .map(|part| (part.length, part.status))
            .collect()
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
