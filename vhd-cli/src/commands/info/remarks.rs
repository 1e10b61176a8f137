//! What is odd about one image: where its sizes disagree, and what its footers hold beside the usual.

use serde::Serialize;
use vhd_core::format::{Footer, FormatOddity, Geometry, OdditySeverity};
use vhd_core::image::{FooterSource, Image};
use vhd_core::units::FileOffset;

/// The creators for whose images qemu takes the geometry for the size, unless it is the largest geometry.
const QEMU_TRUSTS_GEOMETRY: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];
/// The only ones for whose images qemu up to version 9 does not.
const QEMU_TRUSTS_SIZE: [[u8; 4]; 4] = [*b"win ", *b"qem2", *b"d2v ", *b"tap\0"];

/// Something odd.
#[derive(Serialize)]
pub(super) struct Remark {
    pub(super) code: &'static str,
    pub(super) severity: &'static str,
    pub(super) message: String,
}

impl Remark {
    fn new(code: &'static str, severity: OdditySeverity, message: String) -> Self {
        let severity = match severity {
            OdditySeverity::Note => "note",
            OdditySeverity::Warning => "warning",
        };
        Self {
            code,
            severity,
            message,
        }
    }
}

impl From<FormatOddity> for Remark {
    fn from(oddity: FormatOddity) -> Self {
        Self::new(oddity.code(), oddity.severity(), oddity.to_string())
    }
}

/// Everything odd about an image.
pub(super) fn remarks(image: &Image) -> Vec<Remark> {
    let footers = image.footers();
    // A legacy footer was completed on reading: that it was one is told by where it was.
    let legacy = matches!(footers.source, FooterSource::LegacyTail(_)).then_some(FormatOddity::LegacyFooter);
    let oddities = Footer::decode_with_oddities(&footers.raw).map_or_else(|_| Vec::new(), |(_, oddities)| oddities);
    let mut remarks: Vec<Remark> = oddities.into_iter().chain(legacy).map(Remark::from).collect();
    remarks.extend(file_size(image));
    remarks.extend(qemu_size(image.footer()));
    remarks.extend(footer_copies(image));
    remarks
}

/// A fixed image's footer stands right behind the disk; a file of another length has something between.
fn file_size(image: &Image) -> Option<Remark> {
    let (FooterSource::Tail(FileOffset(at)) | FooterSource::LegacyTail(FileOffset(at))) = image.footers().source else {
        return None;
    };
    let size = image.disk_size();
    (image.header().is_none() && at != size).then(|| {
        let message = format!("the disk has {size:#x} bytes but the footer stands at {at:#x}");
        Remark::new("file-size", OdditySeverity::Warning, message)
    })
}

fn qemu_size(footer: &Footer) -> Option<Remark> {
    let (size, covered) = (footer.current_size, footer.geometry.size_bytes());
    let largest = Geometry::from_size(u64::MAX).size_bytes();
    let creator = &footer.creator_application;
    let qemu = match (
        QEMU_TRUSTS_GEOMETRY.contains(creator),
        QEMU_TRUSTS_SIZE.contains(creator),
    ) {
        (true, _) => "qemu",
        (_, true) => return None,
        _ => "qemu up to version 9",
    };
    (covered != size && covered != largest).then(|| {
        let message = format!("{qemu} takes this creator's geometry for the size and reads {covered:#x} bytes");
        Remark::new("qemu-size", OdditySeverity::Warning, message)
    })
}

fn footer_copies(image: &Image) -> Option<Remark> {
    let footers = image.footers();
    let (code, message) = match (footers.source, &footers.tail_error, &footers.copy) {
        (FooterSource::Copy, Some(error), _) => (
            "footer-damaged",
            format!("the footer at the end is not usable: {error}; its copy is in use"),
        ),
        (_, _, Some(Err(error))) => ("footer-copy-damaged", format!("the footer copy is not usable: {error}")),
        _ if !footers.agree() => ("footers-differ", "the footer and its copy differ".to_owned()),
        _ => return None,
    };
    Some(Remark::new(code, OdditySeverity::Warning, message))
}
