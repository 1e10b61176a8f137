//! One connection that requests go through, from any number of threads.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhd_block::scatter;
use vhd_block::units::usize_from;

use super::agreement::Agreement;
use super::broken::Break;
use super::call::{Call, ServerError};
use super::handshake::Handshake;
use super::inbox::{Inbox, Receiver};
use super::{Address, ClientError, ClientOptions};
use crate::protocol::{Command, CommandFlags, HeaderStyle, ReplyHeader, RequestHeader};
use crate::tls::TlsClient;
use crate::transport::Transport;

/// How often a thread that waits for the server looks at the clock, at most.
const TICK: Duration = Duration::from_secs(1);

/// What a server is asked to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// The bytes of a write are `length` from this place in the buffers.
    pub(super) payload: Option<(&'a [IoSlice<'a>], usize)>,
}

impl Request<'_> {
    /// Whether it changes the export.
    pub(super) fn is_change(&self) -> bool {
        matches!(
            self.command,
            Command::Write | Command::WriteZeroes | Command::Trim | Command::Resize
        )
    }
}

/// A connection.
///
/// There is no thread that receives: of those that wait, one does (it has the baton). It takes headers; if one is of
/// its own request, what follows goes straight to where it is wanted; if it is of another, the baton goes to the thread
/// that waits for it, header and all.
#[derive(Debug)]
pub(super) struct Link {
    transport: Transport,
    agreement: Agreement,
    timeout: Duration,
    cookies: AtomicU64,
    table: Mutex<Table>,
    /// For the thread that has the baton.
    inbox: Mutex<Inbox>,
}

#[derive(Debug)]
struct Table {
    /// What wakes the threads whose requests, by their cookies, are not answered.
    waiting: HashMap<u64, Arc<Condvar>>,
    baton: Baton,
    broken: Option<Break>,
}

#[derive(Clone, Copy, Debug)]
enum Baton {
    Free,
    /// A thread receives.
    Held,
    /// This header is for the thread with its cookie.
    Passed(ReplyHeader),
}

fn cookie_of(header: &ReplyHeader) -> u64 {
    match header {
        ReplyHeader::Simple(reply) => reply.cookie,
        ReplyHeader::Chunk(chunk) => chunk.cookie,
    }
}

impl Link {
    /// Connects and negotiates.
    pub(super) fn open(
        address: &Address,
        export: &str,
        tls: Option<&TlsClient>,
        options: &ClientOptions,
    ) -> Result<Self, ClientError> {
        let deadline = Instant::now() + options.connect_timeout;
        let socket = address
            .connect(options.connect_timeout)
            .map_err(|source| ClientError::Connect {
                address: address.clone(),
                source,
            })?;
        let transport = Transport::new(socket);
        let agreement = Handshake::new(&transport, address, export, deadline).run(tls)?;
        let timeout = options.request_timeout;
        transport
            .set_timeouts(Some(timeout))
            .and_then(|()| transport.set_receive_timeout(Some(timeout.min(TICK))))
            .map_err(|source| ClientError::Negotiation {
                address: address.clone(),
                source,
            })?;
        Ok(Self {
            transport,
            agreement,
            timeout,
            cookies: AtomicU64::new(1),
            table: Mutex::new(Table {
                waiting: HashMap::new(),
                baton: Baton::Free,
                broken: None,
            }),
            inbox: Mutex::new(Inbox::new()),
        })
    }

    /// What was agreed on.
    pub(super) fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Sends a request and waits for its reply; the inner error is the server's.
    pub(super) fn call(
        &self,
        request: &Request<'_>,
        call: &mut Call<'_, '_>,
    ) -> Result<Result<(), ServerError>, Break> {
        call.begin(request.offset);
        let deadline = Instant::now() + self.timeout;
        let cookie = self.cookies.fetch_add(1, Ordering::Relaxed);
        let wakes = Arc::new(Condvar::new());
        {
            let mut table = self.table();
            if let Some(broken) = &table.broken {
                return Err(broken.clone());
            }
            table.waiting.insert(cookie, Arc::clone(&wakes));
        }
        let done = self
            .send(request, cookie)
            .and_then(|()| self.wait(cookie, &wakes, deadline, call));
        if let Err(broken) = done {
            return Err(self.break_off(broken));
        }
        Ok(call.result())
    }

    fn send(&self, request: &Request<'_>, cookie: u64) -> Result<(), Break> {
        let style = self.agreement.style.header_style();
        let mut flags = request.flags;
        let has_payload = request.payload.is_some();
        flags.set(CommandFlags::PAYLOAD_LEN, has_payload && style == HeaderStyle::Extended);
        let header = RequestHeader {
            flags,
            command: request.command,
            cookie,
            offset: request.offset,
            length: request.length,
        };
        let mut bytes = Vec::with_capacity(style.request_size());
        header.encode(style, &mut bytes);
        let mut parts: Vec<&[u8]> = vec![&bytes];
        if let Some((bufs, start)) = request.payload {
            let len = usize_from(request.length);
            let collected: Result<(), std::convert::Infallible> = scatter::for_each(bufs, start, len, |part, _| {
                parts.push(part);
                Ok(())
            });
            collected.unwrap_or_else(|never| match never {});
        }
        self.transport.send(&parts).map_err(|error| Break::of_io(&error))
    }

    /// Waits until the reply is whole, receiving if nobody else does.
    fn wait(&self, cookie: u64, wakes: &Condvar, deadline: Instant, call: &mut Call<'_, '_>) -> Result<(), Break> {
        loop {
            let first = self.take_baton(cookie, wakes, deadline)?;
            let passed = self.receive(first, cookie, deadline, call)?;
            let mut table = self.table();
            let Some(header) = passed else {
                table.waiting.remove(&cookie);
                table.baton = Baton::Free;
                if let Some(next) = table.waiting.values().next() {
                    next.notify_one();
                }
                return Ok(());
            };
            let Some(other) = table.waiting.get(&cookie_of(&header)) else {
                return Err(Break::protocol("a reply to a request that was not sent"));
            };
            other.notify_one();
            table.baton = Baton::Passed(header);
        }
    }

    /// Waits for the right to receive; with it may come a header that another thread took.
    fn take_baton(&self, cookie: u64, wakes: &Condvar, deadline: Instant) -> Result<Option<ReplyHeader>, Break> {
        let mut table = self.table();
        loop {
            if let Some(broken) = &table.broken {
                return Err(broken.clone());
            }
            let first = match table.baton {
                Baton::Free => None,
                Baton::Passed(header) if cookie_of(&header) == cookie => Some(header),
                Baton::Held | Baton::Passed(_) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Break::silent());
                    }
                    let woken = wakes.wait_timeout(table, left);
                    table = woken.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            };
            table.baton = Baton::Held;
            return Ok(first);
        }
    }

    /// Receives until the thread's own reply is whole, or returns the first header of another's.
    fn receive(
        &self,
        mut first: Option<ReplyHeader>,
        cookie: u64,
        deadline: Instant,
        call: &mut Call<'_, '_>,
    ) -> Result<Option<ReplyHeader>, Break> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let style = self.agreement.style;
        let mut receiver = Receiver {
            inbox: &mut inbox,
            transport: &self.transport,
            deadline,
        };
        loop {
            let header = match first.take() {
                Some(header) => header,
                None => receiver.header(style)?,
            };
            if cookie_of(&header) != cookie {
                return Ok(Some(header));
            }
            if call.take(header, style, &mut receiver)? {
                return Ok(None);
            }
        }
    }

    /// Ends the connection for all; returns how it ended first.
    pub(super) fn break_off(&self, broken: Break) -> Break {
        let mut table = self.table();
        let first = table.broken.get_or_insert(broken).clone();
        table.waiting.values().for_each(|wakes| wakes.notify_all());
        table.waiting.clear();
        drop(table);
        self.transport.close();
        first
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    /// Says good-bye, so that the server need not wonder.
    fn drop(&mut self) {
        if self.table().broken.is_none() {
            let request = Request {
                command: Command::Disconnect,
                flags: CommandFlags::empty(),
                offset: 0,
                length: 0,
                payload: None,
            };
            // Not for long: nobody waits for the answer.
            let _ = self.transport.set_timeouts(Some(TICK));
            let _ = self.send(&request, 0);
            self.transport.say_goodbye();
        }
        self.transport.close();
    }
}
