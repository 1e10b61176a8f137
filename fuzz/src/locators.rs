//! Any bytes as the locators of a child.

use vhd_core::chain::{ChainError, OpenOptions};
use vhd_core::format::{DynamicHeader, FOOTER_SIZE, HEADER_SIZE, PlatformCode, decode_locator};

use super::lab::Lab;

const CODES: [PlatformCode; 6] = [
    PlatformCode::Wi2r,
    PlatformCode::Wi2k,
    PlatformCode::W2ru,
    PlatformCode::W2ku,
    PlatformCode::Mac,
    PlatformCode::MacX,
];

/// The first byte says which kind of locator the rest is. A path leads to the parent, or the chain is refused: no other disk
/// is taken for it.
pub fn locators(input: &[u8]) {
    let Some((code, data)) = input.split_first() else {
        return;
    };
    let code = CODES[usize::from(*code) % CODES.len()];
    let _ = decode_locator(code, data);
    let lab = Lab::new();
    let mut bytes = std::fs::read(lab.path("middle.avhd")).expect("it is there");
    let header =
        DynamicHeader::decode(bytes[FOOTER_SIZE..].first_chunk().expect("it is long enough")).expect("it is sound");
    let mut changed = header.clone();
    let kept = data.len().min(512);
    for locator in changed.locators.iter_mut().flatten() {
        let at = usize::try_from(locator.offset).expect("it is in the file");
        bytes[at..at + kept].copy_from_slice(&data[..kept]);
        (locator.code, locator.length) = (code, u32::try_from(kept).expect("it is short"));
    }
    bytes[FOOTER_SIZE..FOOTER_SIZE + HEADER_SIZE].copy_from_slice(&changed.encode());
    lab.put("middle.avhd", &bytes);
    match OpenOptions::new().open(&lab.path("middle.avhd")) {
        Ok(opened) => {
            let parent = opened.layers().nth(1).and_then(|layer| layer.layer.image());
            assert_eq!(parent.map(|image| image.unique_id()), Some(header.parent_id));
        }
        Err(error) => assert!(
            matches!(
                error,
                ChainError::ParentMissing { .. } | ChainError::ParentMismatch { .. } | ChainError::Cycle { .. }
            ),
            "{error}"
        ),
    }
}
