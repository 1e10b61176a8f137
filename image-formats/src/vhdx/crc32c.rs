//! CRC-32C (Castagnoli), the checksum of headers, region tables and log entries.

const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ POLYNOMIAL
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        let mut table = 1;
        while table < 8 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xFF) as usize];
            table += 1;
        }
        byte += 1;
    }
    tables
}

/// Adds `bytes` to a checksum.
fn update(crc: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut crc = crc;
    for word in words {
        let number = u64::from_le_bytes(*word) ^ u64::from(crc);
        crc = 0;
        for (index, byte) in number.to_le_bytes().into_iter().enumerate() {
            crc ^= TABLES[7 - index][usize::from(byte)];
        }
    }
    for &byte in rest {
        crc = (crc >> 8) ^ TABLES[0][usize::from(crc as u8 ^ byte)];
    }
    crc
}

/// The checksum of a structure that has its own checksum in the four bytes at `at`, which count as zero.
pub(super) fn without_field(bytes: &[u8], at: usize) -> u32 {
    let crc = update(!0, &bytes[..at]);
    let crc = update(crc, &[0; 4]);
    !update(crc, &bytes[at + 4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(!update(!0, b"123456789"), 0xE306_9283);
        assert_eq!(!update(!0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(
            without_field(b"1234\xAA\xAA\xAA\xAA56789", 4),
            !update(!0, b"1234\x00\x00\x00\x0056789")
        );
    }
}
