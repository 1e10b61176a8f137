//! The small images that are damaged.

use crate::common::build::{Locator, Parent, SECTOR, Sparse, fixed, id, utf16le};
use crate::common::rng::{random_bytes, seeded};
use crate::mutations::Subject;
use vhd_core::units::u64_from;

const BLOCK: usize = 4096;
pub(crate) const SIZE: usize = 6 * BLOCK - 3 * SECTOR;

pub(crate) fn dynamic() -> Subject {
    let mut rng = seeded(1, "dynamic");
    let spec = Sparse::new(u64_from(SIZE), BLOCK);
    let spec = spec
        .store_whole(&mut rng, 4)
        .store_whole(&mut rng, 1)
        .fill_randomly(&mut rng, 0);
    let spec = spec.store_sector(5 * 8 + 2, &random_bytes(&mut rng, SECTOR));
    Subject::sparse("dynamic", &spec, None)
}

pub(crate) fn differencing() -> Subject {
    let mut rng = seeded(2, "differencing");
    let parent_content = random_bytes(&mut rng, SIZE);
    let mut parent = Parent::named(id(9), "base.vhd");
    let absolute = Locator::new(1, b"W2ku", utf16le("C:\\vm\\base.vhd"));
    parent.locators.push(absolute);
    let spec = Sparse::child(u64_from(SIZE), BLOCK, id(1), parent);
    let spec = spec
        .store_whole(&mut rng, 3)
        .store_sector(8 + 5, &random_bytes(&mut rng, SECTOR));
    let spec = spec.store_sector(5 * 8, &random_bytes(&mut rng, SECTOR));
    Subject::sparse("differencing", &spec, Some(fixed(&parent_content, id(9))))
}

/// Without blocks an image can claim to be of any size.
pub(crate) fn empty() -> Subject {
    Subject::sparse("empty", &Sparse::new(u64_from(SIZE), BLOCK), None)
}

pub(crate) fn fixed_image() -> Subject {
    let content = random_bytes(&mut seeded(3, "fixed"), 8 * SECTOR);
    Subject::fixed("fixed", &content)
}
