//! Features and configuration space of a disk.

use vhd_block::{Disk, LOGICAL_BLOCK};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Entries of the queue.
pub(super) const QUEUE_SIZE: u16 = 128;
/// Ranges of one discard.
pub(super) const MAX_RANGES: u32 = 32;
/// Sectors of one range of a discard: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// Where the guest chooses between write-back (1) and write-through (0).
pub(super) const WRITEBACK: usize = 32;
/// Bytes of the configuration.
const LEN: usize = 60;

/// The configuration space as the guest reads it.
pub(super) type Config = [u8; LEN];

/// What is offered.
pub(super) fn features(read_only: bool) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
    ];
    let kind: &[u32] = if read_only {
        &[VIRTIO_BLK_F_RO]
    } else {
        &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
    };
    always.iter().chain(kind).fold(0, |bits, bit| bits | 1 << bit)
}

/// Whether a write is durable when it is answered, for a driver that took `features`: it cannot flush, so it cannot wait.
pub(super) fn must_write_through(features: u64) -> bool {
    features & (1 << VIRTIO_BLK_F_FLUSH) == 0
}

/// Whether the driver may choose between write-back and write-through.
pub(super) fn may_choose_writeback(features: u64) -> bool {
    features & (1 << VIRTIO_BLK_F_CONFIG_WCE) != 0
}

/// The configuration of a disk.
pub(super) fn config(disk: &Disk) -> Config {
    let info = disk.info();
    let blocks = |bytes: u32| bytes / info.logical_block_size.max(1);
    let mut config = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(disk.size() / u64::from(LOGICAL_BLOCK)).to_le_bytes());
    // A descriptor each for header and status.
    put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
    put(20, &info.logical_block_size.to_le_bytes());
    let exponent = blocks(info.physical_block_size).max(1).ilog2();
    put(24, &[u8::try_from(exponent).unwrap_or(0)]);
    let minimum = u16::try_from(blocks(info.physical_block_size)).unwrap_or(1);
    put(26, &minimum.to_le_bytes());
    put(28, &blocks(info.preferred_transfer).to_le_bytes());
    put(WRITEBACK, &[1]);
    put(34, &1_u16.to_le_bytes());
    // Discards and zeroes have the same limits.
    for at in [36, 48] {
        put(at, &MAX_RANGE_SECTORS.to_le_bytes());
        put(at + 4, &MAX_RANGES.to_le_bytes());
    }
    put(44, &blocks(info.physical_block_size).to_le_bytes());
    put(56, &[u8::from(info.capabilities.discard)]);
    config
}
