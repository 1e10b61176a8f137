//! Footers and header change together: in every state that a loss of power can leave, all of the old or all of the
//! new counts (INV-18), and the disk reads the same.
//!
//! VHD_AMEND_IMAGES says on how many random images (default 50); a failure prints its seed, VHD_TEST_SEED replaces the
//! first one.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::build::{Locator, Parent, Sparse, TablePlace, id, utf16le};
use common::disk::{assert_same, parent_layer, read_all};
use common::rng::{Rng, chance, random_bytes, seeded};
use vhd_core::ErrorKind;
use vhd_core::check::{Severity, check};
use vhd_core::device::{Disk, LayeredDevice};
use vhd_core::format::{DynamicHeader, Footer, Timestamp, UniqueId};
use vhd_core::image::{Amendment, FooterSource, Footers, Image, OpenMode, ParentLink, ParentPath};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::{CrashFile, CrashLimits, CrashSnapshot, Fault, FaultError, FaultFile, each_operation_fails};

/// What an image says of itself, apart from where in the file it says it.
#[derive(Clone, Debug, PartialEq)]
struct Says {
    footer: Footer,
    header: Option<DynamicHeader>,
    paths: Vec<ParentPath>,
}

impl Says {
    fn of(image: &Image) -> Self {
        let mut footer = image.footer().clone();
        footer.data_offset = None;
        let header = image.header().cloned().map(|mut header| {
            header.locators = Default::default();
            header
        });
        Self {
            footer,
            header,
            paths: image.parent_paths().unwrap(),
        }
    }

    fn in_file(file: &Arc<dyn StorageFile>) -> Self {
        Self::of(&Image::open(Arc::clone(file), &OpenMode::read_only()).unwrap())
    }
}

#[derive(Clone)]
struct Subject {
    bytes: Vec<u8>,
    flat: Vec<u8>,
    parent: Option<Vec<u8>>,
    layout: String,
}

/// What is changed of an image.
#[derive(Clone, Debug)]
struct Change {
    id: Option<UniqueId>,
    /// Sectors that the disk loses, within its last block.
    shorter: u64,
    link: Option<ParentLink>,
}

impl Subject {
    fn random(rng: &mut Rng) -> Self {
        let block_size = 512_usize << rng.u32(0..5);
        let blocks = rng.u64(1..10);
        let size = blocks * u64_from(block_size) - rng.u64(0..u64_from(block_size) / 512) * 512;
        if chance(rng, 10) {
            let flat = random_bytes(rng, usize_from(size));
            let bytes = common::build::fixed(&flat, id(3));
            return Self {
                bytes,
                flat,
                parent: None,
                layout: format!("fixed, {size} bytes"),
            };
        }
        let parent = chance(rng, 70).then(|| random_bytes(rng, usize_from(size)));
        let mut image = match &parent {
            None => Sparse::new(size, block_size),
            Some(_) => Sparse::child(size, block_size, id(2), random_link(rng)),
        };
        image = image.fill_randomly(rng, 70);
        image.gap = if chance(rng, 50) { 0 } else { rng.usize(1..6) };
        image.table = match rng.u8(..4) {
            0 => TablePlace::AtEnd,
            1 => TablePlace::FarAway(rng.usize(0..9) * 512),
            _ => TablePlace::BehindHeader,
        };
        let flat = image.flat(parent.as_deref().unwrap_or_default());
        let mut bytes = image.lay().bytes;
        let legacy = chance(rng, 15);
        if legacy {
            bytes.pop();
        }
        let layout = format!(
            "{blocks} blocks of {block_size}, gap {}, legacy {legacy}, locators {:?}",
            image.gap,
            image.parent.map(|parent| parent.locators.len())
        );
        Self {
            bytes,
            flat,
            parent,
            layout,
        }
    }

    fn change(&self, rng: &mut Rng) -> Change {
        let image = open(&memory(&self.bytes), &OpenMode::read_only());
        let in_last_block = image.header().map_or(0, |header| {
            let last = header.layout.blocks_for(image.disk_size()) - 1;
            (image.disk_size() - last * header.layout.block_size()) / 512 - 1
        });
        Change {
            id: chance(rng, 40).then(|| UniqueId(id(77))),
            shorter: if chance(rng, 40) { rng.u64(0..=in_last_block) } else { 0 },
            link: (self.parent.is_some() && chance(rng, 70)).then(|| new_link(rng)),
        }
    }

    fn read(&self, file: &Arc<dyn StorageFile>) -> Vec<u8> {
        let parent = self.parent.as_ref();
        let ancestors = parent.map(|content| parent_layer(common::build::fixed(content, id(1))));
        let device = LayeredDevice::new(open(file, &OpenMode::read_only()), ancestors.into_iter().collect());
        read_all(&Disk::new(Arc::new(device)))
    }

    /// The image says all of one and nothing of the other, nothing is corrupt, and the disk reads the same.
    fn check(&self, file: &Arc<dyn StorageFile>, old: &Says, new: &Says, what: &str) {
        let says = Says::in_file(file);
        assert!(
            says == *old || says == *new,
            "{what}, {}: {says:#?} is neither\n{old:#?} nor\n{new:#?}",
            self.layout
        );
        let report = check(&**file).unwrap();
        let corrupt = report
            .findings
            .iter()
            .find(|finding| finding.severity == Severity::Corrupt);
        assert_eq!(corrupt, None, "{what}, {}", self.layout);
        let read = self.read(file);
        assert_same(&read, &self.flat[..read.len()], &format!("{what}, {}", self.layout));
    }

    fn check_done(&self, file: &Arc<dyn StorageFile>, new: &Says, what: &str) {
        self.check(file, new, new, what);
        let footers = Footers::read(&**file).unwrap();
        assert!(
            footers.agree() && matches!(footers.source, FooterSource::Tail(_)),
            "{what}, {}",
            self.layout
        );
    }
}

/// A parent with locators of any length, so that new texts fit in the place of the old ones or do not.
fn random_link(rng: &mut Rng) -> Parent {
    let mut parent = Parent::name_only(id(1), "parent.vhd");
    for (slot, code) in [b"W2ru", b"W2ku"].into_iter().enumerate().take(rng.usize(0..3)) {
        let path = format!(".\\{}\\parent.vhd", "d".repeat(rng.usize(1..500)));
        parent.locators.push(Locator::new(slot, code, utf16le(&path)));
    }
    parent
}

fn new_link(rng: &mut Rng) -> ParentLink {
    let dirs = "e".repeat(rng.usize(1..600));
    ParentLink {
        id: UniqueId(id(9)),
        modified: Timestamp(77),
        name: "other.vhd".to_owned(),
        relative_path: format!(".\\{dirs}\\other.vhd"),
        absolute_path: format!("C:\\{dirs}\\other.vhd"),
    }
}

fn memory(bytes: &[u8]) -> Arc<dyn StorageFile> {
    Arc::new(MemoryFile::from_bytes(bytes.to_vec()))
}

fn open(file: &Arc<dyn StorageFile>, mode: &OpenMode) -> Image {
    Image::open(Arc::clone(file), mode).unwrap()
}

/// What the image is to say after the change.
fn amendment(image: &Image, original: &Says, change: &Change) -> Amendment {
    let mut amendment = image.amendment();
    amendment.footer.current_size = original.footer.current_size - 512 * change.shorter;
    amendment.footer.unique_id = change.id.unwrap_or(original.footer.unique_id);
    amendment.parent.clone_from(&change.link);
    amendment
}

fn amend(file: &Arc<dyn StorageFile>, original: &Says, change: &Change) -> Result<(), Box<dyn std::error::Error>> {
    let image = Image::open(Arc::clone(file), &OpenMode::read_write())?;
    let amendment = amendment(&image, original, change);
    image.amend(&amendment).map_err(|error| {
        assert!([ErrorKind::Io, ErrorKind::NoSpace].contains(&error.kind()), "{error:?}");
        error.into()
    })
}

/// What the image says before the change, and what it says after it, by what was asked for.
fn before_and_after(subject: &Subject, change: &Change) -> (Says, Says) {
    let file = memory(&subject.bytes);
    let old = Says::in_file(&file);
    amend(&file, &old, change).unwrap();
    let new = Says::in_file(&file);
    assert_eq!(new.footer.current_size, old.footer.current_size - 512 * change.shorter);
    assert_eq!(new.footer.unique_id, change.id.unwrap_or(old.footer.unique_id));
    if let Some(link) = &change.link {
        assert_eq!(new.header.as_ref().unwrap().parent_id, link.id);
        let paths: Vec<&str> = new.paths.iter().map(|path| path.path.as_str()).collect();
        assert_eq!(paths, [&link.relative_path, &link.absolute_path, &link.name]);
    } else {
        assert_eq!((&new.header, &new.paths), (&old.header, &old.paths));
    }
    subject.check_done(&file, &new, "amended");
    (old, new)
}

fn crash_everywhere(
    subject: &Subject,
    file: CrashFile,
    says: &[Says; 2],
    change: &Change,
    depth: u32,
    states: &Arc<AtomicU64>,
) {
    let (watched, counter, both, again) = (subject.clone(), Arc::clone(states), says.clone(), change.clone());
    let one_at_a_time = Arc::new(Mutex::new(()));
    file.set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
        let _one = one_at_a_time.lock();
        let limits = CrashLimits {
            exhaustive_bits: 7,
            random: 12,
            seed: counter.load(Ordering::Relaxed),
            newest_only: true,
        };
        for state in snapshot.crash_states(&limits) {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            let crashed: Arc<dyn StorageFile> = Arc::new(state.file());
            watched.check(&crashed, &both[0], &both[1], &state.to_string());
            if depth > 0 && number.is_multiple_of(17) {
                crash_everywhere(&watched, state.file(), &both, &again, depth - 1, &counter);
            }
        }
    })));
    let storage: Arc<dyn StorageFile> = Arc::new(file.clone());
    amend(&storage, &says[0], change).unwrap();
    file.set_observer(None);
    subject.check_done(&storage, &says[1], "at the end");
}

fn image_count() -> u64 {
    let asked = std::env::var("VHD_AMEND_IMAGES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(50)
}

#[test]
fn inv_18_power_fails_at_every_operation() {
    let mut rng = seeded(0x18, "crashes");
    let states = Arc::new(AtomicU64::new(0));
    for _ in 0..image_count() {
        let subject = Subject::random(&mut rng);
        let change = subject.change(&mut rng);
        let (old, new) = before_and_after(&subject, &change);
        let file = CrashFile::from_bytes(&subject.bytes);
        crash_everywhere(&subject, file, &[old, new], &change, 1, &states);
    }
    let states = states.load(Ordering::Relaxed);
    common::announce(&format!("amending: {states} crash states checked"));
    assert!(states > 1000, "{states}");
}

#[test]
fn inv_18_each_operation_fails_and_the_next_run_finishes() {
    let mut rng = seeded(0xFA18, "faults");
    let mut struck = 0;
    for error in [FaultError::EIO, FaultError::ENOSPC] {
        for _ in 0..25 {
            let subject = Subject::random(&mut rng);
            let change = subject.change(&mut rng);
            let (old, new) = before_and_after(&subject, &change);
            let fault = |n| Fault {
                error,
                ..Fault::nth(n).with_short(300)
            };
            struck += each_operation_fails(fault, |control, n| {
                let crash = CrashFile::from_bytes(&subject.bytes);
                let file: Arc<dyn StorageFile> = Arc::new(FaultFile::with_control(crash.clone(), control));
                let result = amend(&file, &old, &change);
                assert_eq!(
                    result.is_err(),
                    control.hits() > 0,
                    "{}, operation {n}: {result:?}",
                    subject.layout
                );
                let healed: Arc<dyn StorageFile> = Arc::new(crash);
                subject.check(&healed, &old, &new, "after a fault");
                amend(&healed, &old, &change).unwrap();
                subject.check_done(&healed, &new, "done again");
            });
        }
    }
    assert!(struck > 200, "{struck}");
}

#[test]
fn images_opened_for_reading_are_not_amended() {
    let mut rng = seeded(0x1818, "read-only");
    for _ in 0..20 {
        let subject = Subject::random(&mut rng);
        let file = memory(&subject.bytes);
        let image = open(&file, &OpenMode::read_only());
        let amendment = image.amendment();
        assert_eq!(image.amend(&amendment).unwrap_err().kind(), ErrorKind::ReadOnly);
        let mut bytes = vec![0; subject.bytes.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_same(&bytes, &subject.bytes, &subject.layout);
    }
}

#[test]
fn a_locator_that_claims_to_be_far_away_takes_no_space() {
    let parent = Parent::named(id(2), "parent.vhd");
    let mut laid = Sparse::child(8192, 2048, id(1), parent).lay();
    laid.change_header(|header| {
        let entry = &mut header[576 + 24..576 + 2 * 24];
        entry[..4].copy_from_slice(b"W2ku");
        entry[4..8].copy_from_slice(&512_u32.to_be_bytes());
        entry[8..12].copy_from_slice(&16_u32.to_be_bytes());
        entry[16..].copy_from_slice(&(1_u64 << 51).to_be_bytes());
    });
    let file = memory(&laid.bytes);
    let image = open(&file, &OpenMode::read_write());
    let mut amendment = image.amendment();
    let header = amendment.header.as_mut().unwrap();
    header.parent_timestamp = Timestamp(77);
    image.amend(&amendment).unwrap();
    let image = open(&file, &OpenMode::read_only());
    assert_eq!(image.header().unwrap().parent_timestamp, Timestamp(77));
    assert_eq!(file.len().unwrap(), u64_from(laid.bytes.len()));
}
