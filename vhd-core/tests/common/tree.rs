//! Random trees of differencing images with what each must read.

use std::path::{Path, PathBuf};

use super::disk::{create, write_session};
use super::rng::{Rng, chance};
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::image::{Preallocate, create_dynamic, create_fixed};
use vhd_core::units::usize_from;

/// A size that is no multiple of a block.
pub(crate) const SIZE: u64 = (5 << 20) + 1536;
const BLOCKS: [u64; 3] = [512 << 10, 1 << 20, 2 << 20];

/// An image of a tree.
pub(crate) struct Node {
    pub(crate) path: PathBuf,
    pub(crate) content: Vec<u8>,
    /// The nodes below it, itself first.
    pub(crate) chain: Vec<usize>,
}

/// A tree of so many images: fixed or dynamic at the base, blocks of all sizes, any depth and any number of
/// branches, written to and zeroed at random.
pub(crate) fn random_tree(dir: &Path, rng: &mut Rng, count: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for index in 0..count {
        let path = dir.join(format!("{index}.vhd"));
        let block_size = BLOCKS[rng.usize(..BLOCKS.len())];
        let mut node = if index == 0 {
            if chance(rng, 50) {
                create(&path, |file| create_dynamic(file, SIZE, block_size));
            } else {
                create(&path, |file| create_fixed(file, SIZE, Preallocate::Off));
            }
            Node {
                path,
                content: vec![0; usize_from(SIZE)],
                chain: vec![index],
            }
        } else {
            let deep = chance(rng, 60);
            let parent = &nodes[if deep { index - 1 } else { rng.usize(..index) }];
            create_child(&path, &parent.path, Some(block_size), &OpenOptions::new()).unwrap();
            Node {
                path,
                content: parent.content.clone(),
                chain: std::iter::once(index).chain(parent.chain.iter().copied()).collect(),
            }
        };
        let operations = rng.usize(..20);
        write_session(&node.path, &mut node.content, rng, operations);
        nodes.push(node);
    }
    nodes
}
