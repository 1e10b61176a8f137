//! What is asked of the servers.

use vhd_nbd::protocol::Command;

/// Bytes of a block of the images.
const BLOCK: u64 = 2 << 20;

/// The offset of a request.
pub(crate) struct Place(pub(crate) u64);

/// Where the requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Random,
    Sequential,
    /// A new block each, in random order, until there are no more.
    NewBlocks,
}

/// One kind of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) command: Command,
    /// Bytes per request.
    pub(crate) length: usize,
    /// Requests in flight.
    pub(crate) depth: usize,
    pub(crate) order: Order,
    /// Whether the disk has its stamps where this load reads.
    pub(crate) is_stamped: bool,
}

const fn load(name: &'static str, command: Command, length: usize, depth: usize, order: Order) -> Load {
    Load {
        name,
        command,
        length,
        depth,
        order,
        is_stamped: !matches!(order, Order::NewBlocks),
    }
}

/// All loads on disks whose blocks are all there. The reads come first: writes change what a chain looks like.
pub(crate) const LOADS: [Load; 6] = [
    load("read 4k d1", Command::Read, 4 << 10, 1, Order::Random),
    load("read 4k d32", Command::Read, 4 << 10, 32, Order::Random),
    load("read 1M d4", Command::Read, 1 << 20, 4, Order::Sequential),
    load("write 4k d1", Command::Write, 4 << 10, 1, Order::Random),
    load("write 4k d32", Command::Write, 4 << 10, 32, Order::Random),
    load("write 1M d4", Command::Write, 1 << 20, 4, Order::Sequential),
];

/// The loads on empty disks.
pub(crate) const NEW_BLOCKS: [Load; 2] = [
    load("new blocks d1", Command::Write, 4 << 10, 1, Order::NewBlocks),
    load("new blocks d16", Command::Write, 4 << 10, 16, Order::NewBlocks),
];

impl Load {
    /// Where its requests go on a disk of `size` bytes.
    pub(crate) fn places(&self, size: u64, mut random: fastrand::Rng) -> Box<dyn Iterator<Item = Place>> {
        let length = u64::try_from(self.length).unwrap_or(u64::MAX);
        match self.order {
            Order::Random => Box::new(std::iter::repeat_with(move || {
                Place(random.u64(0..size / length) * length)
            })),
            Order::Sequential => Box::new((0..size / length).cycle().map(move |index| Place(index * length))),
            Order::NewBlocks => {
                let in_block = BLOCK / length;
                let mut blocks: Vec<u64> = (0..size / BLOCK).collect();
                random.shuffle(&mut blocks);
                Box::new(
                    blocks
                        .into_iter()
                        .map(move |block| Place(block * BLOCK + random.u64(0..in_block) * length)),
                )
            }
        }
    }
}
