//! Deflated clusters and grains, each with a size that is known.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// Inflates a stream without a header into all of `out`. Other bytes may follow the stream.
///
/// # Errors
/// What was found instead.
pub(crate) fn inflate_raw(packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    let len = out.len();
    inflate(packed, out, len, 0)
}

/// Inflates a stream of zlib into at least the first `least` bytes of `out`.
///
/// # Errors
/// What was found instead.
pub(crate) fn inflate_zlib(packed: &[u8], out: &mut [u8], least: usize) -> Result<(), String> {
    inflate(packed, out, least, TINFL_FLAG_PARSE_ZLIB_HEADER)
}

fn inflate(packed: &[u8], out: &mut [u8], least: usize, flags: u32) -> Result<(), String> {
    let mut state = Box::<DecompressorOxide>::default();
    let flags = flags | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut state, packed, out, 0, flags);
    match status {
        TINFLStatus::Done | TINFLStatus::HasMoreOutput if written >= least => Ok(()),
        status => Err(format!("{written:#x} bytes, {status:?}")),
    }
}
