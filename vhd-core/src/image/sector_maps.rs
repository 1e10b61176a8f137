//! The sector maps of an image, loaded when first needed.
//!
//! A leaf that is written keeps what it loads (1/4096 of the partly filled blocks it touched, or 48 bytes for a small block:
//! a map that bits are set in must not be dropped, and every request asks for one). Any other image keeps a bounded number:
//! an ancestor, of which a chain may have thousands and which is asked once per block, the fewer the deeper it lies.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::sector_map::SectorMap;
use crate::units::{BlockIndex, u64_from, usize_from};

/// Blocks per lazily allocated group: an image of a million blocks without maps then costs 32 KiB.
const GROUP: usize = 512;

/// Bytes of sector maps that a leaf keeps that is only read.
const LEAF_BYTES: u64 = 64 << 20;

/// Bytes of sector maps that the first ancestor keeps. Those of the deepest chain together keep less than 300 times that.
const ANCESTOR_BYTES: u64 = 1 << 20;

/// Ancestors down to this depth keep about as much.
const NEAR: u64 = 64;

/// Bytes that the cache itself takes for each map.
const ENTRY_BYTES: u64 = 64;

/// Maps that a cache is made for; it grows to more.
const EXPECTED_MAPS: u64 = 16 << 10;

type Group = Box<[OnceLock<SectorMap>]>;

/// The loaded maps.
pub(super) enum SectorMaps {
    /// Of a leaf: never dropped.
    Resident(Box<[OnceLock<Group>]>),
    /// Of an ancestor.
    Cached(Box<Cache<u32, Arc<SectorMap>, MapBytes>>),
}

/// A map in use.
pub(super) enum MapRef<'a> {
    Resident(&'a SectorMap),
    Cached(Arc<SectorMap>),
}

/// Weighs a map by its bytes.
#[derive(Clone)]
pub(super) struct MapBytes;

impl Weighter<u32, Arc<SectorMap>> for MapBytes {
    fn weight(&self, _: &u32, map: &Arc<SectorMap>) -> u64 {
        map.memory() + ENTRY_BYTES
    }
}

impl Deref for MapRef<'_> {
    type Target = SectorMap;

    fn deref(&self) -> &SectorMap {
        match self {
            Self::Resident(map) => map,
            Self::Cached(map) => map,
        }
    }
}

impl SectorMaps {
    /// For a leaf, to be written, of `blocks` blocks.
    pub(super) fn resident(blocks: u64) -> Self {
        let groups = usize_from(blocks).div_ceil(GROUP);
        Self::Resident((0..groups).map(|_| OnceLock::new()).collect())
    }

    /// For an image that is only read, so many layers below the leaf; a bitmap of it takes `map_bytes`.
    pub(super) fn cached(map_bytes: u64, depth: u64) -> Self {
        let capacity = match depth {
            0 => LEAF_BYTES,
            depth => ANCESTOR_BYTES * NEAR / (NEAR + depth),
        };
        let items = (capacity / (map_bytes + ENTRY_BYTES)).clamp(1, EXPECTED_MAPS);
        Self::Cached(Box::new(Cache::with_weighter(usize_from(items), capacity, MapBytes)))
    }

    /// The map of `block` if it is here.
    pub(super) fn get(&self, block: BlockIndex) -> Option<MapRef<'_>> {
        match self {
            Self::Resident(_) => self.resident_map(block).map(MapRef::Resident),
            Self::Cached(cache) => cache.get(&block.0).map(MapRef::Cached),
        }
    }

    /// Keeps a map that was read from the file. Of two readers at once the first one's map stays.
    pub(super) fn insert_loaded(&self, block: BlockIndex, map: SectorMap) -> MapRef<'_> {
        match self {
            Self::Resident(groups) => {
                let cell = resident_cell(groups, block);
                let mut map = Some(map);
                MapRef::Resident(cell.get_or_init(|| map.take().expect("initialised once")))
            }
            Self::Cached(cache) => {
                let map = Arc::new(map);
                cache.insert(block.0, Arc::clone(&map));
                MapRef::Cached(map)
            }
        }
    }

    /// The map of `block` if it is kept for good; `None` too in an ancestor.
    pub(super) fn resident_map(&self, block: BlockIndex) -> Option<&SectorMap> {
        match self {
            Self::Resident(groups) => groups[block.as_usize() / GROUP].get()?[block.as_usize() % GROUP].get(),
            Self::Cached(_) => None,
        }
    }

    /// Puts the map of a block that had no space until now. The caller holds the block's stripe.
    pub(super) fn insert_new(&self, block: BlockIndex, map: SectorMap) {
        if let Self::Resident(groups) = self {
            let fresh = resident_cell(groups, block).set(map).is_ok();
            // Not a debug assertion: the bits of the map that is there already would be lost in silence.
            assert!(fresh, "a block without space has no map");
        }
    }
}

fn resident_cell(groups: &[OnceLock<Group>], block: BlockIndex) -> &OnceLock<SectorMap> {
    let index = block.as_usize();
    let group = groups[index / GROUP].get_or_init(|| (0..GROUP).map(|_| OnceLock::new()).collect());
    &group[index % GROUP]
}

const _: () = assert!(u64_from(GROUP).is_power_of_two());
