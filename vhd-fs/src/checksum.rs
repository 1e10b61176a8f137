//! Checksums of file systems: CRC-32C of ext4 and XFS, CRC-16 of the group descriptors of ext4.

const fn table32(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ polynomial } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
}

const CASTAGNOLI: [u32; 256] = table32(0x82F6_3B78);
const CRC16: [u32; 256] = table32(0xA001);

fn update(table: &[u32; 256], sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |sum, &byte| {
        let index = (sum as u8 ^ byte) as usize;
        table[index] ^ sum >> 8
    })
}

/// CRC-32C over bytes, going on from `sum`; neither the start nor the end is inverted.
pub(crate) fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    update(&CASTAGNOLI, sum, bytes)
}

/// CRC-16 over bytes, going on from `sum`.
pub(crate) fn crc16(sum: u16, bytes: &[u8]) -> u16 {
    update(&CRC16, u32::from(sum), bytes) as u16
}

/// CRC-32C over bytes in which the checksum itself, the four bytes at `at`, counts as zero.
pub(crate) fn crc32c_without(bytes: &[u8], at: usize) -> u32 {
    let (before, behind) = bytes.split_at(at.min(bytes.len()));
    let sum = crc32c(crc32c(!0, before), &[0; 4]);
    crc32c(sum, behind.get(4..).unwrap_or_default())
}

/// Whether a checksum is the one that is stored. A fuzzer can't guess them, and looks at what is behind.
pub(crate) fn matches<T: PartialEq>(computed: T, stored: T) -> bool {
    cfg!(fuzzing) || computed == stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
        // CRC-16/MODBUS.
        assert_eq!(crc16(0xFFFF, b"123456789"), 0x4B37);
        assert_eq!(crc32c_without(b"12345678", 2), crc32c(!0, b"12\x00\x00\x00\x0078"));
    }
}
