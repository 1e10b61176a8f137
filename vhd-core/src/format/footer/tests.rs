use super::*;
use crate::error::ErrorKind;
use crate::format::OdditySeverity;
use proptest::prelude::*;

const SIZE: u64 = 4 << 20;
const ID: [u8; 16] = [
    0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF,
];

fn sample(disk_type: DiskType) -> Footer {
    Footer::new(disk_type, SIZE, UniqueId(ID), Timestamp(0x0102_0304))
}

/// The footer of [`sample`] for a dynamic disk, byte by byte; the checksum was computed elsewhere.
fn by_hand() -> [u8; FOOTER_SIZE] {
    let mut bytes = [0; FOOTER_SIZE];
    let parts: [(usize, &[u8]); 15] = [
        (0, b"conectix"),
        (8, &[0, 0, 0, 2]),
        (12, &[0, 1, 0, 0]),
        (16, &[0, 0, 0, 0, 0, 0, 2, 0]),
        (24, &[1, 2, 3, 4]),
        (28, b"win "),
        (32, &[0, 6, 0, 1]),
        (36, b"Wi2k"),
        (40, &[0, 0, 0, 0, 0, 0x40, 0, 0]),
        (48, &[0, 0, 0, 0, 0, 0x40, 0, 0]),
        (56, &[0, 120]),
        (58, &[4, 17]),
        (60, &[0, 0, 0, 3]),
        (64, &[0xFF, 0xFF, 0xEE, 0x39]),
        (68, &ID),
    ];
    for (at, part) in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// `bytes` after `part` was put `at`, with the checksum renewed.
fn with(mut bytes: [u8; FOOTER_SIZE], at: usize, part: &[u8]) -> [u8; FOOTER_SIZE] {
    bytes[at..at + part.len()].copy_from_slice(part);
    let sum = checksum(&bytes, 64..68);
    bytes[64..68].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn kind(bytes: &[u8]) -> ErrorKind {
    Footer::decode(bytes).unwrap_err().kind()
}

fn codes(bytes: &[u8]) -> Vec<&'static str> {
    let (_, oddities) = Footer::decode_with_oddities(bytes).unwrap();
    oddities.iter().map(FormatOddity::code).collect()
}

/// The codes of `bytes` without that of the geometry, which never covers 4 MiB wholly.
fn unusual(bytes: &[u8]) -> Vec<&'static str> {
    codes(bytes)
        .into_iter()
        .filter(|&code| code != "geometry-size")
        .collect()
}

#[test]
fn every_field_is_where_the_format_has_it() {
    assert_eq!(sample(DiskType::Dynamic).encode(), by_hand());
    assert_eq!(Footer::decode(&by_hand()), Ok(sample(DiskType::Dynamic)));
}

#[test]
fn the_last_fields() {
    let footer = Footer {
        saved_state: true,
        hidden: 2,
        ..sample(DiskType::Dynamic)
    };
    let bytes = footer.encode();
    assert_eq!(bytes[84..86], [1, 2]);
    assert_eq!(bytes[86..], [0; 426]);
    assert_eq!(Footer::decode(&bytes), Ok(footer));
}

#[test]
fn fixed_disks_have_no_data_offset() {
    let bytes = sample(DiskType::Fixed).encode();
    assert_eq!(bytes[16..24], [0xFF; 8]);
    assert_eq!(bytes[60..64], [0, 0, 0, 2]);
    for offset in [0xFFFF_FFFF, 0, 512, u64::MAX] {
        let footer = Footer::decode(&with(bytes, 16, &offset.to_be_bytes())).unwrap();
        assert_eq!(footer, sample(DiskType::Fixed), "{offset:#x}");
    }
}

#[test]
fn each_broken_rule_has_its_kind() {
    let good = by_hand();
    assert_eq!(kind(&with(good, 0, b"Conectix")), ErrorKind::FooterMissing);
    assert_eq!(kind(&[0; FOOTER_SIZE]), ErrorKind::FooterMissing);
    for len in [0, 1, 510, 513, 1024] {
        let bytes = [&good[..], &good[..]].concat();
        assert_eq!(kind(&bytes[..len]), ErrorKind::FooterMissing, "{len}");
    }
    let mut sum = good;
    sum[64] ^= 0x80;
    assert_eq!(kind(&sum), ErrorKind::FooterChecksum);
    for disk_type in [0, 1, 5, 6, 0x0300] {
        assert_eq!(
            kind(&with(good, 60, &u32::to_be_bytes(disk_type))),
            ErrorKind::DiskType,
            "{disk_type}"
        );
    }
    let size = |size: u64| with(good, 48, &size.to_be_bytes());
    for bytes in [0, 1, 511, SIZE + 1, MAX_DISK_SIZE + 512, u64::MAX - 511] {
        assert_eq!(kind(&size(bytes)), ErrorKind::DiskSize, "{bytes:#x}");
    }
    assert!(Footer::decode(&size(512)).is_ok());
    assert!(Footer::decode(&size(MAX_DISK_SIZE)).is_ok());
    let data_offset = |offset: u64| with(good, 16, &offset.to_be_bytes());
    for offset in [0, 511, u64::MAX, u64::MAX - 1023] {
        assert_eq!(kind(&data_offset(offset)), ErrorKind::HeaderLocation, "{offset:#x}");
    }
    assert!(Footer::decode(&data_offset(u64::MAX - 1024)).is_ok());
}

#[test]
fn the_first_broken_rule_is_told() {
    let cookie_and_sum = {
        let mut bytes = by_hand();
        bytes[0] = 0;
        bytes
    };
    assert_eq!(kind(&cookie_and_sum), ErrorKind::FooterMissing);
    let type_and_size = with(with(by_hand(), 60, &[0; 4]), 48, &[0; 8]);
    assert_eq!(kind(&type_and_size), ErrorKind::DiskType);
    let size_and_offset = with(with(by_hand(), 16, &[0; 8]), 48, &[0; 8]);
    assert_eq!(kind(&size_and_offset), ErrorKind::DiskSize);
}

#[test]
fn unfinished_journals_are_told_apart() {
    let poisoned = with(by_hand(), 0, b"v_poison");
    assert_eq!(kind(&poisoned), ErrorKind::JournalPending);
    assert!(has_footer_cookie(&poisoned));
    assert!(has_footer_cookie(&by_hand()));
    assert!(has_footer_cookie(b"conectix"));
    assert!(!has_footer_cookie(b"conecti"));
    assert!(!has_footer_cookie(b"cxsparse"));
    assert!(!has_footer_cookie(b""));
}

#[test]
fn legacy_footers_lack_the_last_byte() {
    let bytes = &by_hand()[..LEGACY_FOOTER_SIZE];
    assert_eq!(Footer::decode(bytes), Ok(sample(DiskType::Dynamic)));
    assert_eq!(unusual(bytes), ["legacy-footer"]);
    assert_eq!(kind(&bytes[..510]), ErrorKind::FooterMissing);
}

#[test]
fn any_flipped_bit_is_noticed() {
    for good in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing].map(|kind| sample(kind).encode()) {
        for bit in 0..FOOTER_SIZE * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&bytes).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn new_footers_are_not_odd() {
    for disk_type in [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing] {
        assert!(unusual(&sample(disk_type).encode()).is_empty());
        let covered = Geometry::from_size(SIZE).size_bytes();
        let whole = Footer::new(disk_type, covered, UniqueId(ID), Timestamp::UNSET);
        assert!(codes(&whole.encode()).is_empty());
    }
}

#[test]
fn each_oddity_is_found_alone() {
    let good = by_hand();
    let cases = [
        (with(good, 8, &[0, 0, 0, 0]), "reserved-feature-clear"),
        (with(good, 8, &[0, 0, 0, 3]), "temporary"),
        (with(good, 8, &[0, 0, 0, 6]), "unknown-features"),
        (with(good, 12, &[0, 1, 0, 1]), "format-version"),
        (with(good, 12, &[0, 2, 0, 0]), "format-version"),
        (with(good, 16, &[0, 0, 0, 0, 0, 0, 2, 1]), "header-misaligned"),
        (with(good, 40, &[0, 0, 0, 0, 0, 0x20, 0, 0]), "original-size"),
        (with(good, 56, &[0xFF, 0xFF, 16, 255]), "geometry-formula"),
        (with(good, 84, &[1]), "saved-state"),
        (with(good, 84, &[0x80]), "saved-state"),
        (with(good, 85, &[1]), "hidden"),
        (with(good, 86, &[1]), "footer-reserved"),
        (with(good, 511, &[1]), "footer-reserved"),
    ];
    for (bytes, code) in cases {
        assert_eq!(unusual(&bytes), [code]);
    }
    assert_eq!(codes(&good), ["geometry-size"]);
    let fixed = sample(DiskType::Fixed).encode();
    assert_eq!(
        unusual(&with(fixed, 16, &0xFFFF_FFFF_u64.to_be_bytes())),
        ["fixed-data-offset"]
    );
}

#[test]
fn what_good_images_have_is_only_a_note() {
    let mut footer = sample(DiskType::Dynamic);
    footer.original_size = SIZE / 2;
    let oddities = footer.oddities();
    assert_eq!(oddities.len(), 2);
    assert!(oddities.iter().all(|oddity| oddity.severity() == OdditySeverity::Note));
}

#[test]
fn hidden_disks_of_early_tap_drivers() {
    let tap = |version: u32| {
        let mut bytes = with(with(by_hand(), 28, b"tap\0"), 32, &version.to_be_bytes());
        bytes[85] = 1;
        bytes
    };
    let footer = Footer::decode(&tap(0x0001_0001)).unwrap();
    assert_eq!(footer.hidden, 1);
    assert_eq!(unusual(&tap(0x0001_0001)), ["hidden", "hidden-not-summed"]);
    assert_eq!(kind(&tap(0x0001_0003)), ErrorKind::FooterChecksum);
    let mut other_damage = tap(0x0001_0001);
    other_damage[84] = 1;
    assert_eq!(kind(&other_damage), ErrorKind::FooterChecksum);
}

#[test]
fn reversed_bitmaps_are_refused() {
    let tap = |bytes, version: &[u8; 4]| with(with(bytes, 28, b"tap\0"), 32, version);
    assert_eq!(kind(&tap(by_hand(), &[0, 0, 0, 1])), ErrorKind::Unsupported);
    assert!(Footer::decode(&tap(by_hand(), &[0, 1, 0, 3])).is_ok());
    assert!(Footer::decode(&tap(sample(DiskType::Fixed).encode(), &[0, 0, 0, 1])).is_ok());
}

fn any_footer() -> impl Strategy<Value = Footer> {
    let kind = prop_oneof![
        Just((DiskType::Fixed, None)),
        (512..u64::MAX - 1024).prop_map(|offset| (DiskType::Dynamic, Some(offset))),
        (512..u64::MAX - 1024).prop_map(|offset| (DiskType::Differencing, Some(offset))),
    ];
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    let creator = (any::<[u8; 4]>(), any::<[u8; 4]>());
    let sizes = (any::<u64>(), 1..=MAX_DISK_SIZE / 512);
    let geometry = (any::<u16>(), any::<u8>(), any::<u8>());
    let rest = (any::<[u8; 16]>(), any::<bool>(), any::<u8>());
    (kind, numbers, creator, sizes, geometry, rest).prop_map(|(kind, numbers, creator, sizes, geometry, rest)| Footer {
        features: numbers.0,
        format_version: numbers.1,
        data_offset: kind.1,
        timestamp: Timestamp(numbers.2),
        creator_application: creator.0,
        creator_version: numbers.3,
        creator_host_os: creator.1,
        original_size: sizes.0,
        current_size: sizes.1 * 512,
        geometry: Geometry {
            cylinders: geometry.0,
            heads: geometry.1,
            sectors_per_track: geometry.2,
        },
        disk_type: kind.0,
        unique_id: UniqueId(rest.0),
        saved_state: rest.1,
        hidden: rest.2,
    })
}

proptest! {
    #[test]
    fn footers_survive(footer in any_footer()) {
        let bytes = footer.encode();
        prop_assert_eq!(Footer::decode(&bytes[..LEGACY_FOOTER_SIZE]), Ok(footer.clone()));
        let (decoded, oddities) = Footer::decode_with_oddities(&bytes).unwrap();
        prop_assert_eq!(oddities, footer.oddities());
        prop_assert_eq!(decoded, footer);
    }

    /// Whatever decodes is a fixed point: written back and read again it is the same.
    #[test]
    fn hostile_bytes_do_no_harm(footer in any_footer(), at in 8_usize..512, noise: Vec<u8>) {
        let mut bytes = footer.encode();
        for (byte, noise) in bytes[at..].iter_mut().zip(noise) {
            *byte = noise;
        }
        let bytes = with(bytes, 0, b"");
        if let Ok((decoded, _)) = Footer::decode_with_oddities(&bytes) {
            prop_assert_eq!(Footer::decode(&decoded.encode()), Ok(decoded));
        }
    }

    #[test]
    fn other_bytes_are_no_footer(bytes: Vec<u8>) {
        prop_assert!(Footer::decode(&bytes).is_err());
    }
}
