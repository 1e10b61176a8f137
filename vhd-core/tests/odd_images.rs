//! Single images as all sorts of programs leave them: what can be read without doubt is read and written, the
//! rest is refused for the right reason.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::build::{
    DYNAMIC, FIXED, FOOTER, FOOTER_SUM, HEADER_SUM, Laid, SECTOR, Sparse, TablePlace, ends_in_footer, fixed, footer,
    id, number, put, seal,
};
use common::disk::{assert_same, disk_in, memory_session, read_all};
use common::rng::{Rng, random_bytes, seeded};
use vhd_core::ErrorKind;
use vhd_core::chain::ImageFormat;
use vhd_core::check::{FindingCode, check};
use vhd_core::image::{FooterSource, Image, OpenMode};
use vhd_core::storage::MemoryFile;
use vhd_core::units::{u64_from, usize_from};

/// A change to a structure.
type Change<'a> = &'a dyn Fn(&mut [u8]);

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn memory(bytes: &[u8]) -> Arc<MemoryFile> {
    Arc::new(MemoryFile::from_bytes(bytes.to_vec()))
}

/// The image reads as it must; it does so after a session of writes too.
fn assert_usable(bytes: &[u8], content: &[u8], what: &str) {
    println!("{what}");
    let read_only = disk_in(memory(bytes), &OpenMode::read_only());
    let disk = read_only.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_same(&read_all(&disk), content, what);

    let (file, mut model) = (memory(bytes), content.to_vec());
    let mut rng = seeded(0x0DD, what);
    for _ in 0..3 {
        memory_session(&file, Vec::new(), &mut model, &mut rng, 12);
        let again = disk_in(Arc::clone(&file) as _, &OpenMode::read_only());
        let disk = again.unwrap_or_else(|error| panic!("{what}, after a session: {error:?}"));
        assert_same(&read_all(&disk), &model, what);
    }
}

/// The image can't be opened, for this reason; the checker names the same one.
fn assert_refused(bytes: &[u8], kind: ErrorKind, what: &str) {
    let report = check(&*memory(bytes)).unwrap();
    let found = report
        .findings
        .iter()
        .any(|finding| finding.code == FindingCode::Broken(kind));
    assert!(found, "{what}: {report:?}");
    for mode in [OpenMode::read_only(), OpenMode::read_write()] {
        let file = memory(bytes);
        match Image::open(Arc::clone(&file) as _, &mode) {
            Ok(_) => panic!("{what} was opened"),
            Err(error) => assert_eq!(error.kind(), kind, "{what}: {error:?}"),
        }
        assert!(file.to_vec() == bytes, "{what}: a file that is refused is not changed");
    }
}

/// A dynamic image with gaps in its table, partial bitmaps, garbage where bits are clear, and a last block that
/// is only partly on the disk.
fn specimen(rng: &mut Rng) -> Sparse {
    let block_size = 8 * KIB;
    let spec = Sparse::new(u64_from(20 * block_size - 3 * SECTOR), block_size).fill_randomly(rng, 60);
    assert!(spec.stored.len() > 3 && spec.stored.len() < spec.blocks());
    spec
}

fn laid_specimen(seed: u64) -> (Laid, Vec<u8>) {
    let spec = specimen(&mut seeded(seed, "specimen"));
    (spec.lay(), spec.flat(&[]))
}

#[test]
fn sectors_whose_bit_is_clear_read_zero_whatever_is_stored_there() {
    let (laid, content) = laid_specimen(1);
    assert_usable(&laid.bytes, &content, "garbage under clear bits");
}

#[test]
fn legacy_footers_of_511_bytes() {
    let mut rng = seeded(2, "legacy footers");
    let content = random_bytes(&mut rng, 100 * SECTOR);
    let mut bytes = fixed(&content, id(1));
    bytes.pop();
    assert_usable(&bytes, &content, "fixed");
    let detected = ImageFormat::detect(&*memory(&bytes), Path::new("x")).unwrap();
    assert_eq!(detected, ImageFormat::Vhd);

    let (mut laid, content) = laid_specimen(3);
    laid.bytes.pop();
    assert_usable(&laid.bytes, &content, "dynamic");
    laid.bytes[..FOOTER].fill(0);
    assert_usable(&laid.bytes, &content, "dynamic without the copy");
}

/// How the end of a file was spoiled, and what is left of it.
fn spoiled_ends(laid: &Laid) -> Vec<(&'static str, Vec<u8>)> {
    let tail = laid.tail;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = laid.bytes.clone();
        change(&mut bytes);
        bytes
    };
    vec![
        ("no footer", with(&|bytes| bytes.truncate(tail))),
        ("half a footer", with(&|bytes| bytes.truncate(tail + 200))),
        ("zeroed footer", with(&|bytes| bytes[tail..].fill(0))),
        ("killed footer", with(&|bytes| bytes[tail..].fill(0xC7))),
        ("bad checksum", with(&|bytes| bytes[tail + FOOTER_SUM] ^= 1)),
        ("bad reserved byte", with(&|bytes| bytes[tail + 300] = 1)),
        ("junk behind", with(&|bytes| bytes.extend_from_slice(&[0x77; 4096]))),
        ("odd junk behind", with(&|bytes| bytes.extend_from_slice(&[0x77; 777]))),
        ("much junk behind", with(&|bytes| bytes.resize(tail + 300 * KIB, 0))),
    ]
}

#[test]
fn a_spoiled_end_is_made_good_by_the_copy() {
    let (laid, content) = laid_specimen(4);
    for (what, bytes) in spoiled_ends(&laid) {
        assert_usable(&bytes, &content, what);
        let image = Image::open(memory(&bytes), &OpenMode::read_only()).unwrap();
        assert_eq!(image.footers().source, FooterSource::Copy, "{what}");
        assert!(image.footers().tail_error.is_some(), "{what}");

        // To open the image for writing restores the footer, even if nothing is written.
        let file = memory(&bytes);
        drop(Image::open(Arc::clone(&file) as _, &OpenMode::read_write()).unwrap());
        assert!(ends_in_footer(&file.to_vec()), "{what}");
        assert_usable(&file.to_vec(), &content, what);
    }
}

#[test]
fn a_spoiled_copy_is_made_good_by_the_end() {
    let (laid, content) = laid_specimen(5);
    let spoilers: [(&str, Change<'_>); 3] = [
        ("zeroed copy", &|copy| copy.fill(0)),
        ("copy with a bad checksum", &|copy| copy[FOOTER_SUM] ^= 1),
        ("copy of junk", &|copy| copy.fill(0x77)),
    ];
    for (what, spoil) in spoilers {
        let mut bytes = laid.bytes.clone();
        spoil(&mut bytes[..FOOTER]);
        assert_usable(&bytes, &content, what);
        let file = memory(&bytes);
        drop(Image::open(Arc::clone(&file) as _, &OpenMode::read_write()).unwrap());
        assert!(
            file.to_vec() == laid.bytes,
            "{what} is restored, and nothing else changes"
        );
    }
}

#[test]
fn a_fixed_image_with_junk_behind_its_footer_is_never_taken_for_raw() {
    let content = random_bytes(&mut seeded(6, "fixed with junk"), 64 * SECTOR);
    for junk in [1, 511, 512, 4096, 60 * KIB] {
        let mut bytes = fixed(&content, id(1));
        bytes.resize(bytes.len() + junk, 0x77);
        let detected = ImageFormat::detect(&*memory(&bytes), Path::new("x"));
        assert_eq!(detected.unwrap_err().kind(), ErrorKind::Ambiguous, "{junk} bytes");
        assert_refused(&bytes, ErrorKind::FooterMissing, "a fixed image with junk behind");
    }
}

#[test]
fn a_damaged_image_is_never_taken_for_raw() {
    let mut both = laid_specimen(7).0;
    both.bytes[FOOTER_SUM] ^= 1;
    both.bytes[both.tail + FOOTER_SUM] ^= 1;
    let mut fixed = fixed(&[7; 4096], id(1));
    fixed[4096 + FOOTER_SUM] ^= 1;
    for bytes in [&both.bytes, &fixed] {
        let detected = ImageFormat::detect(&*memory(bytes), Path::new("x")).unwrap();
        assert_eq!(detected, ImageFormat::Vhd);
    }
    let detected = ImageFormat::detect(&*memory(&[7; 4096]), Path::new("x")).unwrap();
    assert_eq!(detected, ImageFormat::Raw);
}

#[test]
fn blocks_with_gaps_between_them() {
    let mut rng = seeded(8, "gaps");
    for gap in [1, 7, 200] {
        let spec = Sparse {
            gap,
            ..specimen(&mut rng)
        };
        assert_usable(&spec.lay().bytes, &spec.flat(&[]), "gaps");
    }
}

#[test]
fn tables_in_all_places_of_all_lengths_with_all_paddings() {
    let mut rng = seeded(9, "tables");
    let places = [
        TablePlace::BehindHeader,
        TablePlace::AtEnd,
        TablePlace::FarAway(5 * MIB),
    ];
    for table in places {
        for (surplus, padding) in [(0, 0xFF), (0, 0), (1, 0xFF), (200, 0), (1000, 0x5A)] {
            let spec = specimen(&mut rng);
            let spec = Sparse {
                table,
                padding,
                entries: Some(spec.blocks() + surplus),
                ..spec
            };
            assert_usable(&spec.lay().bytes, &spec.flat(&[]), "table");
        }
    }
}

/// Programs that keep surplus entries do not all say that they are unused.
#[test]
fn surplus_table_entries_mean_nothing() {
    let spec = specimen(&mut seeded(10, "surplus entries"));
    let blocks = spec.blocks();
    let spec = Sparse {
        entries: Some(blocks + 150),
        ..spec
    };
    let mut laid = spec.lay();
    for (block, sector) in (blocks..blocks + 150).zip([0, 1, 3, 0xFFFF_FFFE].into_iter().cycle()) {
        laid.point(block, sector);
    }
    assert_usable(&laid.bytes, &spec.flat(&[]), "surplus entries");
}

/// Behind an image whose table claims more space than the file has, new blocks must not come to lie where the
/// table is said to be: the next reader would refuse them.
#[test]
fn a_table_that_claims_space_behind_the_file_stays_usable() {
    let spec = Sparse::new(u64_from(20 * 8 * KIB), 8 * KIB);
    let mut laid = spec.lay();
    laid.change_header(|header| put(header, 28, &number(100_000)));
    assert_usable(&laid.bytes, &spec.flat(&[]), "a table longer than the file");
}

#[test]
fn a_last_block_may_be_cut_short_behind_the_disk() {
    let mut rng = seeded(11, "short last block");
    let (block_size, blocks) = (8 * KIB, 5);
    for missing in [1, 3, 15] {
        let size = blocks * block_size - missing * SECTOR;
        let spec = Sparse::new(u64_from(size), block_size)
            .store_whole(&mut rng, 1)
            .store_whole(&mut rng, blocks - 1);
        let cut = |sectors: usize| {
            let laid = spec.lay();
            let mut bytes = laid.bytes[..laid.tail - sectors * SECTOR].to_vec();
            bytes.extend_from_slice(&spec.footer());
            bytes
        };
        assert_usable(&cut(missing), &spec.flat(&[]), "short last block");
        assert_refused(
            &cut(missing + 1),
            ErrorKind::BlockPastEnd,
            "a sector of the disk is missing",
        );
        let mut without_footer = cut(missing);
        without_footer.truncate(without_footer.len() - FOOTER);
        assert_usable(&without_footer, &spec.flat(&[]), "short last block, no footer");
        without_footer.pop();
        assert_refused(
            &without_footer,
            ErrorKind::BlockPastEnd,
            "a byte of the disk is missing",
        );
    }
}

#[test]
fn block_sizes_from_a_sector_up() {
    let mut rng = seeded(12, "block sizes");
    for block_size in [SECTOR, KIB, 4 * KIB, 64 * KIB, 512 * KIB, 16 * MIB, 32 * MIB] {
        let size = (4 * block_size).clamp(40 * SECTOR, 34 * MIB) - 3 * SECTOR;
        let spec = Sparse::new(u64_from(size), block_size).fill_randomly(&mut rng, 70);
        assert_usable(&spec.lay().bytes, &spec.flat(&[]), &format!("blocks of {block_size}"));
    }
}

#[test]
fn both_forms_of_the_unused_offsets() {
    let content = random_bytes(&mut seeded(13, "unused offsets"), 8 * SECTOR);
    for offset in [u64::MAX, 0xFFFF_FFFF, 0, 512] {
        let mut bytes = fixed(&content, id(1));
        put(&mut bytes, content.len() + 16, &offset.to_be_bytes());
        seal(&mut bytes[content.len()..], FOOTER_SUM);
        assert_usable(&bytes, &content, "data offset of a fixed image");
        let (mut laid, content) = laid_specimen(14);
        laid.change_header(|header| put(header, 8, &offset.to_be_bytes()));
        assert_usable(&laid.bytes, &content, "next offset of a dynamic header");
    }
}

/// What some reader objects to, and none has a reason to.
#[test]
fn oddities_that_change_nothing() {
    let oddities: [(&str, Change<'_>); 8] = [
        ("features 0", &|footer| put(footer, 8, &[0; 4])),
        ("temporary", &|footer| put(footer, 8, &3_u32.to_be_bytes())),
        ("version 1.1", &|footer| put(footer, 12, &0x0001_0001_u32.to_be_bytes())),
        ("original size", &|footer| put(footer, 40, &1_u64.to_be_bytes())),
        ("no geometry", &|footer| put(footer, 56, &[0; 4])),
        ("saved state", &|footer| footer[84] = 1),
        ("hidden", &|footer| footer[85] = 1),
        ("creator", &|footer| put(footer, 28, b"vpc ")),
    ];
    for (what, oddity) in oddities {
        let (mut laid, content) = laid_specimen(15);
        laid.change_footers(oddity);
        assert_usable(&laid.bytes, &content, what);
    }
}

#[test]
fn damaged_footers_are_refused() {
    let mut laid = laid_specimen(16).0;
    laid.bytes[FOOTER_SUM] ^= 1;
    laid.bytes[laid.tail + FOOTER_SUM] ^= 1;
    assert_refused(&laid.bytes, ErrorKind::FooterChecksum, "both footers bad");
    laid.bytes.truncate(laid.tail);
    assert_refused(&laid.bytes, ErrorKind::FooterChecksum, "copy bad, no footer");
    laid.bytes[..FOOTER].fill(0);
    assert_refused(&laid.bytes, ErrorKind::FooterMissing, "no footer at all");
    let detected = ImageFormat::detect(&*memory(&laid.bytes), Path::new("x")).unwrap();
    assert_eq!(
        detected,
        ImageFormat::Vhd,
        "its header alone tells that it is no raw disk"
    );
    assert_refused(&[], ErrorKind::FooterMissing, "an empty file");
    assert_refused(&[0; 511], ErrorKind::FooterMissing, "511 zeroes");

    let changes: [(&str, ErrorKind, Change<'_>); 8] = [
        ("poison", ErrorKind::JournalPending, &|footer| {
            put(footer, 0, b"v_poison")
        }),
        ("size 0", ErrorKind::DiskSize, &|footer| put(footer, 48, &[0; 8])),
        ("size 513", ErrorKind::DiskSize, &|footer| {
            put(footer, 48, &513_u64.to_be_bytes())
        }),
        ("2041 GiB", ErrorKind::DiskSize, &|footer| {
            put(footer, 48, &(2041_u64 << 30).to_be_bytes());
        }),
        ("all ones", ErrorKind::DiskSize, &|footer| put(footer, 48, &[0xFF; 8])),
        ("header in copy", ErrorKind::HeaderLocation, &|footer| {
            put(footer, 16, &511_u64.to_be_bytes());
        }),
        ("header past end", ErrorKind::HeaderLocation, &|footer| {
            put(footer, 16, &[0xFF; 8])
        }),
        ("header elsewhere", ErrorKind::HeaderMissing, &|footer| {
            put(footer, 16, &1024_u64.to_be_bytes());
        }),
    ];
    for (what, kind, change) in changes {
        let mut laid = laid_specimen(17).0;
        laid.change_footers(change);
        assert_refused(&laid.bytes, kind, what);
    }
    for disk_type in [0, 1, 5, 6, u32::MAX] {
        let mut laid = laid_specimen(18).0;
        laid.change_footers(|footer| put(footer, 60, &disk_type.to_be_bytes()));
        assert_refused(&laid.bytes, ErrorKind::DiskType, "disk type");
    }
}

/// Early Xen images have their bitmaps in the other bit order. They may be sound: neither the opener nor the
/// checker can say.
#[test]
fn reverse_bitmaps_are_not_supported() {
    let mut laid = laid_specimen(17).0;
    laid.change_footers(|footer| put(footer, 28, b"tap\0\0\0\0\x01"));
    let error = Image::open(memory(&laid.bytes), &OpenMode::read_only()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        check(&*memory(&laid.bytes)).unwrap_err().kind(),
        std::io::ErrorKind::Unsupported
    );
}

#[test]
fn damaged_headers_are_refused() {
    let mut laid = laid_specimen(19).0;
    laid.bytes[FOOTER + HEADER_SUM] ^= 1;
    assert_refused(&laid.bytes, ErrorKind::HeaderChecksum, "header checksum");

    let end = u64_from(laid.bytes.len());
    let past = [
        end.next_multiple_of(512),
        1 << 40,
        (1 << 63) + 512,
        u64::MAX - 511,
        0,
        100,
        1537,
    ];
    for table in past {
        let mut laid = laid_specimen(20).0;
        laid.change_header(|header| put(header, 16, &table.to_be_bytes()));
        assert_refused(&laid.bytes, ErrorKind::TableLocation, &format!("table at {table:#x}"));
    }
    for block_size in [0, 1, 256, 3 * MIB, 512 * MIB, 0xFFFF_FFFF] {
        let mut laid = laid_specimen(21).0;
        laid.change_header(|header| put(header, 32, &number(block_size)));
        assert_refused(&laid.bytes, ErrorKind::BlockSize, &format!("blocks of {block_size}"));
    }
    let changes: [(&str, ErrorKind, Change<'_>); 4] = [
        ("cookie", ErrorKind::HeaderMissing, &|header| header[0] = b'X'),
        ("version", ErrorKind::HeaderVersion, &|header| header[25] = 2),
        ("short table", ErrorKind::TableTooShort, &|header| {
            put(header, 28, &number(19))
        }),
        ("no table", ErrorKind::TableTooShort, &|header| {
            put(header, 28, &number(0))
        }),
    ];
    for (what, kind, change) in changes {
        let mut laid = laid_specimen(22).0;
        laid.change_header(change);
        assert_refused(&laid.bytes, kind, what);
    }
}

#[test]
fn damaged_tables_are_refused() {
    let (laid, _) = laid_specimen(23);
    let (block, other) = (laid.blocks[0].0, laid.blocks[1]);
    let (sectors, tail) = (laid.bytes.len() / SECTOR, laid.tail / SECTOR);
    let cases = [
        ("the same place", ErrorKind::BlockOverlap, other.1 / SECTOR),
        ("a sector on", ErrorKind::BlockOverlap, other.1 / SECTOR + 1),
        ("the footer copy", ErrorKind::BlockInMetadata, 0),
        ("the header", ErrorKind::BlockInMetadata, 2),
        ("the table", ErrorKind::BlockInMetadata, laid.table / SECTOR),
        ("over the footer", ErrorKind::BlockPastEnd, tail - 2),
        ("the footer", ErrorKind::BlockPastEnd, tail),
        ("the end", ErrorKind::BlockPastEnd, sectors),
        ("far past the end", ErrorKind::BlockPastEnd, 0x1000_0000),
        ("the largest entry", ErrorKind::BlockPastEnd, 0xFFFF_FFFE),
    ];
    for (what, kind, sector) in cases {
        let mut laid = laid.clone();
        laid.point(block, sector);
        assert_refused(&laid.bytes, kind, &format!("a block at {what}"));
    }
}

#[test]
fn fixed_images_shorter_than_their_disk_are_refused() {
    let mut bytes = vec![0x11; 4096];
    bytes.extend_from_slice(&footer(FIXED, 4096 + 512, id(1)));
    assert_refused(&bytes, ErrorKind::FileTooShort, "a sector is missing");
    // The copy of a fixed image does not exist: whatever the disk begins with is content.
    let mut nested = fixed(&Sparse::new(4096, 4096).lay().bytes, id(2));
    let content = nested[..nested.len() - FOOTER].to_vec();
    assert_usable(&nested, &content, "a dynamic image on a fixed disk");
    nested.truncate(content.len());
    let image = Image::open(memory(&nested), &OpenMode::read_only()).unwrap();
    assert_eq!(image.footer().current_size, 4096);
}

/// The longest disk there is, in a file of a few KiB, and sizes that no table can have.
#[test]
fn huge_disks_in_small_files() {
    let size = 2040_u64 << 30;
    let mut bytes = Sparse::new(256 << 20, 256 * MIB).lay();
    bytes.change_footers(|footer| put(footer, 48, &size.to_be_bytes()));
    bytes.change_header(|header| put(header, 28, &number(8160)));
    assert_refused(&bytes.bytes, ErrorKind::TableLocation, "a table longer than the file");
    let blocks = usize_from(size / (256 << 20));
    let spec = Sparse {
        entries: Some(blocks),
        ..Sparse::new(256 << 20, 256 * MIB)
    };
    let mut laid = spec.lay();
    laid.change_footers(|footer| put(footer, 48, &size.to_be_bytes()));
    let disk = disk_in(memory(&laid.bytes), &OpenMode::read_write()).unwrap();
    disk.write_at(&[1; 700], size - 700).unwrap();
    disk.flush().unwrap();
    let mut end = [0; 1024];
    disk.read_at(&mut end, size - 1024).unwrap();
    assert!(end[..324].iter().all(|&byte| byte == 0) && end[324..].iter().all(|&byte| byte == 1));

    let mut tiny = Sparse::new(4096, 512).lay();
    tiny.change_footers(|footer| put(footer, 48, &size.to_be_bytes()));
    tiny.change_header(|header| put(header, 28, &[0xFF; 4]));
    assert_refused(&tiny.bytes, ErrorKind::BlockSize, "more blocks than are supported");
    assert_eq!(u32::from_be_bytes(tiny.bytes[60..64].try_into().unwrap()), DYNAMIC);
}
