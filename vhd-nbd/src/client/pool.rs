//! The connections of a disk.

use std::thread;

use vhd_block::DeviceError;

use super::ClientError;
use super::agreement::Agreement;
use super::broken::Break;
use super::call::{Call, ServerError};
use super::durability::{Durability, Mark};
use super::expected::Expected;
use super::line::{Line, Place, Target, pause};
use super::link::{Link, Request};
use crate::protocol::{Command, Errno, TransmissionFlags};

/// How often a request is sent again before it is taken for what breaks the connection.
const MAX_BREAKS: u32 = 8;

/// The connections of a disk.
#[derive(Debug)]
pub(super) struct Pool {
    target: Target,
    pub(super) expected: Expected,
    lines: Vec<Line>,
    pub(super) durability: Durability,
}

impl Pool {
    /// Makes the first connection.
    pub(super) fn open(target: Target) -> Result<Self, ClientError> {
        let link = Link::open(&target.address, &target.export, target.tls.as_ref(), &target.options)?;
        let first = link.agreement().clone();
        let more = match first.can(TransmissionFlags::CAN_MULTI_CONN) {
            true => target.options.connections.saturating_sub(1),
            false => 0,
        };
        let mut lines = vec![Line::new(Some(link))];
        lines.extend((0..more).map(|_| Line::new(None)));
        Ok(Self {
            target,
            expected: Expected::new(first),
            lines,
            durability: Durability::default(),
        })
    }

    /// What can be asked for.
    pub(super) fn agreement(&self) -> &Agreement {
        self.expected.first()
    }

    /// What the connections lead to.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Sends a request until it is answered; the inner error is the server's. Returns when it was sent last.
    pub(super) fn run(
        &self,
        request: &Request<'_>,
        call: &mut Call<'_, '_>,
    ) -> Result<(Mark, Result<(), ServerError>), DeviceError> {
        let mut breaks = 0;
        let mut place = self.place();
        loop {
            let Some(link) = place.link(&self.target, &self.expected)? else {
                place = self.place();
                continue;
            };
            let mark = self.durability.mark();
            let broken = match link.call(request, call) {
                Ok(Err(error)) if error.errno == Errno::Shutdown => link.break_off(Break::stopping()),
                Ok(result) => return Ok((mark, result)),
                Err(broken) => broken,
            };
            if place.broke(&link, &broken, &self.target) {
                self.durability.broke();
            }
            breaks += 1;
            self.may_repeat(request, &broken, breaks)?;
            thread::sleep(pause(breaks));
        }
    }

    /// Whether a request may be sent again after its connection broke.
    fn may_repeat(&self, request: &Request<'_>, broken: &Break, breaks: u32) -> Result<(), DeviceError> {
        let known = !request.is_change() || broken.ends_changes();
        if !known {
            self.durability.lose();
        }
        if known && !matches!(request.command, Command::Read | Command::BlockStatus) {
            // With writes lost, neither another one nor a flush is of use.
            self.durability.check()?;
        }
        let wanted = !self.target.options.reconnect.is_zero();
        if known && wanted && broken.is_passing() && breaks < MAX_BREAKS {
            return Ok(());
        }
        Err(broken.error(&self.target.address))
    }

    /// The first connection that nobody uses, or the one that the fewest requests take.
    fn place(&self) -> Place<'_> {
        let mut best = (&self.lines[0], usize::MAX);
        for line in &self.lines {
            match line.load() {
                Some(0) => return line.enter(),
                Some(load) if load < best.1 => best = (line, load),
                _ => {}
            }
        }
        best.0.enter()
    }
}
