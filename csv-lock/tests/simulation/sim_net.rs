//! A network that loses, doubles and delays messages, and in which nodes are cut off.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Result};
use std::time::Duration;

use csv_lock::{Listener, Net};

use crate::world::{Handle, Inner, Micros};

#[derive(Default)]
pub(crate) struct Mail {
    boxes: HashMap<String, Mailbox>,
    replies: HashMap<u64, Vec<u8>>,
    calls: u64,
}

struct Mailbox {
    node: usize,
    task: usize,
    owner: u64,
    messages: VecDeque<(Vec<u8>, Caller)>,
}

/// Who waits for an answer.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    call: u64,
    task: usize,
    node: usize,
}

/// A node's way to the network.
#[derive(Clone)]
pub(crate) struct SimNet(pub Handle);

pub(crate) struct SimListener {
    handle: Handle,
    address: String,
    owner: u64,
}

impl Inner {
    fn connected(&self, a: usize, b: usize) -> bool {
        let cut = |node: usize| self.nodes[node].cut_off_until > self.now;
        a == b || !(cut(a) || cut(b))
    }
}

impl Net for SimNet {
    type Listener = SimListener;

    fn listen(&self, address: &str) -> Result<SimListener> {
        let mut inner = self.0.pass(self.0.latency());
        inner.mail.calls += 1;
        let owner = inner.mail.calls;
        let mailbox = Mailbox {
            node: self.0.node,
            task: self.0.task,
            owner,
            messages: VecDeque::new(),
        };
        inner.mail.boxes.insert(address.to_owned(), mailbox);
        Ok(SimListener {
            handle: self.0.clone(),
            address: address.to_owned(),
            owner,
        })
    }

    fn call(&self, address: &str, message: &[u8], limit: Duration) -> Result<Vec<u8>> {
        let limit = Micros::try_from(limit.as_micros()).unwrap();
        let mut inner = self.0.pass(self.0.latency());
        inner.mail.calls += 1;
        let caller = Caller {
            call: inner.mail.calls,
            task: self.0.task,
            node: self.0.node,
        };
        let Some(node) = inner.mail.boxes.get(address).map(|mailbox| mailbox.node) else {
            return Err(ErrorKind::ConnectionRefused.into());
        };
        let copies = match inner.rng.u32(..100) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        if inner.connected(self.0.node, node) {
            let mailbox = inner.mail.boxes.get_mut(address).unwrap();
            for _ in 0..copies {
                mailbox.messages.push_back((message.to_vec(), caller));
            }
            let task = mailbox.task;
            inner.wake(task, 0);
        }
        drop(inner);
        let mut inner = self.0.wait(limit);
        inner
            .mail
            .replies
            .remove(&caller.call)
            .ok_or_else(|| ErrorKind::TimedOut.into())
    }
}

impl Listener for SimListener {
    type Caller = Caller;

    fn accept(&mut self, most: usize, limit: Duration) -> Result<Vec<(Vec<u8>, Caller)>> {
        let limit = Micros::try_from(limit.as_micros()).unwrap();
        let wait = {
            let inner = self.handle.world.lock();
            let mailbox = inner.mail.boxes.get(&self.address);
            mailbox.is_none_or(|mailbox| mailbox.messages.is_empty())
        };
        let mut inner = self.handle.wait(if wait { limit } else { 1 });
        let Some(mailbox) = inner.mail.boxes.get_mut(&self.address) else {
            return Ok(Vec::new());
        };
        let count = mailbox.messages.len().min(most);
        Ok(mailbox.messages.drain(..count).collect())
    }

    fn reply(&mut self, caller: Caller, message: Vec<u8>) {
        let mut inner = self.handle.world.lock();
        let lost = inner.rng.u32(..100) == 0;
        if lost || !inner.connected(self.handle.node, caller.node) {
            return;
        }
        inner.mail.replies.insert(caller.call, message);
        let delay = inner.rng.u64(20..200);
        inner.wake(caller.task, delay);
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut inner = self.handle.world.lock();
        if inner
            .mail
            .boxes
            .get(&self.address)
            .is_some_and(|mailbox| mailbox.owner == self.owner)
        {
            inner.mail.boxes.remove(&self.address);
        }
    }
}
