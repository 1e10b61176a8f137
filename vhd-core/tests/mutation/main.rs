//! Every small damage to small images: cut at every byte, every byte of the metadata changed, every field set to
//! extremes, and random combinations, with the checksums left wrong and repaired.
//!
//! For each of them: nothing panics, hangs or takes memory by an unchecked number; a checksum that does not match
//! never gives wrong data; what opens can be read to the end; what opens for writing keeps what is written to it,
//! and nothing else changes; the checker finds a broken rule exactly where opening does; and a repair gives a sound
//! image that reads what could be read before, or refuses.

#[path = "../common/mod.rs"]
mod common;
mod exercise;
mod memory_use;
mod mend;
mod mutations;
mod subjects;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::announce;
use common::build::{FOOTER, HEADER};
use common::disk::{assert_same, read_all};
use exercise::{Outcome, Watchdog, exercise};
use mend::{Mended, mend};
use mutations::{Mutation, Subject};
use vhd_core::ErrorKind;
use vhd_core::chain::OpenOptions;

/// What one image takes at most, whatever it claims.
const MEMORY_LIMIT: isize = 4 << 20;

/// Applies the mutations one after the other and says how many there were.
fn run(subject: &Subject, family: &str, mutations: impl Iterator<Item = Mutation>) {
    let watchdog = Watchdog::start();
    let (mut opened, mut refused, mut most) = (0_u64, 0_u64, 0);
    for mutation in mutations {
        let Some(bytes) = mutation.apply(subject) else { continue };
        watchdog.begin(mutation);
        let work = || exercise(subject, &bytes, mutation.expected(subject));
        let (outcome, memory) = memory_use::measure(|| catch_unwind(AssertUnwindSafe(work)));
        match outcome {
            Ok(Outcome::Opened) => opened += 1,
            Ok(Outcome::Refused) => refused += 1,
            Err(_) => panic!("{} image, {mutation:x?}", subject.name),
        }
        assert!(
            memory < MEMORY_LIMIT,
            "{} image, {mutation:x?}: {memory} bytes",
            subject.name
        );
        most = most.max(memory);
    }
    announce(&format!(
        "{} image, {family}: {} mutations, {opened} of them opened, {refused} refused; at most {} KiB of memory",
        subject.name,
        opened + refused,
        most >> 10
    ));
    assert!(opened + refused > 0);
}

fn cut(subject: &Subject) {
    run(subject, "cut", (0..=subject.bytes.len()).map(Mutation::Cut));
    let grown = (1..1100).map(|more| Mutation::Cut(subject.bytes.len() + more));
    run(subject, "extended", grown);
}

fn bytes(subject: &Subject) {
    run(subject, "bytes", subject.metadata().flat_map(Mutation::all_of_byte));
}

fn sealed_bytes(subject: &Subject) {
    let places = subject.metadata();
    let mutations = places.flat_map(Mutation::all_of_byte).filter_map(Mutation::sealed);
    run(subject, "bytes with repaired checksums", mutations);
}

fn fields(subject: &Subject) {
    run(subject, "single fields", mutations::single_fields(subject));
    run(subject, "several fields", (0..12_000).map(Mutation::Fields));
}

fn noise(subject: &Subject) {
    run(subject, "noise", (0..6000).map(Mutation::Noise));
}

/// Repairs every so many of all mutations: VHD_REPAIR_STRIDE says how many, 1 for each (the long run).
fn repairs(subject: &Subject) {
    let stride = std::env::var("VHD_REPAIR_STRIDE")
        .ok()
        .and_then(|stride| stride.parse().ok());
    let stride = stride.unwrap_or(23);
    let watchdog = Watchdog::start();
    let (mut sound, mut repaired, mut refused) = (0_u64, 0_u64, 0_u64);
    for mutation in mutations::all(subject).step_by(stride) {
        let Some(bytes) = mutation.apply(subject) else { continue };
        watchdog.begin(mutation);
        match catch_unwind(AssertUnwindSafe(|| mend(subject, &bytes, mutation))) {
            Ok(Mended::Sound) => sound += 1,
            Ok(Mended::Repaired) => repaired += 1,
            Ok(Mended::Refused) => refused += 1,
            Err(_) => panic!("{} image, {mutation:x?}", subject.name),
        }
    }
    announce(&format!(
        "{} image, repairs: {sound} sound, {repaired} repaired, {refused} refused",
        subject.name
    ));
    assert!(repaired > 0);
}

/// The tests of one subject; they run side by side.
macro_rules! mutations_of {
    ($($subject:ident),*) => {$(
        mod $subject {
            #[test]
            fn cut() {
                super::cut(&crate::subjects::$subject());
            }

            #[test]
            fn bytes() {
                super::bytes(&crate::subjects::$subject());
            }

            #[test]
            fn sealed_bytes() {
                super::sealed_bytes(&crate::subjects::$subject());
            }

            #[test]
            fn fields() {
                super::fields(&crate::subjects::$subject());
            }

            #[test]
            fn repairs() {
                super::repairs(&crate::subjects::$subject());
            }

            #[test]
            fn noise() {
                super::noise(&crate::subjects::$subject());
            }
        }
    )*};
}

mutations_of!(dynamic, differencing, empty, fixed_image);

/// Whatever becomes of the places where a child says its parent is: the parent is found, or the child refused.
#[test]
fn damaged_ways_to_the_parent() {
    let (subject, dir) = (subjects::differencing(), common::temp_dir());
    let child = dir.path().join("child.vhd");
    std::fs::write(dir.path().join("base.vhd"), subject.parent.as_ref().unwrap()).unwrap();
    let (mut opened, mut refused) = (0, 0);
    for at in subject.ways_to_the_parent() {
        let mutations =
            Mutation::all_of_byte(at).map(|plain| plain.sealed().filter(|_| at < FOOTER + HEADER).unwrap_or(plain));
        for mutation in mutations {
            let Some(bytes) = mutation.apply(&subject) else {
                continue;
            };
            std::fs::write(&child, bytes).unwrap();
            match OpenOptions::new().open(&child) {
                Ok(disk) => {
                    assert_same(&read_all(&disk.disk()), &subject.content, &format!("{mutation:x?}"));
                    opened += 1;
                }
                Err(error) => {
                    let expected = [
                        ErrorKind::ParentMissing,
                        ErrorKind::ParentMismatch,
                        ErrorKind::BlockInMetadata,
                    ];
                    assert!(expected.contains(&error.kind()), "{mutation:x?}: {error:?}");
                    refused += 1;
                }
            }
        }
    }
    announce(&format!(
        "ways to the parent: {} mutations, {opened} of them opened, {refused} refused",
        opened + refused
    ));
    assert!(opened > 0 && refused > 0);
}
