//! What a partition holds: exactly one file system, or a reason to leave it alone.

use std::cell::RefCell;

use crate::bytes::{byte, has};
use crate::window::Window;
use crate::{FreeMap, Unusable, container, exfat, ext, fat, ntfs, swap, xfs};

type Reader = fn(&Window<'_>) -> Result<FreeMap, Unusable>;

/// A file system that can be read here.
struct Kind {
    name: &'static str,
    recognise: fn(&Window<'_>) -> Result<bool, Unusable>,
    read: Reader,
}

const KINDS: &[Kind] = &[
    Kind {
        name: ntfs::NAME,
        recognise: ntfs::recognise,
        read: ntfs::free_space,
    },
    Kind {
        name: exfat::NAME,
        recognise: exfat::recognise,
        read: exfat::free_space,
    },
    Kind {
        name: fat::NAME,
        recognise: fat::recognise,
        read: fat::free_space,
    },
    Kind {
        name: ext::NAME,
        recognise: ext::recognise,
        read: ext::free_space,
    },
    Kind {
        name: xfs::NAME,
        recognise: xfs::recognise,
        read: xfs::free_space,
    },
    Kind {
        name: swap::NAME,
        recognise: swap::recognise,
        read: swap::free_space,
    },
];

/// The file system by its name, and what is free in it.
pub(crate) fn probe(window: &Window<'_>) -> (Option<&'static str>, Result<FreeMap, Unusable>) {
    match choose(window) {
        Ok(kind) => {
            let structures = RefCell::new(window.units());
            let window = window.for_reader(kind.name, &structures);
            let finished = (kind.read)(&window).and_then(|mut map| {
                map.flush();
                // INV-45: what a reader relied on was found in space that must be in use.
                if map.intersects(&structures.borrow()) {
                    return Err(window.damaged("it calls its own structures free"));
                }
                Ok(map)
            });
            (Some(kind.name), finished)
        }
        Err(reason) => (None, Err(reason)),
    }
}

/// The name of the one file system that a partition holds.
pub(crate) fn file_system(window: &Window<'_>) -> Result<&'static str, Unusable> {
    Ok(choose(window)?.name)
}

fn choose(window: &Window<'_>) -> Result<&'static Kind, Unusable> {
    if let Some(container) = container::by_signature(window)? {
        return Err(Unusable::Container(container));
    }
    let mut chosen: Option<&Kind> = None;
    for kind in KINDS {
        if (kind.recognise)(window)? {
            if let Some(other) = chosen {
                return Err(Unusable::Ambiguous(other.name, kind.name));
            }
            chosen = Some(kind);
        }
    }
    chosen.ok_or(Unusable::Unrecognised)
}

/// The name of what a disk without partitions holds, if that is known.
pub(crate) fn recognise(window: &Window<'_>) -> Result<Option<&'static str>, Unusable> {
    if let Some(container) = container::by_signature(window)? {
        return Ok(Some(container));
    }
    for kind in KINDS {
        if (kind.recognise)(window)? {
            return Ok(Some(kind.name));
        }
    }
    Ok(None)
}

/// The file system that the first sector is the boot sector of.
pub(crate) fn boot_sector_file_system(sector: &[u8]) -> Option<&'static str> {
    let is = |name: &[u8]| has(sector, 3, name);
    match () {
        () if is(b"NTFS    ") => Some(ntfs::NAME),
        () if is(b"EXFAT   ") => Some(exfat::NAME),
        () if fat::is_boot_sector(sector) => Some(fat::NAME),
        () => None,
    }
}

/// Whether a boot sector starts with a jump and ends with its signature.
pub(crate) fn is_bootable(sector: &[u8]) -> bool {
    has(sector, 510, &[0x55, 0xAA]) && matches!(byte(sector, 0), 0xEB | 0xE9)
}

/// Bits of `found` that are not among the `known` ones are a reason to stop.
pub(crate) fn known_features(what: &'static str, found: u32, known: u32) -> Result<(), Unusable> {
    match found & !known {
        0 => Ok(()),
        bits => Err(Unusable::UnknownFeatures { what, bits }),
    }
}
