//! Any bytes as a VHDX: a file that is zero but for some pieces, with checksums that are right.

use std::sync::Arc;

use image_formats::LayeredImage;
use image_formats::vhdx::Image;
use vhd_block::Disk;

use super::probe;

/// Bytes in a piece.
const PIECE: usize = 512;
/// The length of a file is a multiple of this.
const UNIT: usize = 64 << 10;
/// Headers and region tables: where they are, and how long.
const CHECKED: [(usize, usize); 4] = [
    (64 << 10, 4096),
    (128 << 10, 4096),
    (192 << 10, UNIT),
    (256 << 10, UNIT),
];
/// Extents of a disk that are looked at.
const EXTENTS: usize = 500;

/// Two bytes for the length of the file in units of 64 KiB, then pieces: two bytes for the number of 512 bytes, and these.
/// Opens the file, alone, and reads what it has.
pub fn vhdx(bytes: &[u8]) {
    let Some(file) = decode(bytes) else { return };
    let file = Arc::new(file);
    let (checked, broken) = match Image::check(Arc::clone(&file) as _) {
        Ok(found) => found,
        Err(_) => return,
    };
    let opened = Image::open(file);
    assert_eq!(opened.is_ok(), checked.is_some() && broken.is_empty());
    if let Ok(image) = opened {
        let disk = LayeredImage::new(vec![Arc::new(image)], Some([0; 16]));
        probe::read(&Disk::new(Arc::new(disk)), EXTENTS);
    }
}

/// The file. At most 16 MiB of it are kept, so that an input is run in no time.
fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let (units, rest) = bytes.split_first_chunk::<2>()?;
    let len = usize::from(u16::from_le_bytes(*units)).min(256) * UNIT;
    let mut file = vec![0; len];
    for record in rest.chunks_exact(2 + PIECE) {
        let at = usize::from(u16::from_le_bytes([record[0], record[1]])) * PIECE;
        if let Some(piece) = file.get_mut(at..at + PIECE) {
            piece.copy_from_slice(&record[2..]);
        }
    }
    for (at, len) in CHECKED {
        if let Some(part) = file.get_mut(at..at + len) {
            fix(part);
        }
    }
    fix_log(&mut file);
    Some(file)
}

/// The entries at the start of the log, as far as they say how long they are.
fn fix_log(file: &mut [u8]) {
    let mut at = 1 << 20;
    while let Some(header) = file.get(at..at + 64)
        && header.starts_with(b"loge")
    {
        let len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if !(4096..=1 << 20).contains(&len) || at + len > file.len() {
            return;
        }
        fix(&mut file[at..at + len]);
        at += len;
    }
}

fn fix(part: &mut [u8]) {
    part[4..8].fill(0);
    let step = |crc: u32| (0..8).fold(crc, |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()));
    let table: Vec<u32> = (0..256).map(step).collect();
    let crc = !part
        .iter()
        .fold(!0, |crc: u32, byte| (crc >> 8) ^ table[(crc as u8 ^ byte) as usize]);
    part[4..8].copy_from_slice(&crc.to_le_bytes());
}
