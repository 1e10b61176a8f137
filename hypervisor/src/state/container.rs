//! Sections with lengths and digests.
//!
//! ```text
//!   0   8 bytes  magic            8   u32  version         12  u32  number of sections
//!  16  u64  bytes in all, the digest at the end included
//!  24  sections: u32 length of the header, header (prost), body
//!      32 bytes: digest (BLAKE3) of everything before
//! ```
//! Numbers are little endian. A header has the digest of its body too, so that the section that was altered is named.

use prost::Message as _;

use super::StateError;
use super::messages::Header;

/// The first bytes.
pub(super) const MAGIC: &[u8; 8] = b"VHDSTAT\n";
/// The layout of the container.
const VERSION: u32 = 1;
/// Bytes of the part before the sections.
pub(super) const PREFACE: usize = 24;
/// Bytes of a digest.
const DIGEST: usize = 32;
/// Bytes of the longest container.
pub(super) const LONGEST: u64 = 64 << 20;
/// Bytes of the longest header of a section.
const LONGEST_HEADER: usize = 4096;
/// The most sections.
const MOST_SECTIONS: u32 = 256;

/// A section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Section {
    /// What is in it.
    pub(crate) kind: String,
    /// Which of several of that kind.
    pub(crate) instance: u32,
    pub(crate) version: u32,
    /// What a reader must know.
    pub(crate) requires: Vec<String>,
    pub(crate) body: Vec<u8>,
}

/// A section of the first version of its kind.
pub(crate) fn section(kind: &str, instance: u32, message: &impl prost::Message) -> Section {
    Section {
        kind: kind.to_owned(),
        instance,
        version: 1,
        requires: Vec::new(),
        body: message.encode_to_vec(),
    }
}

/// The container as bytes.
pub(super) fn encode(sections: &[Section]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(u32::try_from(sections.len()).unwrap_or(u32::MAX).to_le_bytes());
    // The length follows when it is known.
    bytes.extend([0; 8]);
    for section in sections {
        let header = Header {
            kind: section.kind.clone(),
            instance: section.instance,
            version: section.version,
            requires: section.requires.clone(),
            length: vhd_block::units::u64_from(section.body.len()),
            digest: blake3::hash(&section.body).as_bytes().to_vec(),
        };
        let header = header.encode_to_vec();
        bytes.extend(u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(header);
        bytes.extend(&section.body);
    }
    let total = vhd_block::units::u64_from(bytes.len() + DIGEST);
    bytes[16..PREFACE].copy_from_slice(&total.to_le_bytes());
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

/// Bytes of the container that begins so.
pub(super) fn length(preface: &[u8; PREFACE]) -> Result<u64, StateError> {
    let (magic, rest) = preface.split_at(MAGIC.len());
    if magic.iter().all(|byte| *byte == 0) {
        return Err(StateError::Unfinished);
    }
    if magic != MAGIC {
        return Err(StateError::NotAState);
    }
    let version = u32::from_le_bytes(rest[..4].try_into().unwrap_or_default());
    if version != VERSION {
        return Err(StateError::Version {
            what: "the file".to_owned(),
            found: version,
            known: VERSION,
        });
    }
    let length = u64::from_le_bytes(rest[8..].try_into().unwrap_or_default());
    if !(vhd_block::units::u64_from(PREFACE + DIGEST)..=LONGEST).contains(&length) {
        return Err(altered("the length of its sections", 16));
    }
    Ok(length)
}

/// The sections of a container of the length that [`length`] says.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Section>, StateError> {
    let Some((content, digest)) = bytes.split_last_chunk::<DIGEST>() else {
        return Err(altered("the end of its sections", 0));
    };
    let preface: &[u8; PREFACE] = content
        .first_chunk()
        .ok_or_else(|| altered("the beginning of its sections", 0))?;
    let count = u32::from_le_bytes(preface[12..16].try_into().unwrap_or_default());
    if count > MOST_SECTIONS {
        return Err(altered("the number of its sections", 12));
    }
    let mut sections = Vec::new();
    let mut at = PREFACE;
    for _ in 0..count {
        let (section, end) = decode_one(content, at)?;
        sections.push(section);
        at = end;
    }
    if at != content.len() || *blake3::hash(content).as_bytes() != *digest {
        return Err(altered("the order of its sections", PREFACE));
    }
    Ok(sections)
}

/// The section at an offset, and where it ends.
fn decode_one(content: &[u8], at: usize) -> Result<(Section, usize), StateError> {
    let broken = || altered("the header of a section", at);
    let part = |start: usize, len: usize| content.get(start..start.checked_add(len)?);
    let len = part(at, 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes);
    let len = len
        .and_then(|len| usize::try_from(len).ok())
        .filter(|len| *len <= LONGEST_HEADER);
    let len = len.ok_or_else(broken)?;
    let header = part(at + 4, len).ok_or_else(broken)?;
    let header = Header::decode(header).map_err(|_| broken())?;
    let start = at + 4 + len;
    let length = usize::try_from(header.length).map_err(|_| broken())?;
    let body = part(start, length).ok_or_else(broken)?;
    if blake3::hash(body).as_bytes().as_slice() != header.digest {
        return Err(altered(&format!("section {} {}", header.kind, header.instance), start));
    }
    let section = Section {
        kind: header.kind,
        instance: header.instance,
        version: header.version,
        requires: header.requires,
        body: body.to_vec(),
    };
    Ok((section, start + length))
}

fn altered(what: &str, offset: usize) -> StateError {
    StateError::Altered {
        what: what.to_owned(),
        offset: vhd_block::units::u64_from(offset),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sections() -> Vec<Section> {
        let section = |kind: &str, instance, body: &[u8]| Section {
            kind: kind.to_owned(),
            instance,
            version: 1,
            requires: vec!["a".to_owned()],
            body: body.to_vec(),
        };
        vec![
            section("one", 0, b""),
            section("two", 7, b"body"),
            section("two", 8, &[0; 300]),
        ]
    }

    fn read(bytes: &[u8]) -> Result<Vec<Section>, StateError> {
        let preface = bytes.first_chunk().ok_or(StateError::NotAState)?;
        let length = usize::try_from(length(preface)?).unwrap();
        decode(
            bytes
                .get(..length)
                .ok_or(StateError::Truncated { expected: 0, found: 0 })?,
        )
    }

    #[test]
    fn sections_come_back() {
        assert_eq!(read(&encode(&sections())).unwrap(), sections());
        assert_eq!(read(&encode(&[])).unwrap(), []);
    }

    #[test]
    fn every_byte_that_is_altered_and_every_cut_is_noticed() {
        let bytes = encode(&sections());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut altered = bytes.clone();
                altered[at] ^= 1 << bit;
                assert!(read(&altered).is_err(), "byte {at} bit {bit}");
            }
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn sections_that_are_dropped_swapped_or_twice_are_noticed() {
        let bytes = encode(&sections());
        let [one, two, three] = [0, 1, 2].map(|number| encode(&sections()[number..=number]));
        let body = |bytes: &[u8]| bytes[PREFACE..bytes.len() - DIGEST].to_vec();
        let ends = (&bytes[..PREFACE], &bytes[bytes.len() - DIGEST..]);
        for order in [[&two, &one, &three], [&one, &one, &three], [&one, &three, &three]] {
            let order: Vec<u8> = order.into_iter().flat_map(|section| body(section)).collect();
            assert!(read(&[ends.0, &order, ends.1].concat()).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            if bytes.len() >= PREFACE {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                let len = bytes.len() as u64;
                bytes[16..24].copy_from_slice(&len.to_le_bytes());
                let _ = read(&bytes);
            }
        }
    }
}
