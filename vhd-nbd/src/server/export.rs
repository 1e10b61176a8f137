//! What a server serves: a disk with a name.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhd_block::{ByteRange, DeviceError, Disk, Extent, ExtentKind};

use crate::protocol::{AllocationStatus, ContextQuery, DIRTY_BIT, ReplyStyle, TransmissionFlags};

/// Receives consecutive parts of a range and whether each was changed; `Break` ends the walk.
pub type ChangeVisitor<'a> = &'a mut dyn FnMut(ByteRange, bool) -> ControlFlow<()>;

/// Knows which parts of a disk changed since some moment: the content of a context `qemu:dirty-bitmap:...`.
pub trait ChangedRanges: Send + Sync {
    /// Visits the range, in ascending order and without gaps. A part that is said to be unchanged must be so.
    ///
    /// # Errors
    /// Failures of the disk.
    fn visit(&self, disk: &Disk, range: ByteRange, visitor: ChangeVisitor<'_>) -> Result<(), DeviceError>;
}

/// What changed since a layer of the chain was frozen: all that a nearer layer answers.
#[derive(Clone, Copy, Debug)]
pub struct ChangedAboveLayer {
    /// The layer, 0 being the one that is written.
    pub depth: u32,
}

impl ChangedRanges for ChangedAboveLayer {
    fn visit(&self, disk: &Disk, range: ByteRange, visitor: ChangeVisitor<'_>) -> Result<(), DeviceError> {
        disk.extents(range, &mut |extent| {
            let changed = extent.kind != ExtentKind::Hole && extent.depth < self.depth;
            visitor(extent.range, changed)
        })
    }
}

/// A metadata context of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context {
    /// What takes space, what reads zero.
    Allocation,
    /// Which layer answers.
    Depth,
    /// What changed, as the entry of this index in the export's list knows it.
    Changes(usize),
}

/// A disk that is served under a name.
pub struct Export {
    name: String,
    description: String,
    disk: Disk,
    read_only: bool,
    resizable: bool,
    /// Bytes; the most that the disk had before a resize.
    former_size: AtomicU64,
    changes: Vec<(String, Arc<dyn ChangedRanges>)>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("disk", &self.disk)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Export {
    /// Serves `disk` as `name`: for reading only if the disk is open so.
    #[must_use]
    pub fn new(name: impl Into<String>, disk: Disk) -> Self {
        let read_only = !disk.info().capabilities.write;
        Self {
            name: name.into(),
            description: String::new(),
            disk,
            read_only,
            resizable: false,
            former_size: AtomicU64::new(0),
            changes: Vec::new(),
        }
    }

    /// A text for people who list the exports. Control characters are not passed on to their terminals.
    #[must_use]
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into().replace(char::is_control, "\u{fffd}");
        self
    }

    /// For reading only, whatever the disk is open for.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Lets clients change the size, if the disk can do that and is not for reading only.
    #[must_use]
    pub fn resizable(mut self) -> Self {
        self.resizable = true;
        self
    }

    /// Offers the context `qemu:dirty-bitmap:NAME`.
    #[must_use]
    pub fn with_changes(mut self, name: impl Into<String>, changes: Box<dyn ChangedRanges>) -> Self {
        self.changes.push((name.into(), changes.into()));
        self
    }

    /// The same disk under the same name, with one more context `qemu:dirty-bitmap:NAME`, behind all others and in place of
    /// one of its name.
    #[must_use]
    pub fn and_changes(&self, name: impl Into<String>, changes: Box<dyn ChangedRanges>) -> Self {
        let name = name.into();
        let others = self.changes.iter().filter(|(other, _)| *other != name);
        self.with_all_changes(others.cloned().chain([(name.clone(), Arc::from(changes))]).collect())
    }

    /// The same disk under the same name, without the context `qemu:dirty-bitmap:NAME`.
    #[must_use]
    pub fn without_changes(&self, name: &str) -> Self {
        let others = self.changes.iter().filter(|(other, _)| other != name);
        self.with_all_changes(others.cloned().collect())
    }

    fn with_all_changes(&self, changes: Vec<(String, Arc<dyn ChangedRanges>)>) -> Self {
        Self {
            name: self.name.clone(),
            description: self.description.clone(),
            disk: self.disk.clone(),
            read_only: self.read_only,
            resizable: self.resizable,
            former_size: AtomicU64::new(self.former_size.load(Ordering::Relaxed)),
            changes,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text for people; may be empty.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Whether writes of any kind are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether clients may change the size.
    #[must_use]
    pub fn is_resizable(&self) -> bool {
        self.resizable && !self.read_only && self.disk.info().capabilities.resize
    }

    /// Changes the size for all clients.
    pub(super) fn resize(&self, size: u64) -> Result<(), DeviceError> {
        self.former_size.fetch_max(self.disk.size(), Ordering::Relaxed);
        self.disk.resize(size)
    }

    /// Whether the disk has once had all bytes up to this one.
    pub(super) fn had(&self, end: u64) -> bool {
        end <= self.former_size.load(Ordering::Relaxed)
    }

    /// What it can do for a client that has negotiated this style of replies, whatever contexts were agreed on.
    #[must_use]
    pub fn flags(&self, style: ReplyStyle) -> TransmissionFlags {
        // All connections use one disk, and a flush of it covers every write that was answered.
        let mut flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::CAN_MULTI_CONN
            | TransmissionFlags::SEND_CACHE;
        flags.set(TransmissionFlags::SEND_DF, style != ReplyStyle::Simple);
        if self.read_only {
            return flags | TransmissionFlags::READ_ONLY;
        }
        let can = self.disk.info().capabilities;
        flags.insert(TransmissionFlags::SEND_WRITE_ZEROES);
        flags.set(TransmissionFlags::SEND_FAST_ZERO, can.fast_zero);
        flags.set(TransmissionFlags::SEND_TRIM, can.discard);
        flags.set(TransmissionFlags::SEND_RESIZE, self.is_resizable());
        flags
    }

    /// All contexts.
    pub(super) fn contexts(&self) -> Vec<Context> {
        let changes = (0..self.changes.len()).map(Context::Changes);
        [Context::Allocation, Context::Depth]
            .into_iter()
            .chain(changes)
            .collect()
    }

    /// The contexts that a query lists.
    pub(super) fn listed(&self, query: &ContextQuery) -> Vec<Context> {
        let is_listed = |context: &Context| match query {
            ContextQuery::BaseAll => *context == Context::Allocation,
            ContextQuery::QemuAll => *context != Context::Allocation,
            ContextQuery::DirtyBitmapAll => matches!(context, Context::Changes(_)),
            _ => self.selected(query) == Some(*context),
        };
        self.contexts().into_iter().filter(is_listed).collect()
    }

    /// The one context that a query selects.
    pub(super) fn selected(&self, query: &ContextQuery) -> Option<Context> {
        self.contexts()
            .into_iter()
            .find(|context| self.query_of(*context) == *query)
    }

    /// The query that selects a context; its text is the context's name.
    pub(super) fn query_of(&self, context: Context) -> ContextQuery {
        match context {
            Context::Allocation => ContextQuery::Allocation,
            Context::Depth => ContextQuery::AllocationDepth,
            Context::Changes(index) => ContextQuery::DirtyBitmap(self.changes[index].0.clone()),
        }
    }

    /// Visits the parts of a range with their status in a context.
    pub(super) fn status(
        &self,
        context: Context,
        range: ByteRange,
        visitor: &mut dyn FnMut(ByteRange, u32) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        match context {
            Context::Allocation => self
                .disk
                .extents(range, &mut |extent| visitor(extent.range, allocation(&extent))),
            Context::Depth => self
                .disk
                .extents(range, &mut |extent| visitor(extent.range, depth(&extent))),
            Context::Changes(index) => self.changes[index].1.visit(&self.disk, range, &mut |part, changed| {
                visitor(part, if changed { DIRTY_BIT } else { 0 })
            }),
        }
    }
}

fn allocation(extent: &Extent) -> u32 {
    let status = match extent.kind {
        ExtentKind::Data => AllocationStatus::empty(),
        ExtentKind::Zero | ExtentKind::Hole => AllocationStatus::HOLE | AllocationStatus::ZERO,
    };
    status.bits()
}

/// 0 where no layer has anything, else the layer counted from 1.
fn depth(extent: &Extent) -> u32 {
    match extent.kind {
        ExtentKind::Hole => 0,
        ExtentKind::Data | ExtentKind::Zero => extent.depth + 1,
    }
}
