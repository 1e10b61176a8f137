//! Any bytes as a delta.

use vhd_core::chain::OpenOptions;
use vhd_core::ops::delta::DeltaImport;
use vhd_core::ops::{ConvertOptions, Target};

use super::lab::{self, Lab};

/// The delta is refused, or the disk that it makes is there and its base is as it was.
pub fn delta_import(bytes: &[u8]) {
    let lab = Lab::new();
    lab.put("delta.vhd", bytes);
    let base = lab.content("base.vhd").expect("it is sound");
    let out = lab.path("out.vhd");
    let options = ConvertOptions {
        target: Target::Raw,
        replace: false,
        durable: false,
        threads: 1,
    };
    let opened = DeltaImport::open(&lab.path("delta.vhd"), &lab.path("base.vhd"), &OpenOptions::new());
    let imported = opened.and_then(|import| import.write(&out, &options, &()));
    assert_eq!(
        imported.is_ok(),
        out.exists(),
        "it is there exactly if it is whole: {:?}",
        imported.err()
    );
    assert_eq!(
        lab::content_of(&lab.path("base.vhd")),
        Some(base),
        "the base is as it was"
    );
}
